"""Tasks from message to measurement, with fake runtimes and a fake clock, and with the real ones."""

from __future__ import annotations

import dataclasses
import hashlib
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from device_agent.contracts import (
    Clock,
    FailureReason,
    KernelSpec,
    KernelTask,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    NetworkFormat,
    NetworkPlan,
    NetworkTask,
    Op,
    PlanOp,
    PruningScheme,
    RuntimeInfo,
    Source,
    Verdict,
    VerdictReason,
    WeightPruning,
    dumps,
    loads,
)
from device_agent.formats.packed import write_packed
from device_agent.formats.tflite import plan_to_tflite
from device_agent.measuring.task import Surroundings, measure_task
from device_agent.native.team import available_cores
from device_agent.runtimes import RuntimeUnavailable, UnsupportedTask, make_runtime
from device_agent.runtimes.reference import run_kernel
from device_agent.synthesis import kernel_inputs, synthesize_input, synthesize_weights
from tests.unit.device_agent.measuring.measuring_fakes import FakeClock, FakeKernel

TREES = Path(__file__).parents[3] / "fixtures" / "sysfs"
KERNEL = KernelSpec(
    op=Op.CONV2D, in_channels=3, out_channels=4, input_h=5, input_w=5, kernel_h=3, kernel_w=3, padding=1
)


class FakeRuntime:
    """Loads whatever it is told to, as if it took `cost_ns`."""

    def __init__(self, clock: FakeClock, *, wrong: bool = False, findings: tuple[VerdictReason, ...] = ()) -> None:
        self.clock = clock
        self.wrong = wrong
        self.findings = findings
        self.error: Exception | None = None
        self.network_output = np.arange(4, dtype=np.float32)

    def info(self) -> RuntimeInfo:
        return RuntimeInfo(name="fake", version="7", binary_sha256="ab" * 32, isa="abacus")

    def load_kernel(self, kernel: KernelSpec, threads: int) -> FakeKernel:
        if self.error is not None:
            raise self.error
        executable = FakeKernel(self.clock, 40_000, findings=self.findings)
        x, _ = kernel_inputs(kernel)
        executable.output = run_kernel(kernel, synthesize_weights(kernel), [x]).reshape(-1) + float(self.wrong)
        return executable

    def load_network(self, data: bytes, network_format: NetworkFormat, shape: object, threads: int) -> FakeKernel:
        executable = FakeKernel(self.clock, 900_000)
        executable.output = self.network_output
        return executable


def around(
    runtime: FakeRuntime, *, root: str = "x86-virtual-machine", source: Source = Source.MEASURED
) -> Surroundings:
    return Surroundings(
        source=source,
        cores=(),
        root=TREES / root,
        clock=runtime.clock,
        make_runtime=lambda _name: runtime,
        make_reference_kernel=lambda: FakeKernel(runtime.clock, 20_000),
    )


@pytest.fixture
def runtime() -> FakeRuntime:
    return FakeRuntime(FakeClock())


def kernel_task(**setup: object) -> KernelTask:
    return KernelTask(kernel=KERNEL, setup=MeasuringSetup(**{"runtime": "fake", **setup}))  # type: ignore[arg-type]


def network_task(data: bytes, **changes: object) -> NetworkTask:
    task = NetworkTask(
        artifact_sha256=hashlib.sha256(data).hexdigest(),
        artifact_bytes=len(data),
        format=NetworkFormat.PACKED,
        input_shape=(3, 8, 8),
        setup=MeasuringSetup(runtime="fake"),
    )
    return dataclasses.replace(task, **changes)  # type: ignore[arg-type]


def measured(result: Measurement | MeasurementFailure) -> Measurement:
    assert isinstance(result, Measurement), result
    return result


def failed(result: Measurement | MeasurementFailure) -> MeasurementFailure:
    assert isinstance(result, MeasurementFailure), result
    return result


def test_a_kernel_measurement_is_complete(runtime: FakeRuntime) -> None:
    result = measured(measure_task(kernel_task(), surroundings=around(runtime)))
    assert result.verdict is Verdict.TRUSTED
    assert result.statistics.median_ns == 40_000
    assert result.statistics.reference_ratio == 2
    assert result.statistics.reference_name == "fake reference"
    assert result.iterations_per_sample == 13
    assert result.warmup_runs > 13
    assert result.before.load_1min == 1.7
    assert result.memory_bytes == 1000
    assert result.duration_s > 0
    provenance = result.provenance
    assert (provenance.runtime, provenance.runtime_version, provenance.isa) == ("fake", "7", "abacus")
    assert (provenance.source, provenance.affinity, provenance.threads) == (Source.MEASURED, (), 1)
    x, _ = kernel_inputs(KERNEL)
    output = run_kernel(KERNEL, synthesize_weights(KERNEL), [x])
    assert result.output_sha256 == hashlib.sha256(output.astype("<f4").tobytes()).hexdigest()
    assert loads(Measurement, dumps(result)) == result


def test_an_emulated_device_says_so(runtime: FakeRuntime) -> None:
    result = measured(measure_task(kernel_task(), surroundings=around(runtime, source=Source.EMULATED)))
    assert result.provenance.source is Source.EMULATED


def test_a_wrong_output_is_rejected() -> None:
    result = measured(measure_task(kernel_task(), surroundings=around(FakeRuntime(FakeClock(), wrong=True))))
    assert (result.verdict, result.reasons) == (Verdict.REJECTED, (VerdictReason.WRONG_OUTPUT,))


def test_what_the_runtime_finds_is_in_the_verdict() -> None:
    found = FakeRuntime(FakeClock(), findings=(VerdictReason.WRONG_DELEGATE,))
    result = measured(measure_task(kernel_task(), surroundings=around(found)))
    assert result.reasons == (VerdictReason.WRONG_DELEGATE,)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (UnsupportedTask("no such op"), FailureReason.UNSUPPORTED),
        (RuntimeUnavailable("not here"), FailureReason.UNSUPPORTED),
        (MemoryError(), FailureReason.RESOURCE_EXHAUSTED),
    ],
)
def test_foreseeable_errors_are_failures(runtime: FakeRuntime, error: Exception, reason: FailureReason) -> None:
    runtime.error = error
    result = failed(measure_task(kernel_task(), surroundings=around(runtime)))
    assert result.reason is reason
    assert str(error) in result.detail


def test_other_errors_are_not_hidden(runtime: FakeRuntime) -> None:
    runtime.error = KeyError("a bug")
    with pytest.raises(KeyError):
        measure_task(kernel_task(), surroundings=around(runtime))


def test_an_unknown_runtime_is_unsupported() -> None:
    result = failed(measure_task(kernel_task(runtime="gpu")))
    assert result.reason is FailureReason.UNSUPPORTED
    assert "'gpu'" in result.detail


def test_a_hot_device_does_not_measure(runtime: FakeRuntime, tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("91000\n")
    surroundings = dataclasses.replace(around(runtime), root=tmp_path)
    result = failed(measure_task(kernel_task(), surroundings=surroundings))
    assert (result.reason, "91 °C" in result.detail) == (FailureReason.DEVICE_NOT_READY, True)


def test_a_network_gives_outputs_and_operator_times(runtime: FakeRuntime, tmp_path: Path) -> None:
    artifact = tmp_path / "network"
    artifact.write_bytes(b"weights")
    result = measured(measure_task(network_task(b"weights", num_outputs=3), artifact, around(runtime)))
    assert result.outputs == ((0.0, 1.0, 2.0, 3.0),) * 3
    assert result.output_sha256 == hashlib.sha256(np.arange(4, dtype="<f4").tobytes() * 3).hexdigest()
    assert result.op_ns == (50.0,)


def test_outputs_are_left_out_when_nobody_asks(runtime: FakeRuntime, tmp_path: Path) -> None:
    artifact = tmp_path / "network"
    artifact.write_bytes(b"weights")
    result = measured(measure_task(network_task(b"weights", num_outputs=0), artifact, around(runtime)))
    assert result.outputs == ()
    assert result.output_sha256 == hashlib.sha256(np.arange(4, dtype="<f4").tobytes()).hexdigest()


def test_outputs_that_are_no_numbers_reject_and_are_not_sent(runtime: FakeRuntime, tmp_path: Path) -> None:
    artifact = tmp_path / "network"
    artifact.write_bytes(b"weights")
    runtime.network_output = np.array([1, np.inf], np.float32)
    result = measured(measure_task(network_task(b"weights"), artifact, around(runtime)))
    assert (result.reasons, result.outputs) == ((VerdictReason.WRONG_OUTPUT,), ())
    dumps(result)


@pytest.mark.parametrize(
    ("content", "words"), [(b"weighty", "hashes to"), (b"weight", "6 bytes instead of 7"), (None, "cannot be read")]
)
def test_an_artifact_that_is_not_the_promised_one(
    runtime: FakeRuntime, tmp_path: Path, content: bytes | None, words: str
) -> None:
    artifact = tmp_path / "network"
    if content is not None:
        artifact.write_bytes(content)
    result = failed(measure_task(network_task(b"weights"), artifact, around(runtime)))
    assert result.reason is FailureReason.ARTIFACT_UNAVAILABLE
    assert words in result.detail


def test_a_network_task_without_a_file(runtime: FakeRuntime) -> None:
    result = failed(measure_task(network_task(b"weights"), None, around(runtime)))
    assert result.reason is FailureReason.ARTIFACT_UNAVAILABLE


@pytest.mark.parametrize("changes", [{"num_outputs": -1}, {"num_outputs": 1 << 40}, {"num_outputs": 1 << 21}])
def test_impossible_numbers_of_outputs_are_invalid(
    runtime: FakeRuntime, tmp_path: Path, changes: dict[str, int]
) -> None:
    artifact = tmp_path / "network"
    artifact.write_bytes(b"weights")
    result = failed(measure_task(network_task(b"weights", **changes), artifact, around(runtime)))
    assert result.reason is FailureReason.INVALID_TASK


# --- the real runtimes ----------------------------------------------------------------------------------------------

SPARSE = dataclasses.replace(
    KERNEL, residual=True, pruning=WeightPruning(scheme=PruningScheme.GROUP, density=0.5, block_filters=2)
)
QUICK = {"min_warmup_s": 0.001, "min_sample_s": 0.0001, "samples_per_block": 2, "budget_s": 0.2}


@pytest.mark.parametrize("name", ["native", "tflite"])
def test_a_real_runtime_is_measured(name: str) -> None:
    try:
        make_runtime(name)
    except RuntimeUnavailable as error:
        pytest.skip(f"the runtime {name} cannot run here: {error}")
    setup = MeasuringSetup(runtime=name, **QUICK)  # type: ignore[arg-type]
    result = measured(measure_task(KernelTask(kernel=SPARSE, setup=setup)))
    assert result.provenance.runtime == name
    assert result.provenance.source is Source.MEASURED
    assert result.statistics.median_ns > 0
    assert VerdictReason.WRONG_OUTPUT not in result.reasons
    assert result.statistics.reference_ratio is not None


def test_two_native_threads_are_measured_by_the_wall_clock() -> None:
    if len(available_cores()) < 2:
        pytest.skip("one core")
    before = available_cores()
    setup = MeasuringSetup(runtime="native", threads=2, clock=Clock.WALL, **QUICK)  # type: ignore[arg-type]
    result = measured(measure_task(KernelTask(kernel=SPARSE, setup=setup)))
    assert result.provenance.threads == 2
    assert len(result.provenance.affinity) == 2
    walls = [statistics.median(block.wall_ns) for block in result.blocks]
    assert result.statistics.median_ns == statistics.median(walls)
    assert VerdictReason.WRONG_OUTPUT not in result.reasons
    assert available_cores() == before


def test_a_simulated_kernel_is_the_same_every_time() -> None:
    task = KernelTask(kernel=SPARSE, setup=MeasuringSetup(runtime="simulated"))
    first = measured(measure_task(task))
    assert first == measure_task(task)
    assert first.verdict is Verdict.TRUSTED
    assert first.provenance.source is Source.SIMULATED
    assert first.statistics.ci95_low_ns == first.statistics.ci95_high_ns == first.statistics.median_ns
    assert first.statistics.mad_ns == 0


def test_a_simulated_device_does_not_feel_the_heat_of_its_host(tmp_path: Path) -> None:
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "temp").write_text("91000\n")
    task = KernelTask(kernel=SPARSE, setup=MeasuringSetup(runtime="simulated"))
    assert measure_task(task, surroundings=Surroundings(root=tmp_path)) == measure_task(task)


@pytest.mark.parametrize(
    ("network_format", "write"), [(NetworkFormat.PACKED, write_packed), (NetworkFormat.TFLITE, plan_to_tflite)]
)
def test_a_simulated_network_has_true_outputs(
    network_format: NetworkFormat, write: Callable[..., bytes], tmp_path: Path
) -> None:
    if network_format is NetworkFormat.TFLITE:
        pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")
    plan = NetworkPlan(name="one", input_shape=(3, 5, 5), ops=(PlanOp(name="conv", kernel=KERNEL, inputs=("input",)),))
    weights = synthesize_weights(KERNEL)
    data = write(plan, {f"conv.{part}": values for part, values in weights.items()})
    artifact = tmp_path / "network"
    artifact.write_bytes(data)
    task = network_task(
        data,
        format=network_format,
        input_shape=(3, 5, 5),
        setup=MeasuringSetup(runtime="simulated"),
        num_outputs=2,
        input_seed=11,
    )
    result = measured(measure_task(task, artifact))
    assert result == measure_task(task, artifact)
    for i, output in enumerate(result.outputs):
        expected = run_kernel(KERNEL, weights, [synthesize_input((3, 5, 5), 11 + i)]).reshape(-1)
        np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    assert len(result.op_ns) == 1
