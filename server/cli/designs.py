"""What the networks of a front are: their size, beside the bounds on it, and what was decided for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from device_agent.contracts import PruningScheme, WeightPruning, decode
from search.domain.objective import Metric
from search.domain.result import FrontPoint, SearchResult
from search.domain.space import SchemeChoice


def design_table(result: SearchResult) -> Table:
    """A row for the dense network, one for the bounds on sizes, if there are any, and one for each candidate. Columns
    that say nothing about this front are left out.
    """
    points = result.front
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("candidate", no_wrap=True)
    for title in ("M MACs", "k parameters", "kB"):
        table.add_column(title, justify="right", no_wrap=True)
    columns: dict[str, list[Any]] = {
        "blocks removed": [len(p.decisions.get("removed_blocks", ())) or "" for p in points],
        "side": [p.decisions.get("resolution") or "" for p in points],
        "pruned layers": [schemes_of(p) for p in points],
    }
    shown = {title: cells for title, cells in columns.items() if any(cells)}
    for title in shown:
        table.add_column(title, justify="left" if title == "pruned layers" else "right")
    base = result.baseline
    table.add_row("dense", *_sizes(base.macs, base.parameters, base.model_bytes))
    bounds = _bounds(result.search.settings)
    if bounds:
        table.add_row(
            "at most", *_sizes(*(bounds.get(m) for m in (Metric.MACS, Metric.PARAMETERS, Metric.MODEL_BYTES)))
        )
    for point, *cells in zip(points, *shown.values(), strict=True):
        sizes = _sizes(point.macs, point.parameters, point.model_bytes)
        table.add_row(point.candidate_id[:10], *sizes, *(str(cell) for cell in cells))
    return table


def schemes_of(point: FrontPoint) -> str:
    """How many layers are pruned by which scheme, the most frequent first."""
    found = (decode(WeightPruning, pruning) for pruning in point.decisions.get("pruning", {}).values())
    counts = Counter(str(SchemeChoice.of(pruning)) for pruning in found if pruning.scheme is not PruningScheme.DENSE)
    return ", ".join(f"{count} {scheme}" for scheme, count in counts.most_common())


def _sizes(macs: float | None, parameters: float | None, model_bytes: float | None) -> tuple[str, ...]:
    scales = ((macs, 1e6), (parameters, 1e3), (model_bytes, 1e3))
    return tuple("" if value is None else f"{value / scale:.4g}" for value, scale in scales)


def _bounds(settings: Mapping[str, Any]) -> dict[Metric, float]:
    """The bounds on sizes; the smallest where there are several on one."""
    sizes = (Metric.MACS, Metric.PARAMETERS, Metric.MODEL_BYTES)
    found: dict[Metric, float] = {}
    for constraint in settings.get("constraints", ()):
        metric = Metric(constraint["metric"])
        if metric in sizes:
            found[metric] = min(float(constraint["max"]), found.get(metric, float("inf")))
    return found
