"""The benchmark of the optimizer step: `oxistep bench --help`, docs/benchmarks.md."""
