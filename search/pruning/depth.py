"""Taking residual blocks out of a torch network."""

from __future__ import annotations

import copy
from collections.abc import Iterable

from torch import nn


def remove_blocks(model: nn.Module, names: Iterable[str]) -> nn.Module:
    """A copy of `model` in which each named module is the identity, so that only the shortcut around it is left.

    Other modules keep their names.
    """
    memo: dict[int, object] = {}
    for name in names:
        block = model.get_submodule(name)
        memo[id(block)] = nn.Identity().train(block.training)
    return copy.deepcopy(model, memo)
