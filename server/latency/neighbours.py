"""Kernels that differ from one in a single respect: what a curve of latency is drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from device_agent.contracts import DENSE, KernelSpec, PruningScheme, decode
from search.domain.space import SchemeChoice
from search.latency.families import without_seed
from search.lowering import KEEPS_CHANNELS
from server.models import KernelRow, LatencyRow

#: Kernels of one shape that are looked at: more than any search asks for.
MAX_NEIGHBOURS = 2000


class Varied(StrEnum):
    """What may differ between the kernels of a curve. Where an operator keeps the number of channels, both vary."""

    DENSITY = "density"
    OUT_CHANNELS = "out_channels"
    IN_CHANNELS = "in_channels"


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbour:
    """A kernel of the curve with its figure in the series."""

    kernel: KernelSpec
    row: LatencyRow


def neighbours(session: Session, series_id: str, kernel: KernelSpec, varied: Varied) -> list[Neighbour]:
    """The kernels measured in a series that equal `kernel` but for what is `varied`, itself among them.

    Over densities the scheme varies too, as the dense kernel is the end of each scheme's curve.
    """
    own = _rest(kernel, varied)
    query = neighbours_query(series_id, kernel, varied).limit(MAX_NEIGHBOURS)
    found = [(decode(KernelSpec, spec), row) for spec, row in session.execute(query)]
    return [Neighbour(kernel=other, row=row) for other, row in found if _rest(other, varied) == own]


def neighbours_query(series_id: str, kernel: KernelSpec, varied: Varied) -> Select[dict[str, Any], LatencyRow]:
    """By the index on shapes, whose columns come in the order of what varies least."""
    fixed = ["op", "kernel_h", "stride", "input_h"]
    if kernel.op not in KEEPS_CHANNELS or varied is Varied.DENSITY:
        fixed += [name for name in ("in_channels", "out_channels") if name != varied.value]
    values = {name: getattr(kernel, name) for name in fixed}
    if varied is not Varied.DENSITY:
        values |= {"scheme": kernel.pruning.scheme.value, "density": kernel.pruning.density}
    # Kernels of the shape first, then their figures: as one join, SQLite begins with all of the series.
    shape = select(KernelRow.id).where(*(getattr(KernelRow, name) == value for name, value in values.items()))
    return (
        select(KernelRow.spec, LatencyRow)
        .join(LatencyRow, LatencyRow.kernel_id == KernelRow.id)
        .where(LatencyRow.series_id == series_id, LatencyRow.kernel_id.in_(shape))
    )


def _rest(kernel: KernelSpec, varied: Varied) -> KernelSpec | tuple[object, ...]:
    """What two kernels of one curve have in common."""
    bare = without_seed(kernel)
    if varied is Varied.DENSITY:
        return replace(bare, pruning=DENSE)
    names = {"in_channels", "out_channels"} if kernel.op in KEEPS_CHANNELS else {varied.value}
    fixed = tuple(getattr(bare, name) for name in KernelSpec.__dataclass_fields__ if name not in names)
    return (*fixed, kernel.channel_multiplier)


def by_scheme(found: Sequence[Neighbour]) -> dict[str, list[Neighbour]]:
    """Curves over density: one for each scheme, with the dense kernel as the end of all."""
    curves: dict[str, list[Neighbour]] = {}
    dense = [item for item in found if item.kernel.pruning.scheme is PruningScheme.DENSE]
    for item in found:
        if item.kernel.pruning.scheme is not PruningScheme.DENSE:
            curves.setdefault(str(SchemeChoice.of(item.kernel.pruning)), []).append(item)
    if not curves:
        return {PruningScheme.DENSE.value: dense} if dense else {}
    return {name: [*curves[name], *dense] for name in sorted(curves)}
