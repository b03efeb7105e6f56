"""The benchmark's networks are those of the search's zoo."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from bench.layers import zoo_layers
from bench.zoo import NETWORKS, cifar_resnet_plan, mobilenet_v1_plan, mobilenet_v2_plan, plan_tensors, resnet18_plan
from device_agent.contracts import DENSE, NetworkPlan, Op, PruningScheme, WeightPruning
from search.models.zoo import build_model
from search.pruning.trace import trace_network

GROUP = WeightPruning(scheme=PruningScheme.GROUP, density=0.3, block_filters=4)


@pytest.fixture
def one_torch_thread() -> Iterator[None]:
    """These networks are too small to share, and waiting threads take time from each other on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.parametrize(
    ("architecture", "plan", "extent"),
    [
        ("resnet18", resnet18_plan, 32),
        ("resnet20", lambda extent: cifar_resnet_plan(blocks_per_stage=3, extent=extent), 16),
        ("mobilenet_v1", mobilenet_v1_plan, 32),
        pytest.param("mobilenet_v2", mobilenet_v2_plan, 32, marks=pytest.mark.slow),  # Tracing it takes 10 s.
    ],
)
def test_plans_are_those_that_tracing_the_models_finds(
    architecture: str, plan: Callable[..., NetworkPlan], extent: int
) -> None:
    traced = trace_network(build_model(architecture), (3, extent, extent), architecture).plan
    written = plan(extent=extent)
    assert _signature(written) == _signature(traced)


def _signature(plan: NetworkPlan) -> list[str]:
    """The kernels without their seeds, each with the kernels that it reads and adds; independent of names and order."""
    kernels = {"input": "input"} | {op.name: repr(replace(op.kernel, seed=0)) for op in plan.ops}
    return sorted(
        repr((kernels[op.name], [kernels[name] for name in op.inputs], op.residual and kernels[op.residual]))
        for op in plan.ops
    )


def test_macs_are_those_of_the_papers() -> None:
    macs = {name: build(DENSE).macs for name, build in NETWORKS.items()}
    assert macs["resnet18"] == pytest.approx(1.82e9, rel=0.01)  # He et al. 2015, table 1: 1.8e9
    assert macs["resnet56"] == pytest.approx(0.125e9, rel=0.01)
    assert macs["mobilenet_v1"] == pytest.approx(569e6, rel=0.001)  # Howard et al. 2017, table 8
    assert macs["mobilenet_v2"] == pytest.approx(300e6, rel=0.01)  # Sandler et al. 2018, table 4


@pytest.mark.parametrize("name", NETWORKS)
def test_all_convolutions_but_the_stem_are_pruned(name: str) -> None:
    stem, *rest = (op.kernel for op in NETWORKS[name](GROUP).ops)
    assert stem.pruning == DENSE
    for kernel in rest:
        assert kernel.pruning == (GROUP if kernel.op is Op.CONV2D else DENSE)


def test_tensors_have_the_density_and_the_seeds_differ() -> None:
    plan = cifar_resnet_plan(GROUP, blocks_per_stage=1)
    tensors = plan_tensors(plan)
    weight = tensors["layer2.0.conv2.weight"]
    assert np.count_nonzero(weight) / weight.size == pytest.approx(0.3, abs=0.01)
    assert not np.array_equal(tensors["layer1.0.conv1.weight"], tensors["layer1.0.conv2.weight"])


def test_layers_are_distinct_and_named_by_shape() -> None:
    layers = {layer.name: layer for layer in zoo_layers()}
    for name in ("7x7 3-64@224s2", "64@56", "64-128@56s2", "1x1 256-512@14s2", "16@32", "dw 256@28s2", "1x1 512@14"):
        assert layers[name].kernel.pruning == DENSE
    assert not layers["7x7 3-64@224s2"].is_prunable
    assert not layers["dw 256@28s2"].is_prunable
    assert layers["1x1 512@14"].is_prunable
    assert layers["128@28"].kernel.input_w == 28
    assert len({repr(layer.kernel) for layer in layers.values()}) == len(layers)
