"""Forms of a network on shared weights against networks of their own."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn

from device_agent.contracts import PruningScheme, WeightPruning
from device_agent.synthesis import num_kept_blocks
from search.accuracy.slicing import SlicedNetwork, live_mask
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.pruning.channels import remove_channels
from search.pruning.depth import remove_blocks
from search.pruning.masks import mask_for
from search.pruning.trace import trace_network
from tests.unit.search.pruning.pruning_networks import Mixed, randomise, traced

GROUP = WeightPruning(scheme=PruningScheme.GROUP, density=0.4, block_filters=4)


def network(name: str) -> tuple[nn.Module, NetworkSpec]:
    if name != "mixed":
        return traced(name)
    model = randomise(Mixed())
    return model, trace_network(model, (3, 8, 8), name)


def smaller(spec: NetworkSpec, seed: int) -> Decisions:
    """Random widths of every group, and every other block removed."""
    generator = np.random.default_rng(seed)
    return Decisions(
        channels={g.name: int(generator.integers(1, g.channels + 1)) for g in spec.groups},
        removed_blocks=tuple(sorted(block.name for block in spec.blocks[seed % 2 :: 2])),
    )


@pytest.mark.parametrize("name", ["small_cnn", "resnet20", "mixed", "joined", "pre_activation"])
def test_a_form_computes_what_the_pruned_network_does(name: str) -> None:
    model, spec = network(name)
    model = copy.deepcopy(model).double()
    sliced = SlicedNetwork(model, spec)
    x = torch.randn(4, *spec.plan.input_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    assert spec.groups
    assert spec.blocks or name != "resnet20"
    # The whole network comes last: what was made small must grow again.
    for decisions in (smaller(spec, 1), smaller(spec, 2), Decisions()):
        alone = remove_channels(model, spec, sliced.kept(decisions)).train()
        alone = remove_blocks(alone, decisions.removed_blocks)
        for dropout in [m for m in (*alone.modules(), *sliced.form.modules()) if isinstance(m, nn.Dropout)]:
            dropout.p = 0.0
        sliced.select(decisions, with_masks=False)
        torch.testing.assert_close(sliced.form(x), alone(x), rtol=1e-9, atol=1e-9)


def test_gradients_reach_the_shared_weights_where_the_form_has_them() -> None:
    model, spec = traced("small_cnn")
    sliced = SlicedNetwork(model, spec)
    decisions = Decisions(channels={"conv4": 12}, pruning={"conv4": GROUP})
    sliced.select(decisions, with_masks=True)

    sliced.form(torch.randn(8, 1, 8, 8)).square().sum().backward()

    weight = sliced.model.conv4.weight
    mask = live_mask(weight.detach()[:12], GROUP)
    assert weight.grad[:12][mask].all()
    assert not weight.grad[:12][~mask].any()
    assert not weight.grad[12:].any()
    assert not sliced.model.conv5.weight.grad[:, 12:].any()
    assert torch.equal(sliced.model.state_dict()["bn4.running_mean"], model.state_dict()["bn4.running_mean"])


@pytest.mark.parametrize(
    "pruning",
    [
        GROUP,
        WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.3),
        WeightPruning(scheme=PruningScheme.BLOCK_PUNCHED, density=0.3, block_filters=8, block_channels=4),
        WeightPruning(scheme=PruningScheme.GROUP, density=0.99, block_filters=4),
    ],
)
@pytest.mark.parametrize("shape", [(16, 8, 3, 3), (10, 7, 3, 3), (12, 20)])
def test_live_masks_keep_the_largest_blocks(pruning: WeightPruning, shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    mask = live_mask(weight, pruning).reshape(*shape, *(1,) * (4 - len(shape)))
    values = weight.abs().double().reshape(mask.shape).numpy()

    filters = pruning.block_filters
    channels = pruning.block_channels
    inside, outside = [], []
    for o in range(0, shape[0], filters):
        for i in range(0, shape[1], channels):
            for y in range(mask.shape[2]):
                for x in range(mask.shape[3]):
                    block = (slice(o, o + filters), slice(i, i + channels), y, x)
                    kept = mask[block]
                    assert bool(kept.all()) == bool(kept.any())
                    (inside if kept.all() else outside).append(values[block].mean())
    assert len(inside) == num_kept_blocks(pruning, len(inside) + len(outside))
    assert min(inside) >= max(outside, default=0.0)


def test_equal_norms_and_patterns() -> None:
    ones = torch.ones(8, 4, 3, 3)
    assert int(live_mask(ones, GROUP).sum()) == num_kept_blocks(GROUP, 2 * 4 * 9) * 4
    pattern = WeightPruning(scheme=PruningScheme.PATTERN, density=0.3, block_filters=4, pattern_entries=4)
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    assert np.array_equal(live_mask(weight, pattern).numpy(), mask_for(weight.numpy(), pattern))
