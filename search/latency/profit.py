"""How much faster than dense a pruned kernel really is: ratios of measured medians within one series."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from device_agent.contracts import DENSE, KernelSpec, kernel_id
from search.latency.comparison import Figure, Ratio, ratio_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Profit:
    """A pruned kernel beside the dense one of the same shape, which may be missing.

    `dense_kernel` has seed 0, measured or not. `speed_up` is dense / pruned: above 1 pruning pays. None where the dense
    kernel was not measured.
    """

    kernel: KernelSpec
    dense_kernel: KernelSpec
    pruned: Figure
    dense: Figure | None
    speed_up: Ratio | None

    @property
    def pays(self) -> bool | None:
        """Whether it is faster beyond noise; False where it is slower beyond noise, None where nobody can tell."""
        if self.speed_up is None or not self.speed_up.differs:
            return None
        return self.speed_up.ratio > 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfitCounts:
    """How many pay and cost beyond noise, for how many nobody can tell, and for how many there is no dense kernel."""

    paying: int
    costing: int
    undecided: int
    without_dense: int


def count_profits(items: Iterable[Profit]) -> ProfitCounts:
    counts = Counter(None if item.speed_up is None else str(item.pays) for item in items)
    return ProfitCounts(
        paying=counts["True"], costing=counts["False"], undecided=counts["None"], without_dense=counts[None]
    )


def profits(figures: Mapping[KernelSpec, Figure]) -> tuple[Profit, ...]:
    """The profit of each pruned kernel among `figures`, which must be of one series and have seed 0. In the order of
    shape, scheme, block and density.
    """
    found = []
    for kernel in sorted((k for k in figures if k.pruning != DENSE), key=_order):
        dense_kernel = dataclasses.replace(kernel, pruning=DENSE)
        dense = figures.get(dense_kernel)
        speed_up = None if dense is None else ratio_of(figures[kernel], dense)
        found.append(
            Profit(kernel=kernel, dense_kernel=dense_kernel, pruned=figures[kernel], dense=dense, speed_up=speed_up)
        )
    return tuple(found)


def _order(kernel: KernelSpec) -> tuple[object, ...]:
    pruning = kernel.pruning
    shape = (kernel.op, kernel.input_h, kernel.kernel_h, kernel.stride, kernel.in_channels, kernel.out_channels)
    return (*shape, pruning.scheme, pruning.block_filters, pruning.block_channels, pruning.density, kernel_id(kernel))
