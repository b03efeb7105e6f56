"""What all emitters share: ways to do a node's work, and the fields that every step has."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import Activation
from device_agent.native.layout import FLOAT_BYTES, Layout, Tensor
from device_agent.native.library import Step
from device_agent.native.packing import RowGroups
from device_agent.native.placement import Placement
from device_agent.native.tiling import TileLimit, Tiling

#: Kind, size of groups and size of Winograd's tiles of each step.
Signature = tuple[tuple[int, int, int], ...]


class Tunable(Protocol):
    """A step with tilings to choose from. A step cannot run before one is applied."""

    def tilings(self, tile_limit: TileLimit, count: int) -> list[Tiling]:
        """The `count` most promising tilings, the best first."""

    def apply(self, tiling: Tiling) -> tuple[NDArray[Any], ...]:
        """Set the step's tiling; returns the constants that it points to from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to do a node's work. `held` keeps the constants alive that only this way needs."""

    steps: tuple[Step, ...]
    held: tuple[NDArray[Any], ...] = ()
    #: For each step, what sets its tiling; none if no step has one.
    tunables: tuple[Tunable, ...] = ()

    @property
    def signature(self) -> Signature:
        return tuple((step.kind, step.group_size, step.winograd_size) for step in self.steps)

    def make(self) -> Way:
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class LateWay:
    """A way whose constants take much memory or time: it is made when it is tried, from nothing but the weights."""

    signature: Signature
    make: Callable[[], Way]


class Offer(Protocol):
    """A way that can be had. `signature` tells ways of one node apart, and is the same for all weights."""

    @property
    def signature(self) -> Signature: ...

    def make(self) -> Way: ...


Ways = tuple[Offer, ...]
Emitter = Callable[[Placement], Ways]


def emit_any(*emitters: Emitter) -> Emitter:
    """The ways of all `emitters`, in their order."""

    def emit(placement: Placement) -> Ways:
        return tuple(way for emitter in emitters for way in emitter(placement))

    return emit


_BOUNDS = {
    Activation.NONE: (-math.inf, math.inf),
    Activation.RELU: (0.0, math.inf),
    Activation.RELU6: (0.0, 6.0),
}


def bounded(step: Step, activation: Activation) -> Step:
    step.lower, step.upper = _BOUNDS[activation]
    return step


def set_input(step: Step, placement: Placement, tensor: Tensor) -> Layout:
    layout = tensor.layout()
    step.input, step.input_row, step.input_plane = placement.address(tensor), layout.row, layout.plane
    step.input_h, step.input_w = layout.height, layout.width
    return layout


def set_output(step: Step, placement: Placement, tensor: Tensor, first_channel: int = 0) -> Layout:
    """Write to the channels of `tensor` from `first_channel` on."""
    layout = tensor.layout()
    step.output = placement.address(tensor) + FLOAT_BYTES * first_channel * layout.plane
    step.output_row, step.output_plane = layout.row, layout.plane
    step.output_h, step.output_w = layout.height, layout.width
    return layout


def grouped_way(common: Step, row_groups: list[RowGroups], offsets: NDArray[np.int32], placement: Placement) -> Way:
    """`common` once for each group size, with `offsets` by column."""
    steps, held = [], list[NDArray[Any]]()
    for groups in row_groups:
        step = Step.from_buffer_copy(common)
        step.group_size, step.num_groups = groups.group_size, len(groups.channels)
        step.group_channels = placement.constant(groups.channels, held)
        step.group_starts = placement.constant(groups.starts, held)
        step.offsets = placement.constant(offsets[groups.columns], held)
        step.weights = placement.keep(groups.values, held)
        steps.append(step)
    return Way(steps=tuple(steps), held=tuple(held))
