"""The same kernels in two series."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session

from device_agent.contracts import KernelSpec, Verdict, decode
from search.latency.comparison import Figure, Ratio, RatioSummary, ratio_of, summarise_ratios
from server.errors import Unprocessable
from server.latency.schemas import SeriesView, series_view
from server.latency.series import differing_parts, key_of
from server.models import KernelRow, LatencyRow, SeriesRow

#: Kernels of the smaller series that are compared. More would hardly move their mean, and take longer than a page may.
MAX_COMPARED = 2_000


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

    `is_sample` where both series are so large that a part of their kernels was drawn by chance: then every figure is of
    that part. `kernels` are at most `limit`, those farthest from 1 first; `summary` is over all of them. A kernel that
    one side measured in several modes is in neither, and counted as `ambiguous`.
    """

    first: SeriesView
    second: SeriesView
    differing_parts: tuple[str, ...]
    is_sample: bool
    only_first: int
    only_second: int
    ambiguous: int
    summary: RatioSummary | None
    kernels: tuple[ComparedKernel, ...]


def compare_series(session: Session, first: SeriesRow, second: SeriesRow, *, limit: int) -> Comparison:
    """Raises `Unprocessable` where both are the same.

    The smaller series is read, and its kernels are looked up in the larger one. Of more than `MAX_COMPARED` those with
    the smallest identities are taken, which are hashes: a part drawn by chance, and the same each time.
    """
    if first.id == second.id:
        raise Unprocessable(f"both sides are series {first.id}: name two")
    ends = {series.id: _last_read(session, series.id) for series in (first, second)}
    smaller = max((first.id, second.id), key=lambda identity: (ends[identity] is None, ends[identity] or ""))
    last = ends[smaller]
    wanted = _kernels_of(smaller, last)
    sides = {series.id: _figures(session, series.id, wanted) for series in (first, second)}
    ours, theirs = sides[first.id], sides[second.id]
    common = sorted(ours.keys() & theirs.keys())
    compared = []
    for kernel in common:
        a, b = ours[kernel], theirs[kernel]
        if a is not None and b is not None:
            compared.append((kernel, a, b, ratio_of(a.figure, b.figure)))
    compared.sort(key=lambda item: (-max(item[3].ratio, 1.0 / item[3].ratio), item[0]))
    shown = compared[:limit]
    found = session.scalars(select(KernelRow).where(KernelRow.id.in_([item[0] for item in shown])))
    kernels = {row.id: decode(KernelSpec, row.spec) for row in found}
    return Comparison(
        first=series_view(first),
        second=series_view(second),
        differing_parts=differing_parts(key_of(first), key_of(second)),
        is_sample=last is not None,
        only_first=_count(session, first.id, last) - len(common),
        only_second=_count(session, second.id, last) - len(common),
        ambiguous=len(common) - len(compared),
        summary=summarise_ratios([item[3] for item in compared]) if compared else None,
        kernels=tuple(_compared(kernel, kernels[kernel], a, b, r) for kernel, a, b, r in shown),
    )


@dataclass(frozen=True, slots=True)
class _Median:
    figure: Figure
    verdict: Verdict


def _last_read(session: Session, series_id: str) -> str | None:
    """The kernel up to which a series is read; None where all of it is."""
    kernels = _kernels_of(series_id, None).order_by(LatencyRow.kernel_id)
    found = session.scalars(kernels.offset(MAX_COMPARED - 1).limit(2)).all()
    return found[0] if len(found) > 1 else None


def _kernels_of(series_id: str, last: str | None) -> Select[str]:
    """The kernels of a series up to `last`; one of several modes comes as often."""
    query = select(LatencyRow.kernel_id).where(LatencyRow.series_id == series_id)
    return query if last is None else query.where(LatencyRow.kernel_id <= last)


def _count(session: Session, series_id: str, last: str | None) -> int:
    kernels = _kernels_of(series_id, last).distinct().subquery()
    return int(session.scalar(select(func.count()).select_from(kernels)) or 0)


def _figures(session: Session, series_id: str, kernels: Select[str]) -> dict[str, _Median | None]:
    """The figures of `kernels` in a series; None for one that was measured in several modes, which is no one figure."""
    query = select(
        LatencyRow.kernel_id,
        LatencyRow.median_ns,
        LatencyRow.ci95_low_ns,
        LatencyRow.ci95_high_ns,
        LatencyRow.verdict,
    ).where(LatencyRow.series_id == series_id, LatencyRow.kernel_id.in_(kernels))
    found: dict[str, _Median | None] = {}
    for kernel, median_ns, low_ns, high_ns, verdict in session.execute(query):
        figure = _Median(Figure.of(median_ns, low_ns, high_ns), verdict)
        found[kernel] = None if kernel in found else figure
    return found


def _compared(identity: str, kernel: KernelSpec, first: _Median, second: _Median, ratio: Ratio) -> ComparedKernel:
    return ComparedKernel(
        kernel_id=identity,
        kernel=kernel,
        first_ns=first.figure.median,
        second_ns=second.figure.median,
        first_verdict=first.verdict,
        second_verdict=second.verdict,
        ratio=ratio.ratio,
        ratio_ci95=ratio.ci95,
        differs=ratio.differs,
    )
