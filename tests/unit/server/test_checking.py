"""Reports that contradict their own samples."""

from __future__ import annotations

from dataclasses import replace

import pytest

from device_agent.contracts import (
    Block,
    Conditions,
    Measurement,
    MeasuringSetup,
    Statistics,
    TaskReport,
    Verdict,
    VerdictReason,
)
from device_agent.contracts.statistics import summarize
from server.fleet.checking import judged, why_inconsistent
from server.states import TaskState
from tests.unit.server.server_lab import SETUP, ServerLab, measurement, report_of


def of_blocks(blocks: tuple[Block, ...], statistics: Statistics | None = None) -> Measurement:
    return replace(measurement(), blocks=blocks, statistics=statistics or summarize(blocks, SETUP.clock))


def blocks_of(*medians: float) -> tuple[Block, ...]:
    return tuple(Block(thread_cpu_ns=(m, m), wall_ns=(m, m), reference_ns=(5.0,)) for m in medians)


STEADY = blocks_of(1000, 1001, 999, 1000, 1002, 998)


def test_a_sound_report_agrees_with_its_samples() -> None:
    sound = of_blocks(STEADY)
    assert why_inconsistent(sound, SETUP) is None
    assert judged(sound, SETUP) is sound


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (of_blocks((), summarize(STEADY, SETUP.clock)), "no samples"),
        (of_blocks(STEADY[:-1], summarize(STEADY, SETUP.clock)), "num_samples is 12, not 10"),
        (of_blocks((replace(STEADY[0], wall_ns=(1.0,)), *STEADY[1:])), "block 0 of the report lacks samples"),
        (of_blocks(STEADY, summarize(blocks_of(*[900.0] * 6), SETUP.clock)), "median_ns is 900.0, not 1000.0"),
        (of_blocks(STEADY, replace(summarize(STEADY, SETUP.clock), ci95_low_ns=None)), "ci95_low_ns is None"),
        (of_blocks(STEADY, replace(summarize(STEADY, SETUP.clock), reference_ratio=1.0)), "reference_ratio is 1.0"),
    ],
)
def test_what_does_not_follow_from_the_samples_is_named(broken: Measurement, words: str) -> None:
    assert words in (why_inconsistent(broken, SETUP) or "")


def test_an_older_agent_sends_fewer_statistics() -> None:
    older = replace(summarize(STEADY, SETUP.clock), stdev_ns=None, trimmed_mean_ns=None, unit_cv=None)
    assert why_inconsistent(of_blocks(STEADY, older), SETUP) is None


def test_samples_that_were_cut_with_their_statistics_are_too_few() -> None:
    cut = of_blocks(STEADY[:3])
    assert why_inconsistent(cut, SETUP) is None
    found = judged(cut, SETUP)
    assert (found.verdict, found.reasons) == (Verdict.NOISY, (VerdictReason.TOO_FEW_SAMPLES,))


def test_a_verdict_that_is_too_mild_is_put_right() -> None:
    throttled = replace(of_blocks(STEADY), after=Conditions(throttled=True))
    found = judged(throttled, SETUP)
    assert (found.verdict, found.reasons) == (Verdict.REJECTED, (VerdictReason.THROTTLED,))


def test_a_stricter_verdict_of_the_device_stays() -> None:
    wrong = replace(of_blocks(STEADY), verdict=Verdict.REJECTED, reasons=(VerdictReason.WRONG_OUTPUT,))
    assert judged(wrong, SETUP) is wrong
    stricter = replace(of_blocks(STEADY), verdict=Verdict.NOISY, reasons=(VerdictReason.CONTENTION,))
    assert judged(stricter, SETUP) is stricter


def test_the_setup_decides_which_samples_count() -> None:
    several = MeasuringSetup(runtime="native", processes=6)
    assert judged(of_blocks(STEADY), several).reasons == (VerdictReason.TOO_FEW_SAMPLES,)


def test_a_report_that_lacks_samples_is_a_failure_and_tried_again(lab: ServerLab) -> None:
    agent = lab.agent()
    (task_id,) = lab.tasks(agent)
    (lease,) = lab.lease(agent)
    broken = of_blocks(STEADY[:-1], summarize(STEADY, SETUP.clock))
    assert lab.report(agent, report_of(lease, broken)) == ["accepted"]
    task = lab.task(task_id)
    assert (task.state, task.failures) == (TaskState.PENDING, 1)
    lab.make_ready(task_id)
    (again,) = lab.lease(agent)
    report: TaskReport = report_of(again, of_blocks(STEADY))
    assert lab.report(agent, report) == ["accepted"]
    assert lab.task(task_id).state is TaskState.SUCCEEDED


def test_a_corrected_verdict_is_what_is_stored(lab: ServerLab) -> None:
    agent = lab.agent()
    (task_id,) = lab.tasks(agent)
    (lease,) = lab.lease(agent)
    lab.report(agent, report_of(lease, of_blocks(STEADY[:3])))
    stored = lab.source.measurement(task_id)
    assert (stored.verdict, stored.reasons) == (Verdict.NOISY, (VerdictReason.TOO_FEW_SAMPLES,))
