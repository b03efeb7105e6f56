"""Whether faults are caught, and how often a verdict raises an alarm where nothing was done.

A fault counts as caught if its verdict has the reason that belongs to it; a report that contradicts its samples, if the
server refuses it. An undisturbed run counts as a false alarm if its verdict is not TRUSTED, whatever the machine did by
itself meanwhile: `foreign_share` says how busy others kept the core.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.latency.competitor import competing_on
from bench.latency.faults import DEVICE_FAULTS, DeviceFault, Stage, StagedExecutable, StagedReference
from bench.latency.spread import KERNELS, convolution
from device_agent.contracts import (
    Clock,
    KernelSpec,
    KernelTask,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    RuntimeInfo,
    VerdictReason,
)
from device_agent.contracts.statistics import summarize
from device_agent.contracts.verdict import foreign_share
from device_agent.measuring.conditions import ConditionsReader
from device_agent.measuring.pinning import choose_cores
from device_agent.measuring.reference_kernel import make_reference_kernel
from device_agent.measuring.task import Surroundings, measure_task
from device_agent.measuring.usual import UsualReferences
from device_agent.runtimes import Executable, RuntimeUnavailable, make_runtime
from device_agent.runtimes.base import FloatArray
from device_agent.runtimes.tflite import TfliteRuntime
from server.fleet.checking import judged, why_inconsistent

_FULL_REPEATS, _QUICK_REPEATS = 10, 1
_FULL_UNDISTURBED, _QUICK_UNDISTURBED = 120, 12
_BUDGET_S = 0.3
#: Trees of devices with at least as many cores as are named by them; "/" is this machine itself.
_UNDISTURBED_ROOTS = ("/", "raspberry-pi-4", "/", "x86-server")

SETUP = MeasuringSetup(runtime="native", budget_s=_BUDGET_S)
WALL = replace(SETUP, clock=Clock.WALL)
#: Long enough that the block at which a fault begins is reached on a busy machine, too.
STAGED = replace(SETUP, budget_s=3.0, max_blocks=8)


@dataclass(frozen=True, slots=True)
class Injected:
    """One fault that was put in, and what became of it."""

    name: str
    caught: bool
    seen: str


class StagedRuntime:
    """The native runtime with executables that are changed by `wrap`."""

    def __init__(self, wrap: Callable[[Executable], Executable]) -> None:
        self._runtime = make_runtime("native")
        self._wrap = wrap

    def info(self) -> RuntimeInfo:
        return self._runtime.info()

    def load_kernel(self, kernel: KernelSpec, threads: int) -> Executable:
        return self._wrap(self._runtime.load_kernel(kernel, threads))

    def load_network(self, *arguments: Any) -> Executable:
        return self._wrap(self._runtime.load_network(*arguments))


def verdicts(quick: bool = False) -> dict[str, Any]:
    """Inject every fault, run undisturbed, and count."""
    injected: list[Injected] = []
    for number in range(_QUICK_REPEATS if quick else _FULL_REPEATS):
        kernel = convolution(*KERNELS[number % len(KERNELS)])
        injected += _injections(kernel)
    alarms, share = _undisturbed(_QUICK_UNDISTURBED if quick else _FULL_UNDISTURBED)
    by_fault: dict[str, list[int]] = {}
    for fault in injected:
        counts = by_fault.setdefault(fault.name, [0, 0])
        counts[0] += 1
        counts[1] += fault.caught
    return {
        "injected_faults": len(injected),
        "caught": sum(fault.caught for fault in injected),
        "undisturbed": len(alarms),
        "false_alarms": sum(bool(reasons) for reasons in alarms),
        "alarms_by_reason": dict(Counter(reason for reasons in alarms for reason in reasons)),
        "foreign_share": share,
        "by_fault": by_fault,
        "missed": [f"{fault.name}: {fault.seen}" for fault in injected if not fault.caught],
    }


def _injections(kernel: KernelSpec) -> Iterator[Injected]:
    for fault in DEVICE_FAULTS:
        yield _device_fault(kernel, fault)
    yield _contention(kernel)
    yield _quota(kernel)
    yield _another_speed(kernel)
    yield from _wrong_outputs(kernel)
    yield from _wrong_delegate(kernel)
    yield from _broken_reports(kernel)


def _core_of_trees() -> int:
    """A core that this process may use and that all trees have (the phone's limits are those of its slowest cores)."""
    return max((core for core in choose_cores(1 << 10) if core < 4), default=0)


def _measured(kernel: KernelSpec, setup: MeasuringSetup, around: Surroundings) -> Measurement:
    result = measure_task(KernelTask(kernel=kernel, setup=setup), surroundings=around)
    if isinstance(result, MeasurementFailure):
        raise SystemExit(f"a measurement failed ({result.reason}): {result.detail}")
    return result


def _outcome(name: str, result: Measurement, *expected: VerdictReason) -> Injected:
    seen = ", ".join(reason.value for reason in result.reasons) or "trusted"
    return Injected(name, bool(set(expected) & set(result.reasons)), seen)


def _staged(kernel: KernelSpec, tree: str, setup: MeasuringSetup, fault: DeviceFault | None = None) -> Measurement:
    core = _core_of_trees()
    with tempfile.TemporaryDirectory() as folder:
        stage = Stage(tree, Path(folder), core, {} if fault is None else fault.script)
        return _measured(
            kernel,
            setup,
            Surroundings(
                cores=(core,),
                root=stage.root,
                make_runtime=lambda _name: StagedRuntime(
                    lambda executable: StagedExecutable(executable, on_repeat=stage.candidate_runs)
                ),
                make_reference_kernel=lambda: StagedReference(make_reference_kernel(), stage),
            ),
        )


def _device_fault(kernel: KernelSpec, fault: DeviceFault) -> Injected:
    return _outcome(fault.name, _staged(kernel, fault.tree, STAGED, fault), *fault.expected)


def _contention(kernel: KernelSpec) -> Injected:
    cores = choose_cores(1)
    with competing_on(cores):
        result = _measured(kernel, WALL, Surroundings(cores=cores))
    return _outcome("contention: a process on the same core", result, VerdictReason.CONTENTION)


def _quota(kernel: KernelSpec) -> Injected:
    result = _staged(kernel, "container-without-sysfs", WALL)
    return _outcome("quota: half a core", result, VerdictReason.CPU_QUOTA)


def _another_speed(kernel: KernelSpec) -> Injected:
    """A machine at 1.3 times its usual speed, without a sensor that says so."""
    cores = choose_cores(1)
    now = _measured(kernel, SETUP, Surroundings(cores=cores)).statistics
    assert now.reference_name is not None
    assert now.reference_ns is not None
    around = Surroundings(cores=cores, usual_references={now.reference_name: 1.3 * now.reference_ns})
    return _outcome("speed: no sensor shows it", _measured(kernel, SETUP, around), VerdictReason.REFERENCE_DRIFTED)


def _wrong_outputs(kernel: KernelSpec) -> Iterator[Injected]:
    def one_value(output: FloatArray) -> FloatArray:
        spoilt = output.copy()
        spoilt[len(spoilt) // 2] += np.float32(0.05 * np.abs(output).max())
        return spoilt

    def no_number(output: FloatArray) -> FloatArray:
        spoilt = output.copy()
        spoilt[-1] = np.nan
        return spoilt

    spoils: dict[str, Callable[[FloatArray], FloatArray]] = {
        "all 1 % too large": lambda output: output * np.float32(1.01),
        "one value": one_value,
        "not a number": no_number,
    }
    for name, spoil in spoils.items():
        runtime = StagedRuntime(partial(StagedExecutable, spoil=spoil))
        around = Surroundings(cores=choose_cores(1), make_runtime=lambda _name, runtime=runtime: runtime)
        result = _measured(kernel, SETUP, around)
        yield _outcome(f"output: {name}", result, VerdictReason.WRONG_OUTPUT)


def _wrong_delegate(kernel: KernelSpec) -> Iterator[Injected]:
    """TFLite without XNNPACK: nothing where there is no TFLite."""
    try:
        runtime = TfliteRuntime()
    except RuntimeUnavailable:
        return
    module = runtime._interpreter_module
    plain = partial(
        module.Interpreter, experimental_op_resolver_type=module.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES
    )
    runtime._interpreter_module = _Module(plain)  # type: ignore[assignment]
    around = Surroundings(cores=choose_cores(1), make_runtime=lambda _name: runtime)
    result = _measured(kernel, replace(SETUP, runtime="tflite"), around)
    yield _outcome("delegate: XNNPACK does not take it", result, VerdictReason.WRONG_DELEGATE)


@dataclass(frozen=True, slots=True)
class _Module:
    """As much of TFLite's module as the runtime uses."""

    Interpreter: Callable[..., Any]


def _broken_reports(kernel: KernelSpec) -> Iterator[Injected]:
    """Reports whose samples were cut: refused by the server, or marked by its verdict."""
    whole = _measured(kernel, SETUP, Surroundings(cores=choose_cores(1)))
    first, rest = whole.blocks[0], whole.blocks[1:]
    shorter = replace(first, wall_ns=first.wall_ns[:-1], thread_cpu_ns=first.thread_cpu_ns[:-1])
    faster = replace(whole.statistics, median_ns=0.9 * whole.statistics.median_ns)
    refused = {
        "no samples": replace(whole, blocks=()),
        "a block is missing": replace(whole, blocks=rest),
        "a sample is missing": replace(whole, blocks=(shorter, *rest)),
        "one clock is missing": replace(whole, blocks=(replace(first, wall_ns=()), *rest)),
        "a better median": replace(whole, statistics=faster),
    }
    for name, report in refused.items():
        problem = why_inconsistent(report, SETUP)
        yield Injected(f"report: {name}", problem is not None, problem or "accepted")
    cut = whole.blocks[:3]
    consistent = replace(whole, blocks=cut, statistics=summarize(cut, SETUP.clock, whole.statistics.reference_name))
    yield _outcome("report: cut with its statistics", judged(consistent, SETUP), VerdictReason.TOO_FEW_SAMPLES)


def _undisturbed(count: int) -> tuple[list[tuple[str, ...]], float | None]:
    """Runs without any fault; the reasons of each verdict, and how busy others kept this machine's core."""
    usual = UsualReferences()
    alarms: list[tuple[str, ...]] = []
    cores = choose_cores(1)
    reader = ConditionsReader(core=cores[0] if cores else 0, alone=True)
    before = reader.read()
    for number in range(count):
        kernel = convolution(*KERNELS[number % len(KERNELS)])
        root = _UNDISTURBED_ROOTS[number % len(_UNDISTURBED_ROOTS)]
        if root == "/":
            around = Surroundings(cores=cores, usual_references=usual.medians())
            result = _measured(kernel, SETUP, around)
            usual.add(result.statistics)
        else:
            result = _staged(kernel, root, SETUP)
        alarms.append(tuple(reason.value for reason in result.reasons))
    share = foreign_share(before, reader.read())
    return alarms, None if share is None else round(share, 3)
