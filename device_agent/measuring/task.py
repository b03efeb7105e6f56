"""One task from its message to its measurement, in this process. `device_agent.child` puts a process around it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
    ThermalMode,
    Verdict,
    VerdictReason,
)
from device_agent.contracts.statistics import summarize
from device_agent.contracts.verdict import judge
from device_agent.measuring.benchmark import (
    SampleClock,
    Samples,
    Stopwatch,
    SystemSampleClock,
    prepare,
    take_samples,
)
from device_agent.measuring.conditions import ConditionsReader
from device_agent.measuring.loading import Loaded, TaskFailure, load_task
from device_agent.measuring.pinning import choose_cores, pinned
from device_agent.measuring.preflight import is_cold, limits_of, why_not_ready
from device_agent.measuring.reference_kernel import ReferenceKernel, make_reference_kernel
from device_agent.measuring.sustained import load_until_steady
from device_agent.runtimes import Runtime, RuntimeUnavailable, UnsupportedTask, make_runtime
from device_agent.runtimes.base import Executable
from device_agent.runtimes.simulated import SimulatedExecutable, SimulatedRuntime

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
    #: What reference kernels usually take on this device, in ns, by their names in the statistics.
    usual_references: Mapping[str, float] = field(default_factory=dict)


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
        return _simulated_measurement(setup, load_task(task, artifact, runtime), runtime.info())
    cores = choose_cores(setup.threads, around.root) if around.cores is None else around.cores
    # Pinned from here on: the native runtime tunes its tiles while loading, and that must be on the core that is timed.
    with pinned(cores) as affinity:
        # Time that others had is known of a core that this process is bound to.
        reader = ConditionsReader(root=around.root, core=affinity[0] if affinity else 0, alone=len(affinity) == 1)
        findings = _preflight(reader.read(), around.root, setup.thermal_mode)
        if set(affinity) != set(cores):
            findings.append(VerdictReason.NOT_PINNED)
        loaded = load_task(task, artifact, runtime)
        findings += loaded.findings
        reference = around.make_reference_kernel()
        reference_name = _reference_name(reference, setup.thermal_mode)
        watch = Stopwatch(around.clock, setup.budget_s)
        prepared = prepare(loaded.executable, reference, setup, around.clock, watch, loaded.subtracted)
        if setup.thermal_mode is ThermalMode.SUSTAINED:
            load = load_until_steady(
                loaded.executable,
                prepared.warm.iterations,
                around.clock,
                read=setup.clock,
                load_s=setup.load_s,
                read_celsius=lambda: reader.read().temperature_celsius,
            )
            prepared = dataclasses.replace(
                prepared, warm=dataclasses.replace(prepared.warm, runs=prepared.warm.runs + load.runs)
            )
            if not load.steady:
                findings.append(VerdictReason.NOT_STEADY)
            watch = Stopwatch(around.clock, setup.budget_s)
        # After warming up: a governor raises the clock under load, and that is no change of conditions.
        before = reader.read()
        samples = take_samples(prepared, setup, around.clock, watch, reader.frequency_hz)
        after = reader.read()
        statistics = summarize(samples.blocks, setup.clock, reference_name)
        usual_ns = around.usual_references.get(reference_name)
        verdict, reasons = judge(samples.blocks, statistics, setup, before, after, findings, usual_ns)
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
        usual_reference_ns=usual_ns,
        duration_s=total.elapsed_s,
    )


def _preflight(now: Conditions, root: Path, mode: ThermalMode) -> list[VerdictReason]:
    """What the beginning says against the measurement. Raises `TaskFailure` where the device is not ready."""
    limits = limits_of(now, root)
    # Starting this process may have warmed the device up past the limit for cold runs: that is for the verdict.
    not_ready = why_not_ready(now, limits, ThermalMode.ANY if mode is ThermalMode.COLD else mode)
    if not_ready is not None:
        raise TaskFailure(FailureReason.DEVICE_NOT_READY, not_ready)
    return [VerdictReason.NOT_COLD] if mode is ThermalMode.COLD and not is_cold(now, limits) else []


def _reference_name(reference: ReferenceKernel, mode: ThermalMode) -> str:
    """A hot device's reference kernel is slower, as the candidate is: their ratio is not that of a cool one."""
    return reference.name if mode is ThermalMode.ANY else f"{reference.name}, {mode.value}"


def _profile(loaded: Loaded, setup: MeasuringSetup, median_ns: float) -> tuple[float, ...]:
    """Times of single operators: a pass of its own, since reading clocks in between costs time."""
    if not loaded.wants_profile:
        return ()
    affordable = PROFILE_SHARE * setup.budget_s * 1e9 / max(median_ns, 1.0)
    return loaded.executable.op_ns(int(min(max(affordable, MIN_PROFILE_ROUNDS), MAX_PROFILE_ROUNDS)))


def _simulated_measurement(setup: MeasuringSetup, loaded: Loaded, info: RuntimeInfo) -> Measurement:
    """Blocks of equal samples. Nothing of the host is in it, so the same task always gives the same measurement."""
    executable = loaded.executable
    assert isinstance(executable, SimulatedExecutable)
    times = (executable.latency_ns,) * setup.samples_per_block
    count = max(setup.min_blocks, setup.processes, _SIMULATED_BLOCKS)
    # One process computed them all; the labels say how many a real device would have started.
    blocks = tuple(Block(thread_cpu_ns=times, wall_ns=times, process=i % setup.processes) for i in range(count))
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


def _as_tuples(loaded: Loaded) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(output.tolist()) for output in loaded.outputs) if loaded.wants_outputs else ()
