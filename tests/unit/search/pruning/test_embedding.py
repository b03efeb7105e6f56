"""Weights of a pruned network, back in their places."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from search.domain.space import Decisions
from search.pruning.apply import apply_decisions
from search.pruning.channels import remove_channels
from search.pruning.embedding import embed
from tests.unit.search.pruning.pruning_networks import traced

pytestmark = pytest.mark.xdist_group("traced")


@pytest.mark.parametrize("architecture", ["small_resnet", "mobilenet_v2", "small_cnn", "joined", "pre_activation"])
def test_embedded_weights_are_in_their_places(architecture: str) -> None:
    model, spec = traced(architecture)
    decisions = Decisions(channels={g.name: max(1, g.channels // 2) for g in spec.groups})
    pruned = apply_decisions(model, spec, decisions)
    full = embed(pruned, model, spec)
    again = remove_channels(full, spec, pruned.kept).state_dict()
    for name, tensor in pruned.model.state_dict().items():
        assert torch.equal(again[name], tensor), name
    # Pruning what is embedded keeps the same channels, and fewer of them when fewer are asked for.
    for name, kept in apply_decisions(full, spec, decisions).kept.items():
        np.testing.assert_array_equal(kept, pruned.kept[name])
    fewer = Decisions(channels={g.name: max(1, g.channels // 4) for g in spec.groups})
    for name, kept in apply_decisions(full, spec, fewer).kept.items():
        assert set(kept) <= set(pruned.kept[name])
