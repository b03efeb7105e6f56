"""Where tensors that do not live at the same time lie in shared memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: Offsets are multiples of this, in bytes: a cache line.
ALIGNMENT = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A block of `num_bytes` that is in use from step `first` to step `last`, both included."""

    num_bytes: int
    first: int
    last: int

    def meets(self, other: Span) -> bool:
        """Whether both are in use at the same time."""
        return self.first <= other.last and other.first <= self.last


def pack_spans(spans: Sequence[Span]) -> tuple[list[int], int]:
    """The offset of each of `spans`, and the size of the memory that holds them all, in bytes.

    The largest first, each in the smallest gap between those that it meets: the greedy-by-size rule of Pisarchyk and
    Lee 2020 (arXiv 2001.03288).
    """
    offsets = [0] * len(spans)
    placed: list[int] = []
    for index in sorted(range(len(spans)), key=lambda i: (-spans[i].num_bytes, spans[i].first)):
        span = spans[index]
        offset, gap = 0, None
        for other in sorted((i for i in placed if spans[i].meets(span)), key=offsets.__getitem__):
            room = offsets[other] - offset
            if room >= span.num_bytes and (gap is None or room < gap[0]):
                gap = (room, offset)
            offset = max(offset, _end(offsets[other] + spans[other].num_bytes))
        offsets[index] = offset if gap is None else gap[1]
        placed.append(index)
    size = max((offset + span.num_bytes for offset, span in zip(offsets, spans, strict=True)), default=0)
    return offsets, size


def _end(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT
