"""Depth, resolution, channels, density and scheme in one search, through the service to verified files."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from safetensors.numpy import load

from device_agent.contracts import Verdict
from device_agent.formats.packed import read_packed
from search.domain.config import (
    ChannelsConfig,
    DepthConfig,
    Estimator,
    Method,
    ModelConfig,
    ResolutionConfig,
    SearchConfig,
    SelectionConfig,
    SpaceConfig,
    WeightsConfig,
)
from search.domain.objective import Constraint, Metric, Objective
from search.domain.result import SearchResult
from server.cli.local_stack import LocalStack
from server.cli.searches import run_search
from tests.end_to_end.stacks import simulated_search

pytestmark = pytest.mark.xdist_group("stack")

COMBINED = SpaceConfig(
    channels=ChannelsConfig(min_ratio=0.5, multiple_of=8),
    weights=WeightsConfig(densities=(0.3, 1.0), schemes=("group:4x1", "unstructured")),
    depth=DepthConfig(),
    resolution=ResolutionConfig(sides=(6,)),
)


def small_resnet_search(name: str, space: SpaceConfig) -> SearchConfig:
    config = simulated_search(name)
    return dataclasses.replace(
        config,
        model=ModelConfig(architecture="small_resnet", train_epochs=1),
        space=space,
        selection=SelectionConfig(candidates=2),
        training=dataclasses.replace(config.training, epochs=0.5),
        measuring=dataclasses.replace(config.measuring, max_kernels=400),
    )


def run(stack: LocalStack, config: SearchConfig, output: Path) -> SearchResult:
    with stack.client() as client:
        return run_search(client, config, {}, output, Console(file=io.StringIO(), width=200))


def check_files(result: SearchResult, output: Path) -> None:
    for point in result.front:
        assert point.failure is None
        assert point.verdict is Verdict.TRUSTED
        assert point.accuracy is not None
        assert point.output_max_abs_error is not None
        assert point.output_max_abs_error < 1e-4
        assert point.measured_latency_ms == pytest.approx(point.predicted_latency_ms, rel=0.15)
        data = (output / "candidates" / point.candidate_id / "network.kerfnet").read_bytes()
        plan, _ = read_packed(data)
        side = point.decisions["resolution"]
        assert plan.input_shape == ((1, 8, 8) if side is None else (1, side, side))
        assert plan.macs == point.macs
        assert sum(tensor.nbytes for tensor in load(data).values()) <= point.model_bytes
        removed = point.decisions["removed_blocks"]
        assert not [op.name for op in plan.ops if any(op.name.startswith(f"{name}.") for name in removed)]


def test_all_dimensions_in_one_search(simulated_stack: LocalStack, tmp_path: Path) -> None:
    config = dataclasses.replace(
        small_resnet_search("combined", COMBINED),
        objectives=(*simulated_search("objectives").objectives, Objective(metric=Metric.MODEL_BYTES)),
        constraints=(Constraint(metric=Metric.MODEL_BYTES, max=300_000),),
    )
    result = run(simulated_stack, config, tmp_path)
    check_files(result, tmp_path)
    assert all(p.model_bytes is not None and p.model_bytes <= 300_000 for p in result.front)
    assert any(p.decisions["removed_blocks"] for p in result.front)
    assert any(p.decisions["resolution"] != 8 for p in result.front)
    front = json.loads((tmp_path / "front.json").read_text())["front"]
    assert len({json.dumps(p["decisions"], sort_keys=True) for p in front}) == len(front)


@pytest.mark.slow
@pytest.mark.parametrize(
    "space", [SpaceConfig(depth=DepthConfig()), SpaceConfig(resolution=ResolutionConfig())], ids=["depth", "resolution"]
)
def test_one_dimension_alone(simulated_stack: LocalStack, tmp_path: Path, space: SpaceConfig) -> None:
    result = run(simulated_stack, small_resnet_search("one", space), tmp_path)
    check_files(result, tmp_path)


@pytest.mark.slow
def test_three_dimensions_with_chains_of_fine_tuning(simulated_stack: LocalStack, tmp_path: Path) -> None:
    config = small_resnet_search(
        "three dimensions",
        SpaceConfig(
            channels=ChannelsConfig(min_ratio=0.5, multiple_of=8), depth=DepthConfig(), resolution=ResolutionConfig()
        ),
    )
    config = dataclasses.replace(
        config,
        method=dataclasses.replace(config.method, name=Method.THREE_DIMENSIONS, population=8, generations=4),
        accuracy=dataclasses.replace(config.accuracy, estimator=Estimator.FINETUNED, finetune_epochs=0.5),
    )
    result = run(simulated_stack, config, tmp_path)
    check_files(result, tmp_path)
    with simulated_stack.client() as client:
        messages = [
            e["data"].get("text", "") for e in client.searches.events(result.search.id) if e["kind"] == "message"
        ]
    assert [m for m in messages if "continuous optimum" in m and "KKT residual" in m]
