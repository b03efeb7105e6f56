"""What pruning gains on a device: the stored kernels of one series beside their dense ones.

The map of a small series is worked out when it is asked for. That of a larger one takes seconds, so that a worker makes
it while it has no search and stores it in parts, of which pages and REST read one at a time.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace

from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from device_agent.contracts import DENSE, KernelSpec, Statistics, Verdict, WeightPruning, decode, dumps, loads
from search.domain.space import SchemeChoice
from search.latency.comparison import Figure
from search.latency.drift import at_usual_speed, usual_references
from search.latency.families import without_seed
from search.latency.profit import Profit, ProfitCounts, count_profits, profits
from server.columns import database_time_s
from server.database import Database
from server.errors import Conflict
from server.latency.figures import QUIET_S, StoredFigure, due_series
from server.latency.schemas import SeriesView
from server.latency.series import get_series
from server.models import KernelRow, LatencyRow, MeasurementRow, ProfitPartRow, ProfitRow, SeriesRow
from server.upsert import upsert

#: Series with at most so many measurements are worked out at once: tens of milliseconds.
MEASUREMENTS_AT_ONCE = 500
#: Shapes of one part of the map, which is also a page of it; and kernels of a part without dense ones.
SHAPES_PER_PART = 40
KERNELS_PER_PART = 400
#: Measurements whose reference kernel tells the usual speed of a series; of more, a part drawn by chance.
MAX_REFERENCES = 2000
#: In place of a scheme, of kernels without a dense one.
WITHOUT_DENSE = ""
#: Rows fetched at a time.
_BATCH = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelProfit:
    """`speed_up` is dense / pruned. `pays` is null where the interval leaves both open, or there is none; `dense_ns` is
    null where no dense kernel of this shape was measured in the series. Noisy figures are told as such.
    """

    kernel: KernelSpec
    pruned_ns: float
    dense_ns: float | None
    speed_up: float | None
    speed_up_ci95: tuple[float, float] | None
    pays: bool | None
    is_noisy: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfitMap:
    """Pruned kernels of one series. Counts say how many pay, cost and are open beyond noise, and for how many there is
    no dense kernel; `ambiguous` kernels were measured in several modes and are in none of them.

    Counts are of the whole series; `kernels` are a part of it, and `next` is the cursor of the next one. `computed_at`
    is when a worker made the map, null where it was made for this answer; `is_stale` where the series has grown since.
    """

    series: SeriesView
    paying: int
    costing: int
    undecided: int
    without_dense: int
    ambiguous: int
    computed_at: str | None
    is_stale: bool
    kernels: tuple[KernelProfit, ...]
    next: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeSummary:
    """The kernels of one scheme that have a dense one; `pruning` is that of any of them. Densities ascend."""

    name: str
    pruning: WeightPruning
    num_kernels: int
    num_shapes: int
    num_parts: int
    densities: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfitSummary:
    """The whole map of a series in figures. `schemes` begin with the one that has most kernels; `parts_without_dense`
    counts the parts of kernels without a dense one.
    """

    counts: ProfitCounts
    ambiguous: int
    schemes: tuple[SchemeSummary, ...]
    parts_without_dense: int


#: The place of a part: scheme and number.
PartKey = tuple[str, int]


def part_cursor(key: PartKey) -> str:
    """The place of a part as a cursor holds it."""
    return f"{key[1]} {key[0]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundProfit:
    """The map of a series, worked out now (`computed_at` None) or stored."""

    summary: ProfitSummary
    computed_at: float | None
    is_stale: bool
    read_part: Callable[[PartKey], tuple[KernelProfit, ...]]

    def places(self) -> list[PartKey]:
        """The places of all parts, in order."""
        parts = [(scheme.name, scheme.num_parts) for scheme in self.summary.schemes]
        parts.append((WITHOUT_DENSE, self.summary.parts_without_dense))
        return [(name, number) for name, count in parts for number in range(1, count + 1)]


def find_profit(session: Session, series: SeriesRow) -> FoundProfit | None:
    """The map of a series; None where no worker came to it yet. `session` must be open while parts are read."""
    if series.num_measurements <= MEASUREMENTS_AT_ONCE:
        made: dict[PartKey, tuple[KernelProfit, ...]] = {}
        summary = work_out(session, series.id, lambda key, kernels: made.update({key: kernels}))
        return FoundProfit(summary=summary, computed_at=None, is_stale=False, read_part=made.__getitem__)
    row = session.get(ProfitRow, series.id)
    if row is None:
        return None

    def stored(key: PartKey) -> tuple[KernelProfit, ...]:
        scheme, part = key
        return loads(tuple[KernelProfit, ...], session.get_one(ProfitPartRow, (series.id, scheme, part)).kernels)

    return FoundProfit(
        summary=loads(ProfitSummary, row.summary),
        computed_at=row.computed_at,
        is_stale=row.num_measurements != series.num_measurements,
        read_part=stored,
    )


def require_profit(session: Session, series: SeriesRow) -> FoundProfit:
    """As `find_profit`. Raises `Conflict` where there is none yet."""
    found = find_profit(session, series)
    if found is None:
        raise Conflict(
            f"what pruning gains in series {series.id} is not worked out yet: a worker does it when it has no search",
            code="no_profit_map",
        )
    return found


def refresh_profit(database: Database, *, quiet_s: float = QUIET_S) -> str | None:
    """Work out one map that is due, and store it; returns the series, or None where none is due."""
    with database.snapshot() as session:
        is_large = SeriesRow.num_measurements > MEASUREMENTS_AT_ONCE
        series_id = due_series(session, ProfitRow, only=is_large, quiet_s=quiet_s)
        if series_id is None:
            return None
        # Time and count before reading: what comes meanwhile makes the map old.
        started = database_time_s(session)
        num_measurements = get_series(session, series_id).num_measurements
        parts: list[dict[str, object]] = []

        def keep(key: PartKey, kernels: tuple[KernelProfit, ...]) -> None:
            parts.append({"series_id": series_id, "scheme": key[0], "part": key[1], "kernels": dumps(kernels)})

        summary = work_out(session, series_id, keep)
    row = {
        "series_id": series_id,
        "num_measurements": num_measurements,
        "summary": dumps(summary),
        "computed_at": started,
    }
    with database.write() as session:
        session.execute(delete(ProfitPartRow).where(ProfitPartRow.series_id == series_id))
        if parts:
            session.execute(insert(ProfitPartRow), parts)
        upsert(session, ProfitRow, [row], key=["series_id"])
    return series_id


def work_out(
    session: Session, series_id: str, keep: Callable[[PartKey, tuple[KernelProfit, ...]], None]
) -> ProfitSummary:
    """The map of a series, by shape, then scheme, then density. Shapes are read one after the other, so that memory
    does not grow with the series; `keep` gets each part as it is made.
    """
    counts: Counter[str] = Counter()
    ambiguous = 0
    writers: dict[str, _SchemeParts] = {}
    alone = _SchemeParts(WITHOUT_DENSE, KERNELS_PER_PART, keep)
    for figures in _figures_by_shape(session, series_id):
        found = combined(figures)
        ambiguous += found.ambiguous
        items = profits(found.figures)
        counted = count_profits(items)
        counts.update({field.name: getattr(counted, field.name) for field in fields(ProfitCounts)})
        # Shapes of equal channels may still differ in padding or activation: each has a dense kernel of its own.
        shapes: dict[tuple[str, KernelSpec], list[KernelProfit]] = defaultdict(list)
        for item in items:
            view = kernel_profit(item, found)
            if item.speed_up is None:
                alone.add((view,))
            else:
                shapes[scheme_name(item.kernel), item.dense_kernel].append(view)
        for (name, _), same in shapes.items():
            writers.setdefault(name, _SchemeParts(name, SHAPES_PER_PART, keep)).add(tuple(same))
    for writer in (*writers.values(), alone):
        writer.flush()
    return ProfitSummary(
        counts=ProfitCounts(**{field.name: counts[field.name] for field in fields(ProfitCounts)}),
        ambiguous=ambiguous,
        schemes=tuple(sorted((w.summary() for w in writers.values()), key=lambda s: (-s.num_kernels, s.name))),
        parts_without_dense=alone.num_parts,
    )


def scheme_name(kernel: KernelSpec) -> str:
    """The scheme with its block as configs write it, such as "group:4x1"."""
    return str(SchemeChoice.of(kernel.pruning))


class _SchemeParts:
    """Collects the kernels of one scheme, some shapes at a time."""

    def __init__(
        self, name: str, shapes_per_part: int, keep: Callable[[PartKey, tuple[KernelProfit, ...]], None]
    ) -> None:
        self._name, self._shapes_per_part, self._keep = name, shapes_per_part, keep
        self._waiting: list[tuple[KernelProfit, ...]] = []
        self._densities: set[float] = set()
        self._pruning: WeightPruning = DENSE
        self._num_kernels = self._num_shapes = 0
        self.num_parts = 0

    def add(self, shape: tuple[KernelProfit, ...]) -> None:
        """The kernels of one shape."""
        self._waiting.append(shape)
        self._num_shapes += 1
        self._num_kernels += len(shape)
        self._densities |= {item.kernel.pruning.density for item in shape}
        self._pruning = shape[0].kernel.pruning
        if len(self._waiting) == self._shapes_per_part:
            self.flush()

    def flush(self) -> None:
        if not self._waiting:
            return
        self.num_parts += 1
        self._keep((self._name, self.num_parts), tuple(itertools.chain.from_iterable(self._waiting)))
        self._waiting = []

    def summary(self) -> SchemeSummary:
        return SchemeSummary(
            name=self._name,
            pruning=self._pruning,
            num_kernels=self._num_kernels,
            num_shapes=self._num_shapes,
            num_parts=self.num_parts,
            densities=tuple(sorted(self._densities)),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesFigures:
    """Medians at the usual speed of the series, kernels with seed 0; those of several modes are counted only."""

    figures: dict[KernelSpec, Figure]
    noisy: frozenset[KernelSpec]
    ambiguous: int


def combined(items: Iterable[StoredFigure]) -> SeriesFigures:
    """The latest usable figure of each kernel. One that was imported without statistics stays as it is."""
    by_kernel: dict[KernelSpec, list[StoredFigure]] = defaultdict(list)
    for item in sorted(items, key=lambda item: item.row.updated_at):
        by_kernel[item.kernel].append(item)
    figures, noisy = {}, set()
    for kernel, found in by_kernel.items():
        if len({item.row.mode for item in found}) > 1:
            continue
        row = found[-1].row
        usually = found[-1].statistics or row
        figures[kernel] = Figure.of(usually.median_ns, usually.ci95_low_ns, usually.ci95_high_ns)
        if row.verdict is Verdict.NOISY:
            noisy.add(kernel)
    return SeriesFigures(figures=figures, noisy=frozenset(noisy), ambiguous=len(by_kernel) - len(figures))


def _figures_by_shape(session: Session, series_id: str) -> Iterable[Sequence[StoredFigure]]:
    """The figures of a series, those of one shape at a time, brought to one speed of the machine by the reference
    kernel in each measurement.
    """
    usual = usual_references(
        decode(Statistics, data)
        for data in session.scalars(
            select(MeasurementRow.statistics)
            .join(LatencyRow, LatencyRow.result_key == MeasurementRow.result_key)
            .where(LatencyRow.series_id == series_id)
            # Identities of kernels are hashes: the first of them are drawn by chance.
            .order_by(LatencyRow.kernel_id, LatencyRow.mode)
            .limit(MAX_REFERENCES)
        )
        if data is not None
    )
    shape = (
        KernelRow.op,
        KernelRow.input_h,
        KernelRow.kernel_h,
        KernelRow.stride,
        KernelRow.in_channels,
        KernelRow.out_channels,
    )
    query = (
        select(LatencyRow, KernelRow.spec, MeasurementRow.statistics)
        .join(KernelRow, KernelRow.id == LatencyRow.kernel_id)
        .join(MeasurementRow, MeasurementRow.result_key == LatencyRow.result_key)
        .where(LatencyRow.series_id == series_id)
        .order_by(*shape)
        .execution_options(yield_per=_BATCH)
    )
    figures = (
        StoredFigure(
            kernel=without_seed(decode(KernelSpec, spec)),
            row=row,
            statistics=None if data is None else at_usual_speed(decode(Statistics, data), usual),
        )
        for row, spec, data in session.execute(query)
    )
    for _, items in itertools.groupby(figures, key=_shape_of):
        yield list(items)


def _shape_of(item: StoredFigure) -> tuple[object, ...]:
    kernel = item.kernel
    return (kernel.op, kernel.input_h, kernel.kernel_h, kernel.stride, kernel.in_channels, kernel.out_channels)


def kernel_profit(item: Profit, found: SeriesFigures) -> KernelProfit:
    return KernelProfit(
        kernel=item.kernel,
        pruned_ns=item.pruned.median,
        dense_ns=None if item.dense is None else item.dense.median,
        speed_up=None if item.speed_up is None else item.speed_up.ratio,
        speed_up_ci95=None if item.speed_up is None else item.speed_up.ci95,
        pays=item.pays,
        is_noisy=not found.noisy.isdisjoint({item.kernel, item.dense_kernel}),
    )


def dense_of(item: KernelProfit) -> KernelSpec:
    """The kernel that it stands beside."""
    return replace(item.kernel, pruning=DENSE)
