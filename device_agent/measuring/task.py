"""One task from its message to its measurement, in this process. `device_agent.child` puts a process around it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from device_agent import __version__
from device_agent.contracts.codec import ContractError
from device_agent.contracts.device import RuntimeInfo
from device_agent.contracts.lease import KernelTask, NetworkTask
from device_agent.contracts.measurement import (
    Block,
    Conditions,
    FailureReason,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    Provenance,
    Source,
    Verdict,
    VerdictReason,
)
from device_agent.measuring.benchmark import (
    SampleClock,
    Samples,
    Stopwatch,
    Subtracted,
    SystemSampleClock,
    prepare,
    take_samples,
)
from device_agent.measuring.conditions import ConditionsReader, choose_cores, pinned, why_not_ready
from device_agent.measuring.reference_kernel import ReferenceKernel, make_reference_kernel
from device_agent.measuring.statistics import summarize
from device_agent.measuring.verdict import judge
from device_agent.runtimes import Runtime, RuntimeUnavailable, UnsupportedTask, make_runtime
from device_agent.runtimes.base import Executable, FloatArray, HasExactTwin
from device_agent.runtimes.difference import DifferenceExecutable
from device_agent.runtimes.reference import is_close, output_agrees
from device_agent.runtimes.simulated import SimulatedExecutable, SimulatedRuntime
from device_agent.synthesis import kernel_inputs, synthesize_input, synthesize_weights

#: Outputs travel as JSON: a task may ask for this many numbers (ImageNet: 4000 images).
MAX_OUTPUT_VALUES = 1 << 22

#: The profile of single operators takes about this part of the budget, between so many rounds.
PROFILE_SHARE = 0.25
MIN_PROFILE_ROUNDS = 3
MAX_PROFILE_ROUNDS = 50

#: The interval of a simulated measurement needs six blocks to be defined.
_SIMULATED_BLOCKS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What a measurement depends on besides its task; tests put other things here."""

    source: Source = Source.MEASURED
    #: Cores to pin to; None chooses, empty pins nowhere.
    cores: tuple[int, ...] | None = None
    root: Path = Path("/")
    clock: SampleClock = field(default_factory=SystemSampleClock)
    make_runtime: Callable[[str], Runtime] = make_runtime
    make_reference_kernel: Callable[[], ReferenceKernel] = make_reference_kernel


class TaskFailure(Exception):
    """The task ends without a measurement, for a reason that the server acts upon."""

    def __init__(self, reason: FailureReason, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """An executable that has run once: what it gave, and what was found wrong with that.

    `output_sha256` is of outputs whose bits all devices share: those of the exact twin, where there is one.
    """

    executable: Executable
    outputs: tuple[FloatArray, ...]
    output_sha256: str
    findings: tuple[VerdictReason, ...]
    wants_outputs: bool
    wants_profile: bool

    @property
    def subtracted(self) -> Subtracted | None:
        """What the executable's time has to be lessened by, where it is more than what was asked for."""
        if not isinstance(self.executable, DifferenceExecutable):
            return None
        return Subtracted(executable=self.executable.fewer, copies=self.executable.copies)


def measure_task(
    task: KernelTask | NetworkTask, artifact: Path | None = None, surroundings: Surroundings | None = None
) -> Measurement | MeasurementFailure:
    """Measure `task` here and now. `artifact` is the file of a network task.

    Every foreseeable problem becomes a `MeasurementFailure`; other exceptions are errors of the agent and propagate.
    """
    around = surroundings or Surroundings()
    try:
        return _measure(task, artifact, around)
    except TaskFailure as failure:
        return MeasurementFailure(reason=failure.reason, detail=str(failure))
    except (RuntimeUnavailable, UnsupportedTask) as error:
        return MeasurementFailure(reason=FailureReason.UNSUPPORTED, detail=str(error))
    except ContractError as error:
        return MeasurementFailure(reason=FailureReason.INVALID_TASK, detail=str(error))
    except MemoryError as error:
        return MeasurementFailure(reason=FailureReason.RESOURCE_EXHAUSTED, detail=f"out of memory: {error}")


def _measure(task: KernelTask | NetworkTask, artifact: Path | None, around: Surroundings) -> Measurement:
    setup = task.setup
    total = Stopwatch(around.clock, setup.budget_s)
    runtime = around.make_runtime(setup.runtime)
    if isinstance(runtime, SimulatedRuntime):
        # No pinning and no conditions: the state of the host has nothing to do with it.
        return _simulated_measurement(setup, _load(task, artifact, runtime), runtime.info())
    cores = choose_cores(setup.threads, around.root) if around.cores is None else around.cores
    # Pinned from here on: the native runtime tunes its tiles while loading, and that must be on the core that is timed.
    with pinned(cores) as affinity:
        reader = ConditionsReader(root=around.root, core=affinity[0] if affinity else 0)
        not_ready = why_not_ready(reader.read())
        if not_ready is not None:
            raise TaskFailure(FailureReason.DEVICE_NOT_READY, not_ready)
        loaded = _load(task, artifact, runtime)
        reference = around.make_reference_kernel()
        watch = Stopwatch(around.clock, setup.budget_s)
        prepared = prepare(loaded.executable, reference, setup, around.clock, watch, loaded.subtracted)
        # After warming up: a governor raises the clock under load, and that is no change of conditions.
        before = reader.read()
        samples = take_samples(prepared, setup, around.clock, watch)
        after = reader.read()
        statistics = summarize(samples.blocks, setup.clock, reference.name)
        verdict, reasons = judge(samples.blocks, statistics, setup, before, after, loaded.findings)
        op_ns = _profile(loaded, setup, statistics.median_ns)
    return Measurement(
        provenance=_provenance(setup, runtime.info(), loaded.executable, around.source, affinity, before),
        blocks=samples.blocks,
        iterations_per_sample=samples.iterations_per_sample,
        warmup_runs=samples.warmup_runs,
        statistics=statistics,
        verdict=verdict,
        reasons=reasons,
        before=before,
        after=after,
        output_sha256=loaded.output_sha256,
        outputs=_as_tuples(loaded),
        op_ns=op_ns,
        memory_bytes=loaded.executable.memory_bytes,
        duration_s=total.elapsed_s,
    )


def _load(task: KernelTask | NetworkTask, artifact: Path | None, runtime: Runtime) -> _Loaded:
    return _load_kernel(task, runtime) if isinstance(task, KernelTask) else _load_network(task, artifact, runtime)


def _load_kernel(task: KernelTask, runtime: Runtime) -> _Loaded:
    executable = runtime.load_kernel(task.kernel, task.setup.threads)
    if isinstance(executable, DifferenceExecutable):
        outputs, agree = executable.check()
        findings = executable.findings if agree else (*executable.findings, VerdictReason.WRONG_OUTPUT)
        return _Loaded(
            executable=executable,
            outputs=outputs,
            output_sha256=_sha256(outputs),
            findings=findings,
            wants_outputs=False,
            wants_profile=False,
        )
    x, second = kernel_inputs(task.kernel)
    output = executable.run(x, second)
    inputs, residual = ([x], second) if task.kernel.residual or second is None else ([x, second], None)
    findings = executable.findings
    if not output_agrees(task.kernel, synthesize_weights(task.kernel), inputs, residual, output):
        findings = (*findings, VerdictReason.WRONG_OUTPUT)
    return _Loaded(
        executable=executable,
        outputs=(output,),
        output_sha256=_sha256(_exact_outputs(executable, (output,), lambda twin, _: twin.run(x, second))),
        findings=findings,
        wants_outputs=False,
        wants_profile=False,
    )


def _load_network(task: NetworkTask, artifact: Path | None, runtime: Runtime) -> _Loaded:
    if not 0 <= task.num_outputs <= MAX_OUTPUT_VALUES:
        raise ContractError(f"num_outputs {task.num_outputs!r} is not in 0..{MAX_OUTPUT_VALUES}")
    if task.input_seed < 0:
        raise ContractError(f"input_seed {task.input_seed!r} must not be negative")
    data = _read_artifact(task, artifact)
    executable = runtime.load_network(data, task.format, task.input_shape, task.setup.threads)

    def run(one: Executable, index: int) -> FloatArray:
        return one.run(synthesize_input(task.input_shape, task.input_seed + index))

    outputs: list[FloatArray] = []
    for i in range(max(task.num_outputs, 1)):
        outputs.append(run(executable, i))
        if outputs[0].size * task.num_outputs > MAX_OUTPUT_VALUES:
            raise ContractError(
                f"{task.num_outputs} outputs of {outputs[0].size} values exceed the limit of {MAX_OUTPUT_VALUES}: "
                "ask for fewer"
            )
    exact_outputs = _exact_outputs(executable, outputs, run)
    finite = all(bool(np.isfinite(output).all()) for output in outputs)
    right = finite and all(map(is_close, outputs, exact_outputs))
    findings = executable.findings if right else (*executable.findings, VerdictReason.WRONG_OUTPUT)
    return _Loaded(
        executable=executable,
        outputs=tuple(outputs),
        output_sha256=_sha256(exact_outputs),
        findings=findings,
        # JSON has no infinity; the verdict tells why the outputs are missing.
        wants_outputs=finite and task.num_outputs > 0,
        wants_profile=True,
    )


def _exact_outputs(
    executable: Executable, outputs: Sequence[FloatArray], run: Callable[[Executable, int], FloatArray]
) -> Sequence[FloatArray]:
    """`outputs` with the bits that all devices share: by `run` on the exact twin of `executable`, if it has one.

    The twin is gone before anything is timed.
    """
    twin = executable.exact_twin() if isinstance(executable, HasExactTwin) else None
    return outputs if twin is None else [run(twin, index) for index in range(len(outputs))]


def _read_artifact(task: NetworkTask, artifact: Path | None) -> bytes:
    if artifact is None:
        raise TaskFailure(FailureReason.ARTIFACT_UNAVAILABLE, f"no file came with artifact {task.artifact_sha256}")
    try:
        if artifact.stat().st_size != task.artifact_bytes:
            raise TaskFailure(
                FailureReason.ARTIFACT_UNAVAILABLE,
                f"the artifact has {artifact.stat().st_size} bytes instead of {task.artifact_bytes}",
            )
        data = artifact.read_bytes()
    except OSError as error:
        raise TaskFailure(FailureReason.ARTIFACT_UNAVAILABLE, f"the artifact cannot be read: {error}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != task.artifact_sha256:
        raise TaskFailure(
            FailureReason.ARTIFACT_UNAVAILABLE, f"the artifact hashes to {digest}, not to {task.artifact_sha256}"
        )
    return data


def _profile(loaded: _Loaded, setup: MeasuringSetup, median_ns: float) -> tuple[float, ...]:
    """Times of single operators: a pass of its own, since reading clocks in between costs time."""
    if not loaded.wants_profile:
        return ()
    affordable = PROFILE_SHARE * setup.budget_s * 1e9 / max(median_ns, 1.0)
    return loaded.executable.op_ns(int(min(max(affordable, MIN_PROFILE_ROUNDS), MAX_PROFILE_ROUNDS)))


def _simulated_measurement(setup: MeasuringSetup, loaded: _Loaded, info: RuntimeInfo) -> Measurement:
    """Blocks of equal samples. Nothing of the host is in it, so the same task always gives the same measurement."""
    executable = loaded.executable
    assert isinstance(executable, SimulatedExecutable)
    times = (executable.latency_ns,) * setup.samples_per_block
    blocks = (Block(thread_cpu_ns=times, wall_ns=times),) * max(setup.min_blocks, _SIMULATED_BLOCKS)
    samples = Samples(blocks=blocks, iterations_per_sample=1, warmup_runs=0)
    wrong = VerdictReason.WRONG_OUTPUT in loaded.findings
    return Measurement(
        provenance=_provenance(setup, info, executable, Source.SIMULATED, (), Conditions()),
        blocks=samples.blocks,
        iterations_per_sample=samples.iterations_per_sample,
        warmup_runs=samples.warmup_runs,
        statistics=summarize(samples.blocks, setup.clock),
        verdict=Verdict.REJECTED if wrong else Verdict.TRUSTED,
        reasons=(VerdictReason.WRONG_OUTPUT,) if wrong else (),
        before=Conditions(),
        after=Conditions(),
        output_sha256=loaded.output_sha256,
        outputs=_as_tuples(loaded),
        op_ns=executable.op_ns(1) if loaded.wants_profile else (),
        memory_bytes=executable.memory_bytes,
    )


def _provenance(
    setup: MeasuringSetup,
    info: RuntimeInfo,
    executable: Executable,
    source: Source,
    affinity: tuple[int, ...],
    conditions: Conditions,
) -> Provenance:
    return Provenance(
        source=source,
        runtime=info.name,
        runtime_version=info.version,
        runtime_sha256=info.binary_sha256,
        isa=info.isa,
        threads=setup.threads,
        agent_version=__version__,
        affinity=affinity,
        governor=conditions.governor,
        mode=executable.mode,
    )


def _sha256(outputs: Sequence[FloatArray]) -> str:
    digest = hashlib.sha256()
    for output in outputs:
        digest.update(output.astype("<f4", copy=False).tobytes())
    return digest.hexdigest()


def _as_tuples(loaded: _Loaded) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(output.tolist()) for output in loaded.outputs) if loaded.wants_outputs else ()
