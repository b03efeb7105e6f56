"""Kernels that are timed as the difference of two networks, under a clock that only fake networks move."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from device_agent.contracts import (
    FailureReason,
    KernelTask,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    RuntimeInfo,
    Verdict,
    VerdictReason,
)
from device_agent.measuring.benchmark import Samples, Stopwatch, Subtracted, prepare, take_samples
from device_agent.measuring.task import Surroundings, measure_task
from device_agent.runtimes import UnsupportedTask
from device_agent.runtimes.difference import DifferenceExecutable
from tests.unit.device_agent.measuring.measuring_fakes import FakeClock, FakeKernel
from tests.unit.device_agent.runtimes.sparse_samples import pointwise

TREE = Path(__file__).parents[3] / "fixtures" / "sysfs" / "x86-virtual-machine"
OUTPUTS = (np.ones(3, np.float32), np.zeros(3, np.float32))


def take(
    more: FakeKernel, fewer: FakeKernel, clock: FakeClock, copies: int, **setup: object
) -> tuple[Samples, Stopwatch]:
    asked = MeasuringSetup(**{"runtime": "fake", **setup})  # type: ignore[arg-type]
    watch = Stopwatch(clock, asked.budget_s)
    subtracted = Subtracted(executable=fewer, copies=copies)
    prepared = prepare(more, None, asked, clock, watch, subtracted)
    return take_samples(prepared, asked, clock, watch), watch


def test_a_sample_is_the_difference_for_one_copy() -> None:
    clock = FakeClock()
    samples, _ = take(FakeKernel(clock, 70_000, load=2.0), FakeKernel(clock, 10_000, load=2.0), clock, 6)
    assert {ns for block in samples.blocks for ns in block.thread_cpu_ns} == {10_000.0}
    assert {ns for block in samples.blocks for ns in block.wall_ns} == {20_000.0}


def test_both_networks_run_as_often_and_in_turn() -> None:
    clock = FakeClock()
    more, fewer = FakeKernel(clock, 70_000), FakeKernel(clock, 10_000)
    samples, _ = take(more, fewer, clock, 6, min_sample_s=0.0005)
    assert samples.iterations_per_sample == 8  # of the longer network: 0.0005 s / 70 us
    count = sum(len(block.wall_ns) for block in samples.blocks)
    assert fewer.calls == [8] * (count + 1)  # once to warm up
    assert more.calls[-count:] == [8] * count


def test_drift_of_the_machine_cancels() -> None:
    clock = FakeClock()
    # Both get slower by 1 % a run; the networks are taken in turn, so their difference is hardly moved.
    more, fewer = (FakeKernel(clock, lambda run, cost=cost: cost * (1 + 0.0001 * run)) for cost in (8e5, 2e5))
    samples, _ = take(more, fewer, clock, 6, budget_s=60.0)
    medians = [np.median(block.thread_cpu_ns) for block in samples.blocks]
    assert np.ptp(medians) / np.mean(medians) < 0.05


def test_the_budget_counts_both_networks() -> None:
    clock = FakeClock()
    generator = np.random.default_rng(0)

    def noisy(cost: float) -> FakeKernel:
        return FakeKernel(clock, lambda _run: cost * (1 + 0.3 * generator.random()))

    samples, watch = take(noisy(9e6), noisy(8e6), clock, 6, budget_s=2.0, ci_half_width=0.001)
    assert watch.elapsed_s < 2.2
    assert len(samples.blocks) >= 6


class FakeRuntime:
    """A kernel of 10 us inside of networks of 80 and 20 us."""

    def __init__(self, *, agrees: bool = True, more_ns: float = 80_000, findings: tuple = ()) -> None:
        self.clock = FakeClock()
        self.agrees, self.more_ns, self.findings = agrees, more_ns, findings
        self.error: Exception | None = None

    def info(self) -> RuntimeInfo:
        return RuntimeInfo(name="fake", version="1", binary_sha256="ab" * 32, isa="abacus")

    def load_kernel(self, kernel: object, threads: int) -> DifferenceExecutable:
        if self.error is not None:
            raise self.error
        more = FakeKernel(self.clock, self.more_ns, findings=self.findings)
        more.mode = "sparse"
        return DifferenceExecutable(
            more=more, fewer=FakeKernel(self.clock, 20_000), copies=6, check=lambda: (OUTPUTS, self.agrees)
        )


def measure(runtime: FakeRuntime) -> Measurement | MeasurementFailure:
    task = KernelTask(kernel=pointwise(), setup=MeasuringSetup(runtime="fake"))
    around = Surroundings(
        cores=(),
        root=TREE,
        clock=runtime.clock,
        make_runtime=lambda _name: runtime,  # type: ignore[arg-type, return-value]
        make_reference_kernel=lambda: FakeKernel(runtime.clock, 20_000),  # type: ignore[arg-type, return-value]
    )
    return measure_task(task, surroundings=around)


def test_the_measurement_is_of_the_kernel() -> None:
    result = measure(FakeRuntime())
    assert isinstance(result, Measurement)
    assert (result.verdict, result.reasons) == (Verdict.TRUSTED, ())
    assert result.statistics.median_ns == 10_000
    assert result.provenance.mode == "sparse"
    assert len(result.output_sha256) == 64
    assert result.outputs == ()
    assert result.memory_bytes is None


def test_a_wrong_output_is_rejected() -> None:
    result = measure(FakeRuntime(agrees=False))
    assert isinstance(result, Measurement)
    assert (result.verdict, result.reasons) == (Verdict.REJECTED, (VerdictReason.WRONG_OUTPUT,))


def test_findings_of_either_network_count() -> None:
    result = measure(FakeRuntime(findings=(VerdictReason.WRONG_DELEGATE,)))
    assert isinstance(result, Measurement)
    assert (result.verdict, result.reasons) == (Verdict.REJECTED, (VerdictReason.WRONG_DELEGATE,))


@pytest.mark.parametrize("more_ns", [20_000, 19_000])
def test_a_kernel_that_takes_no_time_is_rejected(more_ns: float) -> None:
    result = measure(FakeRuntime(more_ns=more_ns))
    assert isinstance(result, Measurement)
    assert result.verdict is Verdict.REJECTED
    assert VerdictReason.CI_TOO_WIDE in result.reasons


def test_a_path_that_is_not_taken_is_a_failure_and_no_number() -> None:
    runtime = FakeRuntime()
    runtime.error = UnsupportedTask("nothing was timed")
    result = measure(runtime)
    assert isinstance(result, MeasurementFailure)
    assert (result.reason, result.detail) == (FailureReason.UNSUPPORTED, "nothing was timed")
