"""How tensors lie in memory, and which tensors must share a row stride.

A convolution of stride 1 walks its input and its output by the same flattened position, so both have the same row
stride, as has everything added on the way. `Tensor.join_rows` collects such demands; a layout is computed when all are
known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

#: Planes start at multiples of this many elements. Tensors may be read this far before their first element and past
#: their last one.
VECTOR = 16
FLOAT_BYTES = 4


class Form(Enum):
    """PLANES: rows and planes with shared zero padding. COMPACT: plain (c, h, w). VECTOR: (c, 1, 1), contiguous."""

    PLANES = "planes"
    COMPACT = "compact"
    VECTOR = "vector"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """Strides and sizes in elements. Element (0, 0, 0) is at `lead`."""

    channels: int
    height: int
    width: int
    lead: int
    row: int
    plane: int
    size: int

    @property
    def positions(self) -> int:
        """Flattened positions of one plane, from the first to the last element."""
        return (self.height - 1) * self.row + self.width


class Tensor:
    """A tensor of the program: its extent, its form, and the padding that its readers need.

    `channels` counts planes. Phase tensors get theirs late, when all readers are known.
    """

    def __init__(self, channels: int, height: int, width: int, form: Form) -> None:
        self.channels = channels
        self.height = height
        self.width = width
        self.form = form
        self.padding = 0
        self.margin = 0
        self._joined: Tensor | None = None
        self._members: list[Tensor] = [self]

    def need_padding(self, padding: int) -> None:
        """Ask for `padding` rows and columns of zeros on each side."""
        self.padding = max(self.padding, padding)

    def need_margin(self, margin: int) -> None:
        """Ask for memory that may be read `margin` rows and columns outside of the image, whatever it holds."""
        self.margin = max(self.margin, margin)

    def join_rows(self, other: Tensor) -> None:
        """Give both tensors the same row stride."""
        mine, others = self._root(), other._root()
        if mine is not others:
            others._joined = mine
            mine._members += others._members

    def layout(self) -> Layout:
        """The layout that satisfies every demand made so far."""
        if self.form is not Form.PLANES:
            row, plane = self.width, self.height * self.width
        else:
            row = max(member.width + member.padding for member in self._root()._members)
            positions = (self.height - 1) * row + self.width
            plane = round_up(max((self.height + self.padding) * row, round_up(positions)))
        lead = max(VECTOR, round_up(max(self.padding, self.margin) * (row + 1)))
        return Layout(
            channels=self.channels,
            height=self.height,
            width=self.width,
            lead=lead,
            row=row,
            plane=plane,
            # Tiles read up to one vector past the last position, packing at stride 2 up to two.
            size=lead + self.channels * plane + round_up(self.margin * (row + 1)) + 4 * VECTOR,
        )

    def _root(self) -> Tensor:
        tensor = self
        while tensor._joined is not None:
            tensor = tensor._joined
        return tensor


class ChannelView(Tensor):
    """Some consecutive channels of another tensor, where they are. It has no memory and no demands of its own."""

    def __init__(self, whole: Tensor, first: int, count: int) -> None:
        super().__init__(count, whole.height, whole.width, whole.form)
        self.whole = whole
        self.first = first
        self.padding, self.margin = whole.padding, whole.margin

    def layout(self) -> Layout:
        return replace(self.whole.layout(), channels=self.channels)


class PhaseTensor(Tensor):
    """A tensor split by `stride`: the planes of channel c are the phases of its elements that convolutions read.

    Phase (y, x) holds the elements (stride * i + y, stride * j + x). Counting from the image and not from the padded
    image makes the phases the same for all kernel sizes, so that a block's 3x3 convolution and its 1x1 shortcut share
    one split.
    """

    def __init__(self, source: Tensor, stride: int) -> None:
        super().__init__(0, -(-source.height // stride), -(-source.width // stride), Form.PLANES)
        self.source = source
        self.stride = stride
        self._wanted: set[int] = set()

    def need_phases(self, kernel_h: int, kernel_w: int, padding: int) -> None:
        """Ask for the phases that a kernel touches, and for padding enough to reach over the border."""
        for y in range(kernel_h):
            for x in range(kernel_w):
                self._wanted.add(phase_of(y - padding, x - padding, self.stride))
        self.channels = self.source.channels * len(self._wanted)
        self.need_padding(-(-padding // self.stride))

    @property
    def num_phases(self) -> int:
        return len(self._wanted)

    def phase_indices(self) -> NDArray[np.int32]:
        """For each phase y * stride + x its index among the planes of a channel, or -1."""
        indices = np.full(self.stride * self.stride, -1, dtype=np.int32)
        indices[sorted(self._wanted)] = np.arange(len(self._wanted), dtype=np.int32)
        return indices


IntOrArray = TypeVar("IntOrArray", int, NDArray[np.int64])


def phase_of(y: IntOrArray, x: IntOrArray, stride: int) -> IntOrArray:
    """The phase that element (y, x), perhaps negative, lies in; for numbers and for arrays."""
    return (y % stride) * stride + x % stride


def round_up(count: int, step: int = VECTOR) -> int:
    """`count` rounded up to a multiple of `step`; whole vectors unless told otherwise."""
    return -(-count // step) * step


def position_mask(layout: Layout) -> NDArray[np.uint32]:
    """All ones at the flattened positions of `layout` that are inside the image, zero in the padding between."""
    position = np.arange(round_up(layout.positions))
    inside = (position % layout.row < layout.width) & (position < layout.positions)
    return np.where(inside, np.uint32(0xFFFFFFFF), np.uint32(0))
