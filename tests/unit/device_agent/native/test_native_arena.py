"""Memory that tensors share when they do not live at the same time."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from device_agent.native.arena import ALIGNMENT, Span, pack_spans
from device_agent.native.layout import Form, Tensor
from device_agent.native.placement import Placement


@st.composite
def spans(draw: st.DrawFn) -> Span:
    first = draw(st.integers(0, 12))
    return Span(num_bytes=draw(st.integers(1, 5000)), first=first, last=first + draw(st.integers(0, 6)))


@given(st.lists(spans(), max_size=25))
def test_what_lives_together_lies_apart(blocks: list[Span]) -> None:
    offsets, size = pack_spans(blocks)
    for i, (a, start) in enumerate(zip(blocks, offsets, strict=True)):
        assert start >= 0
        assert start % ALIGNMENT == 0
        assert start + a.num_bytes <= size
        for b, other in list(zip(blocks, offsets, strict=True))[:i]:
            assert not a.meets(b) or start + a.num_bytes <= other or other + b.num_bytes <= start
    # No more than all of them one behind the other, and no less than what lives at one time.
    assert size <= sum(block.num_bytes + ALIGNMENT for block in blocks)
    for time in range(20):
        assert size >= sum(block.num_bytes for block in blocks if block.first <= time <= block.last)


def test_a_chain_takes_the_room_of_its_largest_neighbours() -> None:
    sizes = [640, 6400] * 4
    chain = [Span(num_bytes=size, first=i, last=i + 1) for i, size in enumerate(sizes)]
    assert pack_spans(chain)[1] == 6400 + 640


def test_only_tensors_without_padding_share_with_others() -> None:
    def images(count: int, extent: int, padding: int) -> list[Tensor]:
        tensors = [Tensor(4, extent, extent, Form.PLANES) for _ in range(count)]
        for tensor in tensors:
            tensor.need_padding(padding)
        return tensors

    compact, padded = [*images(3, 16, 0), *images(3, 8, 0)], [*images(3, 16, 1), *images(3, 8, 1)]
    placement = Placement()
    placement.place_all({tensor: (time, time) for time, tensor in enumerate(compact + padded)})
    compact_at = {placement.address(tensor) for tensor in compact}
    padded_at = {tensor.width: {placement.address(t) for t in padded if t.width == tensor.width} for tensor in padded}
    assert len(compact_at) == 1
    assert [len(addresses) for addresses in padded_at.values()] == [1, 1]
    assert len(compact_at.union(*padded_at.values())) == 3
