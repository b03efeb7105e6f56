"""Measurements that are made of several fresh processes, and what the runner knows from earlier ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import pytest

from device_agent.contracts import (
    Block,
    Clock,
    Conditions,
    FailureReason,
    KernelTask,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    NetworkTask,
    ThermalMode,
    Verdict,
    VerdictReason,
)
from device_agent.contracts.statistics import summarize
from device_agent.contracts.verdict import foreign_share, judge
from device_agent.measuring.processes import measure_in_processes, merge, part_of
from device_agent.measuring.usual import UsualReferences
from tests.samples import flat_statistics
from tests.unit.device_agent.agent.agent_samples import kernel, measurement

SETUP = MeasuringSetup(runtime="native", processes=6, budget_s=12.0)
TASK = KernelTask(kernel=kernel(), setup=SETUP)


def part(median_ns: float, **changes: object) -> Measurement:
    """What one process took: three equal blocks."""
    times = (median_ns,) * 4
    blocks = (Block(thread_cpu_ns=times, wall_ns=times, reference_ns=(500.0,)),) * 3
    values = {"blocks": blocks, "statistics": summarize(blocks, Clock.THREAD_CPU, "reference"), "duration_s": 1.5}
    return dataclasses.replace(measurement(), **{**values, **changes})  # type: ignore[arg-type]


def giving(medians: Sequence[float]) -> tuple[Callable[[KernelTask | NetworkTask], Measurement], list[MeasuringSetup]]:
    """Something that runs parts, and the setups that it was given."""
    asked: list[MeasuringSetup] = []
    left: Iterator[float] = iter(medians)

    def run(task: KernelTask | NetworkTask) -> Measurement:
        asked.append(task.setup)
        return part(next(left))

    return run, asked


def merged(parts: Sequence[Measurement], setup: MeasuringSetup = SETUP) -> Measurement:
    result = merge(parts, setup)
    assert isinstance(result, Measurement)
    return result


def test_one_process_is_left_alone() -> None:
    run, asked = giving([1000.0])
    single = KernelTask(kernel=kernel(), setup=MeasuringSetup(runtime="native"))
    assert measure_in_processes(single, run) == part(1000.0)
    assert asked == [single.setup]


def test_processes_that_agree_end_at_the_number_asked_for() -> None:
    run, asked = giving([1000, 1001, 999, 1002, 998, 1000])
    result = measure_in_processes(TASK, run)
    assert isinstance(result, Measurement)
    assert (result.verdict, result.statistics.num_processes, result.statistics.num_blocks) == (Verdict.TRUSTED, 6, 18)
    assert [block.process for block in result.blocks] == [i for i in range(6) for _ in range(3)]
    assert {setup.budget_s for setup in asked} == {2.0}
    assert {(setup.processes, setup.min_blocks, setup.max_blocks) for setup in asked} == {(1, 3, 3)}
    assert (result.duration_s, result.warmup_runs) == (9.0, 120)
    assert result.statistics == summarize(result.blocks, Clock.THREAD_CPU, "reference")


def test_processes_are_added_while_they_disagree() -> None:
    run, asked = giving([1000, 1100, 1000, 1000, 900, 1000, *[1000] * 6])
    result = measure_in_processes(TASK, run)
    assert isinstance(result, Measurement)
    assert 6 < len(asked) < 12
    assert result.verdict is Verdict.TRUSTED
    run, asked = giving([1000 + 100 * (i % 3) for i in range(12)])
    result = measure_in_processes(TASK, run)
    assert isinstance(result, Measurement)
    assert len(asked) == 12
    assert result.reasons == (VerdictReason.CI_TOO_WIDE,)


def test_a_failure_of_one_process_is_the_failure() -> None:
    failure = MeasurementFailure(reason=FailureReason.DEVICE_NOT_READY, detail="hot")
    assert measure_in_processes(TASK, lambda _task: failure) is failure


def test_a_sustained_run_is_loaded_less_once_it_is_hot() -> None:
    setup = MeasuringSetup(runtime="native", processes=6, thermal_mode=ThermalMode.SUSTAINED, load_s=100.0)
    assert [part_of(setup, i).load_s for i in range(3)] == [100.0, 20.0, 20.0]


def test_processes_of_different_binaries_are_no_measurement() -> None:
    other = part(1000.0)
    other = dataclasses.replace(other, provenance=dataclasses.replace(other.provenance, runtime_version="2"))
    result = merge([part(1000.0), other], SETUP)
    assert isinstance(result, MeasurementFailure)


def test_processes_that_compute_different_outputs_are_wrong() -> None:
    parts = [part(1000.0) for _ in range(5)] + [part(1000.0, output_sha256="1" * 64)]
    assert merged(parts).reasons == (VerdictReason.WRONG_OUTPUT,)


def test_what_one_process_found_counts_for_all() -> None:
    parts = [part(1000.0) for _ in range(5)] + [part(1000.0, reasons=(VerdictReason.WRONG_DELEGATE,))]
    assert (merged(parts).verdict, merged(parts).reasons) == (Verdict.REJECTED, (VerdictReason.WRONG_DELEGATE,))


@pytest.mark.parametrize("place", [0, 3, 5])
def test_throttling_in_any_process_rejects(place: int) -> None:
    parts = [part(1000.0, after=Conditions(throttled=i == place)) for i in range(6)]
    assert merged(parts).reasons == (VerdictReason.THROTTLED,)


def test_counters_of_processes_are_added_up() -> None:
    def taken(start_s: float, busy_s: float) -> Measurement:
        before = Conditions(uptime_s=start_s, core_busy_s=start_s / 2, process_cpu_s=3.0)
        after = Conditions(uptime_s=start_s + 1, core_busy_s=start_s / 2 + busy_s, process_cpu_s=3.5)
        return part(1000.0, before=before, after=after)

    # What happens on the core between two processes is not part of the measurement.
    result = merged([taken(100.0, 0.5), taken(250.0, 0.75)])
    assert foreign_share(result.before, result.after) == pytest.approx(0.125)


def test_the_server_comes_to_the_same_verdict() -> None:
    result = merged([part(1000.0 + 60 * i) for i in range(6)])
    again = judge(result.blocks, result.statistics, SETUP, result.before, result.after)
    assert again == (result.verdict, result.reasons) == (Verdict.NOISY, (VerdictReason.CI_TOO_WIDE,))


def test_nothing_is_usual_before_it_was_seen_often() -> None:
    usual = UsualReferences()
    for reference_ns in (10.0, 11.0, 30.0, 10.5, 9.5):
        usual.add(flat_statistics(100.0, reference_ns=reference_ns, reference_name="reference"))
    assert usual.medians() == {}
    usual.add(flat_statistics(100.0, reference_ns=10.0, reference_name="reference"))
    usual.add(flat_statistics(100.0))
    assert usual.medians() == {"reference": 10.25}


def test_what_is_usual_follows_a_device_that_was_changed() -> None:
    usual = UsualReferences()
    for reference_ns in [10.0] * 40 + [20.0] * 21:
        usual.add(flat_statistics(100.0, reference_ns=reference_ns, reference_name="reference"))
    assert usual.medians() == {"reference": 20.0}
