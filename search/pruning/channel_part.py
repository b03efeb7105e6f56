"""The first or the last channels of a tensor, as a module: what a channel split is made of."""

from __future__ import annotations

from torch import Tensor, nn


class ChannelPart(nn.Module):
    """The first `count` channels of what it reads, or the last ones.

    A module, and not an index in the graph, so that pruning can change the count, and as only modules follow a network
    into training and back.
    """

    def __init__(self, count: int, *, is_last: bool) -> None:
        super().__init__()
        self.count = count
        self.is_last = is_last

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -self.count :] if self.is_last else x[:, : self.count]

    def extra_repr(self) -> str:
        return f"{self.count}, is_last={self.is_last}"
