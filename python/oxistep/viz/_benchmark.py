"""``oxistep.viz.benchmark``: the charts of the benchmark's page, one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from oxistep.viz import _style as style


def benchmark(
    results: str | Path | dict[str, Any],
    chart: Literal["ratios", "bandwidth", "tensors", "sizes", "threads", "end_to_end"] = "ratios",
    *,
    output: str | Path | None = None,
) -> Figure:
    """Draws one chart of a file of results that ``oxistep bench --output`` wrote. Needs torch.

    Args:
        results: the file, or its content.
        chart: ``"ratios"`` (time of the best peer over that of oxistep), ``"bandwidth"`` (bytes a second beside the
            ceiling), ``"tensors"`` and ``"sizes"`` (cost against the number of tensors, and against the size of one),
            ``"threads"``, ``"end_to_end"`` (the share of the step in training) (default: "ratios").
        output: write the picture there (``.png``, ``.svg``, ``.pdf`` ...). Its folder is made if it is missing
            (default: None).

    Returns:
        matplotlib.figure.Figure: the chart as on the page of ``oxistep bench --html``.

    Raises:
        ValueError: there is no such chart, the file is no result of the benchmark, or it lacks what is to be drawn.

    Example:
        >>> from oxistep.viz import benchmark
        >>> row = {"rest_ns": 9e6, "step_ns": 1e6, "iteration_ns": 1e7, "step_share": 0.1}
        >>> figure = benchmark({"end_to_end": [{"model": "a model", "rows": {"oxistep": row}}]}, "end_to_end")
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['step 10.0% of 10.0 ms']
    """
    from oxistep.bench import figures
    from oxistep.bench.results import read

    path = style.checked_output(output)
    content = results if isinstance(results, dict) else read(Path(results))
    measured = [cell for cell in content.get("cells", []) if "ratios" in cell]
    charts: dict[str, Any] = {name: getattr(figures, name) for name in ("ratios", "bandwidth", "tensors", "sizes")}
    sections: dict[str, Any] = {name: getattr(figures, name) for name in ("threads", "end_to_end")}
    if chart not in charts | sections:
        raise ValueError(f"chart must be one of {', '.join(charts | sections)}, got {chart!r}")
    figure: Figure | None = charts[chart](measured) if chart in charts else sections[chart](content.get(chart))
    if figure is None:
        raise ValueError(f"these results have nothing for the chart {chart!r}")
    if path is not None:
        figure.savefig(path, dpi=style.DPI, bbox_inches="tight")
    return figure
