"""Kernels that differ only in channel counts and density form a family: only inside one is latency interpolated.

Everything that switches the code that runs is part of the family: the shape, stride, fused residual and activation, the
scheme and its block. A dense kernel is another family than a sparse one at high density, as another loop runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass

from device_agent.contracts import Activation, DType, KernelSpec, Op, PruningScheme

#: Operators whose input and output channels are free of each other. For the rest one count says both.
_PARTS = frozenset({Op.FIRST_CHANNELS, Op.LAST_CHANNELS})
_FREE_CHANNELS = frozenset({Op.CONV2D, Op.FULLY_CONNECTED, Op.SHORTCUT_PAD, Op.CONCAT, *_PARTS})

#: Position of a kernel in its family: (in_channels, out_channels, density), or (channels, density) where they are tied.
#: Of a concatenation, the channels of its two inputs, and of a part of a split, those that stay and those that do not:
#: these are free of each other.
Coordinates = tuple[float, ...]


def distinct_kernels(networks: Iterable[Iterable[KernelSpec]]) -> list[KernelSpec]:
    """Every kernel of some networks once, in the order in which they come."""
    return list(dict.fromkeys(kernel for network in networks for kernel in network))


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFamily:
    """What the kernels of one family have in common."""

    op: Op
    input_h: int
    input_w: int
    kernel_h: int
    kernel_w: int
    stride: int
    padding: int
    residual: bool
    activation: Activation
    dtype: DType
    pad_channels_before: int
    groups: int
    channel_multiplier: int
    scheme: PruningScheme
    block_filters: int
    block_channels: int
    pattern_entries: int

    @property
    def axes(self) -> tuple[str, ...]:
        """The names of the coordinates."""
        if self.op is Op.CONCAT:
            return ("first_channels", "second_channels", "density")
        if self.op in _PARTS:
            return ("kept_channels", "left_channels", "density")
        return ("in_channels", "out_channels", "density") if self.op in _FREE_CHANNELS else ("channels", "density")

    def __str__(self) -> str:
        text = f"{self.op} {self.kernel_h}x{self.kernel_w}/{self.stride} on {self.input_h}x{self.input_w}"
        if self.groups > 1:
            text += f" in {self.groups} groups"
        if self.channel_multiplier > 1:
            text += f" times {self.channel_multiplier}"
        text += f" {self.scheme}"
        if self.scheme not in (PruningScheme.DENSE, PruningScheme.UNSTRUCTURED):
            text += f":{self.block_filters}x{self.block_channels}"
        if self.pattern_entries:
            text += f"/{self.pattern_entries}"
        return text + (" + residual" if self.residual else "")


def family_of(kernel: KernelSpec) -> KernelFamily:
    """The family of `kernel`. Its seed plays no part: it changes the zeros' places, not their number."""
    pruning = kernel.pruning
    return KernelFamily(
        op=kernel.op,
        input_h=kernel.input_h,
        input_w=kernel.input_w,
        kernel_h=kernel.kernel_h,
        kernel_w=kernel.kernel_w,
        stride=kernel.stride,
        padding=kernel.padding,
        residual=kernel.residual,
        activation=kernel.activation,
        dtype=kernel.dtype,
        pad_channels_before=kernel.pad_channels_before,
        groups=kernel.groups,
        channel_multiplier=kernel.channel_multiplier,
        scheme=pruning.scheme,
        block_filters=pruning.block_filters,
        block_channels=pruning.block_channels,
        pattern_entries=pruning.pattern_entries,
    )


def coordinates_of(kernel: KernelSpec) -> Coordinates:
    """Where `kernel` lies in its family."""
    density = kernel.pruning.density
    if kernel.op is Op.CONCAT:
        return (float(kernel.in_channels), float(kernel.out_channels - kernel.in_channels), density)
    if kernel.op in _PARTS:
        return (float(kernel.out_channels), float(kernel.in_channels - kernel.out_channels), density)
    if kernel.op in _FREE_CHANNELS:
        return (float(kernel.in_channels), float(kernel.out_channels), density)
    return (float(kernel.in_channels), density)


def kernel_at(like: KernelSpec, coordinates: Coordinates) -> KernelSpec:
    """The kernel of `like`'s family at `coordinates`, with seed 0. The inverse of `coordinates_of`."""
    *channels, density = coordinates
    first, last = int(channels[0]), int(channels[-1])
    if like.op is Op.CONCAT:
        in_channels, out_channels = first, first + last
    elif like.op in _PARTS:
        in_channels, out_channels = first + last, first
    else:
        in_channels, out_channels = first, last * like.channel_multiplier
    return dataclasses.replace(
        like,
        in_channels=in_channels,
        out_channels=out_channels,
        pruning=dataclasses.replace(like.pruning, density=density),
        seed=0,
    )


def without_seed(kernel: KernelSpec) -> KernelSpec:
    """`kernel` as it stands in a latency table: with seed 0."""
    return kernel if kernel.seed == 0 else dataclasses.replace(kernel, seed=0)
