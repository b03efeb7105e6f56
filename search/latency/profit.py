"""How much faster than dense a pruned kernel really is: ratios of measured medians within one series."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

from device_agent.contracts import DENSE, KernelSpec, kernel_id
from search.latency.comparison import Figure, Ratio, ratio_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Profit:
    """A pruned kernel beside the dense one of the same shape, which may be missing.

    `speed_up` is dense / pruned: above 1 pruning pays. None where the dense kernel was not measured.
    """

    kernel: KernelSpec
    pruned: Figure
    dense: Figure | None
    speed_up: Ratio | None

    @property
    def dense_kernel(self) -> KernelSpec:
        """The dense kernel of the same shape, with seed 0, measured or not."""
        return dataclasses.replace(self.kernel, pruning=DENSE, seed=0)

    @property
    def pays(self) -> bool | None:
        """Whether it is faster beyond noise; False where it is slower beyond noise, None where nobody can tell."""
        if self.speed_up is None or not self.speed_up.differs:
            return None
        return self.speed_up.ratio > 1.0


def profits(figures: Mapping[KernelSpec, Figure]) -> tuple[Profit, ...]:
    """The profit of each pruned kernel among `figures`, which must be of one series and have seed 0. In the order of
    shape, scheme, block and density.
    """
    found = []
    for kernel in sorted((k for k in figures if k.pruning != DENSE), key=_order):
        dense = figures.get(dataclasses.replace(kernel, pruning=DENSE))
        speed_up = None if dense is None else ratio_of(figures[kernel], dense)
        found.append(Profit(kernel=kernel, pruned=figures[kernel], dense=dense, speed_up=speed_up))
    return tuple(found)


def _order(kernel: KernelSpec) -> tuple[object, ...]:
    pruning = kernel.pruning
    shape = (kernel.op, kernel.input_h, kernel.kernel_h, kernel.stride, kernel.in_channels, kernel.out_channels)
    return (*shape, pruning.scheme, pruning.block_filters, pruning.block_channels, pruning.density, kernel_id(kernel))
