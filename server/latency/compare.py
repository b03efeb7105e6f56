"""The same kernels in two series."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from device_agent.contracts import KernelSpec, Verdict, decode
from search.latency.comparison import Figure, Ratio, RatioSummary, ratio_of, summarise_ratios
from server.errors import Unprocessable
from server.latency.listing import medians
from server.latency.schemas import SeriesView, series_view
from server.latency.series import differing_parts, key_of
from server.models import KernelRow, LatencyRow, SeriesRow


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedKernel:
    """A kernel under both keys; `ratio` is second / first."""

    kernel_id: str
    kernel: KernelSpec
    first_ns: float
    second_ns: float
    first_verdict: Verdict
    second_verdict: Verdict
    ratio: float
    ratio_ci95: tuple[float, float] | None
    differs: bool | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two series over the kernels that both have. `differing_parts` says in which parts of the key they differ.

    `kernels` are at most `limit`, those farthest from 1 first; `summary` is over all of them. A kernel that one side
    measured in several modes is in neither, and counted as `ambiguous`.
    """

    first: SeriesView
    second: SeriesView
    differing_parts: tuple[str, ...]
    only_first: int
    only_second: int
    ambiguous: int
    summary: RatioSummary | None
    kernels: tuple[ComparedKernel, ...]


def compare_series(session: Session, first: SeriesRow, second: SeriesRow, *, limit: int) -> Comparison:
    """Raises `Unprocessable` where both are the same."""
    if first.id == second.id:
        raise Unprocessable(f"both sides are series {first.id}: name two")
    ours, theirs = medians(session, first.id), medians(session, second.id)
    common = sorted(ours.keys() & theirs.keys())
    pairs = [(kernel, ours[kernel], theirs[kernel]) for kernel in common]
    compared = [(kernel, a, b, ratio_of(_figure(a), _figure(b))) for kernel, a, b in pairs if a and b]
    compared.sort(key=lambda item: (-max(item[3].ratio, 1.0 / item[3].ratio), item[0]))
    shown = compared[:limit]
    found = session.scalars(select(KernelRow).where(KernelRow.id.in_([item[0] for item in shown])))
    kernels = {row.id: decode(KernelSpec, row.spec) for row in found}
    return Comparison(
        first=series_view(first),
        second=series_view(second),
        differing_parts=differing_parts(key_of(first), key_of(second)),
        only_first=len(ours) - len(common),
        only_second=len(theirs) - len(common),
        ambiguous=len(common) - len(compared),
        summary=summarise_ratios([item[3] for item in compared]) if compared else None,
        kernels=tuple(_compared(kernel, kernels[kernel], a, b, r) for kernel, a, b, r in shown),
    )


def _figure(row: LatencyRow) -> Figure:
    return Figure.of(row.median_ns, row.ci95_low_ns, row.ci95_high_ns)


def _compared(identity: str, kernel: KernelSpec, first: LatencyRow, second: LatencyRow, ratio: Ratio) -> ComparedKernel:
    return ComparedKernel(
        kernel_id=identity,
        kernel=kernel,
        first_ns=first.median_ns,
        second_ns=second.median_ns,
        first_verdict=first.verdict,
        second_verdict=second.verdict,
        ratio=ratio.ratio,
        ratio_ci95=ratio.ci95,
        differs=ratio.differs,
    )
