"""The benchmark of the optimizer step: `python -m oxistep.bench --help`, docs/benchmarks.md."""
