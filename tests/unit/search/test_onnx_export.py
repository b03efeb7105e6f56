"""Plans as ONNX files: ONNX Runtime and ONNX's reference make of dense and pruned networks what torch computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from device_agent.contracts import ContractError, NetworkPlan, Op, PruningScheme, WeightPruning, loads
from search.domain.space import Decisions
from search.networks.build import build_network
from search.networks.convert import convert_module
from search.networks.from_onnx.convert import convert_onnx
from search.onnx_export import INPUT, PLAN_METADATA, plan_to_onnx
from search.pruning.apply import apply_decisions
from search.pruning.fold import to_plan_tensors
from search.pruning.trace import trace_network
from tests.unit.search.networks.own_networks import INPUT_SHAPE, conv_bn, own_network


class EveryOp(nn.Module):
    """What the other networks leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = conv_bn(3, 8), conv_bn(8, 8, 1), conv_bn(8, 8)
        self.squeeze, self.excite = nn.Conv2d(16, 4, 1), nn.Conv2d(4, 16, 1)
        self.output, self.last = nn.Linear(16 * 4, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(F.hardswish(self.stem(x)), 2)
        x = torch.cat([F.relu(self.left(x)), self.right(x)], 1)
        x = F.max_pool2d(x, 3, 2, 1)
        gate = F.hardsigmoid(self.excite(F.relu6(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        # A layer that is called as the file's output is.
        result: Tensor = self.last(F.relu(self.output((x * gate).flatten(1))))
        return result


def model_of(name: str) -> nn.Module:
    torch.manual_seed(0)
    model = EveryOp() if name == "every_op" else own_network(name)
    if name == "squeeze_excite":
        # As a search takes it: with gates that repeat themselves.
        return build_network(convert_module(model, torch.zeros(1, *INPUT_SHAPE), name).network).model
    return model.eval()


def run_both(model: bytes, x: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    reference = onnx.reference.ReferenceEvaluator(onnx.load_from_string(model))
    return [run(None, {INPUT: x})[0] for run in (session.run, reference.run)]


@pytest.mark.parametrize("name", ["every_op", "resnet_a", "resnet_b", "mobilenet_v2", "squeeze_excite"])
@pytest.mark.parametrize("is_pruned", [False, True], ids=["dense", "pruned"])
def test_a_file_computes_what_torch_does(name: str, is_pruned: bool) -> None:
    model = model_of(name)
    spec = trace_network(model, INPUT_SHAPE, name)
    decisions = Decisions()
    if is_pruned:
        half = WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.5)
        decisions = Decisions(
            channels={g.name: max(1, g.channels // 2) for g in spec.groups}, pruning={spec.prunable_ops[-1]: half}
        )
    pruned = apply_decisions(model, spec, decisions)
    plan, tensors = to_plan_tensors(pruned, spec, decisions)
    x = np.random.default_rng(4).standard_normal((3, *INPUT_SHAPE), dtype=np.float32)
    with torch.no_grad():
        expected = pruned.model.eval()(torch.from_numpy(x)).numpy()

    data = plan_to_onnx(plan, tensors)

    for found in run_both(data, x):
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert data == plan_to_onnx(plan, dict(reversed(tensors.items())))
    assert (plan.macs < spec.plan.macs) == is_pruned
    if is_pruned:
        assert any(not np.all(values) for values in tensors.values())


def written(name: str) -> tuple[NetworkPlan, dict[str, NDArray[np.float32]]]:
    model = model_of(name)
    spec = trace_network(model, INPUT_SHAPE, name)
    return to_plan_tensors(apply_decisions(model, spec, Decisions()), spec, Decisions())


def test_the_file_says_what_it_is_and_can_be_searched_again(tmp_path: Path) -> None:
    plan, tensors = written("every_op")
    data = plan_to_onnx(plan, tensors)
    loaded = onnx.load_from_string(data)

    assert {entry.key: entry.value for entry in loaded.metadata_props}.keys() == {PLAN_METADATA}
    assert loads(NetworkPlan, loaded.metadata_props[0].value) == plan
    assert loaded.producer_name == "kerf"
    path = tmp_path / "again.onnx"
    path.write_bytes(data)
    again = build_network(convert_onnx(path, "again").network).model
    x = torch.randn(2, *INPUT_SHAPE)
    torch.testing.assert_close(again(x), model_of("every_op")(x), rtol=1e-5, atol=1e-5)


def test_tensors_that_do_not_fit_are_refused() -> None:
    plan, tensors = written("mobilenet_v2")
    (first, *_) = (op for op in plan.ops if op.kernel.op is Op.CONV2D)
    name = f"{first.name}.weight"
    with pytest.raises(ContractError, match=r"is missing: conv2d needs float32 of shape"):
        plan_to_onnx(plan, {n: t for n, t in tensors.items() if n != name})
    with pytest.raises(ContractError, match=r"is float64 of shape"):
        plan_to_onnx(plan, {**tensors, name: tensors[name].astype(np.float64)})
    with pytest.raises(ContractError, match=r"of shape \(1, 1\)"):
        plan_to_onnx(plan, {**tensors, name: np.zeros((1, 1), np.float32)})
