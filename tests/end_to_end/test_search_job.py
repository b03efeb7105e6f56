"""The main job: from a search over HTTP to verified, exported files, with real processes and a simulated device."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import time
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from rich.console import Console

from device_agent.contracts import MeasuringSetup, Op, Source, Verdict
from device_agent.formats.packed import read_packed
from search.domain.config import (
    ChannelsConfig,
    Estimator,
    MeasuringConfig,
    Method,
    MethodConfig,
    Regime,
    SearchConfig,
    SelectionConfig,
    SpaceConfig,
    TrainingConfig,
)
from search.domain.objective import Constraint, Metric, Objective
from search.domain.result import SearchResult, result_schema
from server.cli.local_stack import LocalStack, StackOptions, running_stack
from server.cli.searches import run_search
from tests.end_to_end.stacks import simulated_search

pytestmark = pytest.mark.xdist_group("stack")


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def run(stack: LocalStack, config: SearchConfig, output: Path, console: Console) -> SearchResult:
    with stack.client() as client:
        return run_search(client, config, {}, output, console)


@dataclasses.dataclass(frozen=True)
class Done:
    """A search that ended, and the folder of its files."""

    config: SearchConfig
    result: SearchResult
    output: Path


@pytest.fixture(scope="module")
def first(simulated_stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The search that others are compared with."""
    config = simulated_search("first")
    output = tmp_path_factory.mktemp("first") / "out"
    return Done(config, run(simulated_stack, config, output, Console(file=io.StringIO(), width=200)), output)


def test_a_search_ends_with_verified_files(first: Done) -> None:
    output, result = first.output, first.result

    written = json.loads((output / "result.json").read_text())
    jsonschema.validate(written, result_schema())
    assert result.device.source is Source.SIMULATED
    assert result.baseline.latency_ms.tflite_dense is not None
    assert len(result.front) == 3
    for point in result.front:
        assert point.verdict is Verdict.TRUSTED
        assert point.accuracy is not None
        assert point.output_max_abs_error is not None
        assert point.output_max_abs_error < 1e-4
        assert point.measured_latency_ms == pytest.approx(point.predicted_latency_ms, rel=0.1)
        folder = output / "candidates" / point.candidate_id
        for name, digest in point.files.items():
            assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
        plan, tensors = read_packed((folder / "network.kerfnet").read_bytes())
        assert plan.macs == point.macs
        convolutions = [op for op in plan.ops if op.kernel.op is Op.CONV2D]
        densities = [np.count_nonzero(tensors[f"{op.name}.weight"]) / op.kernel.num_weights for op in convolutions]
        assert densities == pytest.approx([op.kernel.pruning.density for op in convolutions], abs=0.05)
    assert (output / "front.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_table_and_seed_give_the_same_front(
    first: Done, simulated_stack: LocalStack, tmp_path: Path, console: Console
) -> None:
    config = dataclasses.replace(first.config, name="again", latency_from=first.result.search.id)
    second = run(simulated_stack, config, tmp_path, console)

    for name in ("front.json", "latency-table.json"):
        assert (tmp_path / name).read_bytes() == (first.output / name).read_bytes()
    assert second.search.latency_from == first.result.search.id
    assert [p.accuracy for p in second.front] == [p.accuracy for p in first.result.front]


@pytest.mark.slow
def test_another_seed_gives_another_front(
    first: Done, simulated_stack: LocalStack, tmp_path: Path, console: Console
) -> None:
    config = dataclasses.replace(first.config, method=dataclasses.replace(first.config.method, seed=1))
    run(simulated_stack, config, tmp_path, console)
    assert (tmp_path / "front.json").read_bytes() != (first.output / "front.json").read_bytes()


def test_kernels_are_measured_once_for_all_searches(
    first: Done, simulated_stack: LocalStack, tmp_path: Path, console: Console
) -> None:
    again = run(simulated_stack, dataclasses.replace(first.config, name="reuse"), tmp_path, console)
    assert again.device.kernels_reused == again.device.kernels
    # The worker, which has no search now, works out how well both predicted their networks.
    points = card_points(simulated_stack, again.search.id)
    assert {p["candidate_id"]: p["predicted_ms"] for p in points} == {
        p.candidate_id: p.predicted_latency_ms for p in again.front
    }
    cost = again.search.measuring
    assert cost is not None
    assert cost == again.device.measuring
    assert again.device.kernels <= cost.cache_hits <= cost.measurements
    assert isinstance(console.file, io.StringIO)
    assert f"{cost.cache_hits} of {cost.measurements} measurements were shared" in console.file.getvalue()


def card_points(stack: LocalStack, search_id: str) -> list[dict[str, Any]]:
    """The networks of a search on the card of the series that it used, once the worker has made it."""
    deadline = time.monotonic() + 600.0
    with stack.client() as client:
        while time.monotonic() < deadline:
            for series in client.latency.series(runtime="simulated"):
                card = client.latency.card(series["id"])["card"]
                points = [p for p in (card or {}).get("network_points", ()) if p["search_id"] == search_id]
                if points:
                    return points
            time.sleep(0.5)
    pytest.fail(f"no card has the networks of {search_id}")


def test_the_same_search_on_postgresql(
    first: Done, postgres_url: str, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KERF_DATABASE_URL", postgres_url)
    with running_stack(StackOptions(state_dir=tmp_path / "state", simulated=True)) as stack:
        result = run(stack, first.config, tmp_path / "postgresql", console)
    assert not (tmp_path / "state" / "kerf.db").exists()
    assert result.device.source is Source.SIMULATED
    assert (tmp_path / "postgresql" / "front.json").read_bytes() == (first.output / "front.json").read_bytes()


@pytest.mark.slow  # A process for each measurement. What each runtime computes is tested with the runtimes.
@pytest.mark.parametrize(
    ("runtime", "package", "extra"), [("tflite", "ai_edge_litert", "agent"), ("ncnn", "ncnn", "ncnn")]
)
def test_a_search_on_a_dense_runtime_exports_and_verifies_its_files(
    tmp_path: Path, console: Console, runtime: str, package: str, extra: str
) -> None:
    pytest.importorskip(package, reason=f"needs the runtime {runtime}: pip install '.[{extra}]'")
    config = simulated_search(runtime)
    setup = MeasuringSetup(runtime=runtime, budget_s=0.1, min_blocks=2, samples_per_block=3, ci_half_width=0.5)
    config = dataclasses.replace(
        config,
        space=SpaceConfig(channels=ChannelsConfig(min_ratio=0.5, multiple_of=8)),
        measuring=MeasuringConfig(kernels=setup, networks=setup, max_kernels=20, calibration_networks=3),
        selection=SelectionConfig(candidates=1),
        constraints=(),
    )
    with running_stack(StackOptions(state_dir=tmp_path / "state")) as stack:
        result = run(stack, config, tmp_path / "out", console)
    assert result.device.source is Source.MEASURED
    assert result.device.runtime == runtime
    assert getattr(result.baseline.latency_ms, f"{runtime}_dense") is not None
    for point in result.front:
        assert point.failure is None
        assert point.output_max_abs_error is not None
        assert point.output_max_abs_error < 1e-4


@pytest.mark.slow
def test_jcw_as_published_runs_through_the_service(
    simulated_stack: LocalStack, tmp_path: Path, console: Console
) -> None:
    config = simulated_search("jcw as published")
    config = dataclasses.replace(
        config,
        method=dataclasses.replace(config.method, reproduce_reference=True),
        accuracy=dataclasses.replace(
            config.accuracy, estimator=Estimator.SUPERNET, schedule_factor=0.05, batch_size=64
        ),
        training=TrainingConfig(regime=Regime.JCW, schedule_factor=0.04, batch_size=64),
        selection=SelectionConfig(candidates=2),
    )
    result = run(simulated_stack, config, tmp_path / "out", console)

    assert len(result.front) == 2
    for point in result.front:
        assert point.verdict is Verdict.TRUSTED
        assert point.output_max_abs_error is not None
        assert point.output_max_abs_error < 1e-4
        assert point.accuracy is not None
        assert point.accuracy > 0.25
        folder = tmp_path / "out" / "candidates" / point.candidate_id
        plan, tensors = read_packed((folder / "network.kerfnet").read_bytes())
        convolutions = [op for op in plan.ops if op.kernel.op is Op.CONV2D]
        densities = [np.count_nonzero(tensors[f"{op.name}.weight"]) / op.kernel.num_weights for op in convolutions]
        assert densities == pytest.approx([op.kernel.pruning.density for op in convolutions], abs=0.05)


@pytest.mark.slow
def test_exact_and_aacp_keep_all_bounds_together(
    first: Done, simulated_stack: LocalStack, tmp_path: Path, console: Console
) -> None:
    config = dataclasses.replace(first.config, selection=SelectionConfig(candidates=2))
    free = first.result
    dense_ms = free.baseline.latency_ms.native_dense
    assert dense_ms is not None
    bounds = (
        Constraint(metric=Metric.LATENCY_MS, max=0.6 * dense_ms),
        Constraint(metric=Metric.MACS, max=0.5 * free.baseline.macs),
        Constraint(metric=Metric.PARAMETERS, max=0.7 * free.baseline.parameters),
    )
    # The one best network, as AACP has it, and the best few judged again on all images.
    alone = (Objective(metric=Metric.LOSS),)
    both = (*alone, Objective(metric=Metric.LATENCY_MS))
    few_images = dataclasses.replace(config.accuracy, evaluation_images=80, reevaluate_top=4)
    for method, objectives in (
        (MethodConfig(name=Method.EXACT, population=6, generations=2), both),
        (MethodConfig(name=Method.AACP, population=6, generations=2, seed_with=Method.EXACT, reconstruct=True), alone),
    ):
        bounded = dataclasses.replace(
            config,
            method=method,
            constraints=bounds,
            objectives=objectives,
            accuracy=few_images,
            latency_from=free.search.id,
        )
        result = run(simulated_stack, bounded, tmp_path / method.name.value, console)
        assert result.search.method == method.name.value
        assert len(result.front) == 1 if objectives is alone else len(result.front) >= 1
        for point in result.front:
            assert point.predicted_latency_ms <= bounds[0].max
            assert point.macs <= bounds[1].max
            assert point.parameters <= bounds[2].max
            assert point.accuracy is not None
    assert "best candidates were judged again, on " in console.file.getvalue()
