"""Every reason of a verdict, provoked by the samples or the conditions that it is about."""

from __future__ import annotations

from dataclasses import replace

import pytest

from device_agent.contracts import Block, Clock, Conditions, MeasuringSetup, ThermalMode, Verdict, VerdictReason
from device_agent.contracts.statistics import summarize
from device_agent.contracts.verdict import foreign_share, judge, moved_blocks

SETUP = MeasuringSetup(runtime="fake")
STEADY = (100_000.0, 100_100.0, 99_900.0, 100_050.0, 99_950.0, 100_000.0)


def blocks_of(
    medians: tuple[float, ...] = STEADY, *, load: float = 1.0, references: tuple[float, ...] = ()
) -> tuple[Block, ...]:
    return tuple(
        Block(
            thread_cpu_ns=(m,) * 5,
            wall_ns=(m * load,) * 5,
            reference_ns=(references[i],) * 3 if references else (),
        )
        for i, m in enumerate(medians)
    )


def verdict_of(
    blocks: tuple[Block, ...],
    before: Conditions | None = None,
    after: Conditions | None = None,
    setup: MeasuringSetup = SETUP,
    findings: tuple[VerdictReason, ...] = (),
) -> tuple[Verdict, tuple[VerdictReason, ...]]:
    statistics = summarize(blocks, setup.clock)
    return judge(blocks, statistics, setup, before or Conditions(), after or Conditions(), findings)


def test_steady_samples_are_trusted() -> None:
    assert verdict_of(blocks_of()) == (Verdict.TRUSTED, ())


def test_a_wide_interval_is_noisy() -> None:
    blocks = blocks_of((100e3, 110e3, 95e3, 105e3, 90e3, 100e3))
    assert verdict_of(blocks) == (Verdict.NOISY, (VerdictReason.CI_TOO_WIDE,))


def test_a_very_wide_interval_is_rejected() -> None:
    blocks = blocks_of((100e3, 210e3, 95e3, 105e3, 50e3, 100e3))
    assert verdict_of(blocks) == (Verdict.REJECTED, (VerdictReason.CI_TOO_WIDE,))


@pytest.mark.parametrize("num_blocks", [1, 3, 5])
def test_too_few_blocks(num_blocks: int) -> None:
    assert verdict_of(blocks_of(STEADY[:num_blocks])) == (Verdict.NOISY, (VerdictReason.TOO_FEW_SAMPLES,))


def test_fewer_blocks_than_asked_for() -> None:
    setup = MeasuringSetup(runtime="fake", min_blocks=8)
    assert verdict_of(blocks_of(), setup=setup) == (Verdict.NOISY, (VerdictReason.TOO_FEW_SAMPLES,))


def test_contention_counts_against_wall_time_only() -> None:
    contended = blocks_of(load=2.0)
    assert verdict_of(contended)[0] is Verdict.TRUSTED
    setup = MeasuringSetup(runtime="fake", clock=Clock.WALL)
    assert verdict_of(contended, setup=setup) == (Verdict.NOISY, (VerdictReason.CONTENTION,))


def test_contention_explains_a_wide_interval_of_cpu_time() -> None:
    blocks = blocks_of((100e3, 110e3, 95e3, 105e3, 90e3, 100e3), load=2.0)
    assert verdict_of(blocks)[1] == (VerdictReason.CI_TOO_WIDE, VerdictReason.CONTENTION)


def test_outliers_of_wall_time_are_contention() -> None:
    wall = (100e3, 101e3, 99e3, 100e3, 300e3)
    blocks = tuple(Block(thread_cpu_ns=wall, wall_ns=wall) for _ in range(6))
    setup = MeasuringSetup(runtime="fake", clock=Clock.WALL)
    assert VerdictReason.CONTENTION in verdict_of(blocks, setup=setup)[1]


@pytest.mark.parametrize(
    ("before_mhz", "after_mhz", "celsius", "verdict", "reasons"),
    [
        (2000, 1950, 80, Verdict.TRUSTED, ()),
        (2000, 1850, 80, Verdict.NOISY, (VerdictReason.FREQUENCY_MOVED,)),
        (1500, 2000, 40, Verdict.NOISY, (VerdictReason.FREQUENCY_MOVED,)),
        (2000, 1500, 40, Verdict.NOISY, (VerdictReason.FREQUENCY_MOVED,)),
        (2000, 1500, 80, Verdict.REJECTED, (VerdictReason.THROTTLED, VerdictReason.FREQUENCY_MOVED)),
        (2000, 2000, 90, Verdict.NOISY, (VerdictReason.TOO_HOT,)),
    ],
)
def test_frequency_and_heat(
    before_mhz: int, after_mhz: int, celsius: float, verdict: Verdict, reasons: tuple[VerdictReason, ...]
) -> None:
    before = Conditions(frequency_hz=before_mhz * 10**6, temperature_celsius=40)
    after = Conditions(frequency_hz=after_mhz * 10**6, temperature_celsius=celsius)
    assert verdict_of(blocks_of(), before, after) == (verdict, reasons)


def test_a_changed_governor_is_a_moved_frequency() -> None:
    reasons = verdict_of(blocks_of(), Conditions(governor="performance"), Conditions(governor="powersave"))[1]
    assert reasons == (VerdictReason.FREQUENCY_MOVED,)


def test_a_drifting_reference_kernel() -> None:
    steady = blocks_of(references=(10.0, 10.1, 9.9, 10.0, 10.1, 10.0))
    assert verdict_of(steady)[0] is Verdict.TRUSTED
    drifting = blocks_of(references=(10.0, 11.0, 12.0, 13.0, 14.0, 15.0))
    assert verdict_of(drifting) == (Verdict.NOISY, (VerdictReason.REFERENCE_DRIFTED,))


@pytest.mark.parametrize(
    "finding", [VerdictReason.WRONG_OUTPUT, VerdictReason.WRONG_DELEGATE, VerdictReason.SPARSE_PATH_NOT_TAKEN]
)
def test_findings_reject(finding: VerdictReason) -> None:
    assert verdict_of(blocks_of(), findings=(finding,)) == (Verdict.REJECTED, (finding,))


def moving(frequencies_mhz: tuple[tuple[int, int], ...]) -> tuple[Block, ...]:
    """Steady blocks with the frequencies before and after each."""
    return tuple(
        replace(block, frequency_before_hz=first * 10**6, frequency_after_hz=last * 10**6)
        for block, (first, last) in zip(blocks_of(), frequencies_mhz, strict=True)
    )


def test_a_frequency_that_moves_between_the_ends_is_seen_in_the_blocks() -> None:
    there_and_back = moving(((1800, 1800), (1800, 1800), (1800, 1200), (1200, 1800), (1800, 1800), (1800, 1800)))
    assert moved_blocks(there_and_back) == (2, 3)
    same = Conditions(frequency_hz=1800 * 10**6)
    assert verdict_of(there_and_back, same, same) == (Verdict.NOISY, (VerdictReason.FREQUENCY_MOVED,))
    assert verdict_of(moving(((1800, 1830),) * 6))[0] is Verdict.TRUSTED


def test_one_stray_block_of_many_does_not_count() -> None:
    blocks = tuple(replace(b, frequency_after_hz=1800) for b in blocks_of(STEADY * 4))
    assert verdict_of((replace(blocks[0], frequency_after_hz=1500), *blocks[1:]))[0] is Verdict.TRUSTED


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Conditions(), Conditions(throttled=True)),
        (Conditions(throttled=True), Conditions(throttled=False)),
        (Conditions(throttle_count=17), Conditions(throttle_count=18)),
        (Conditions(frequency_limit_hz=2_800_000_000), Conditions(frequency_limit_hz=2_400_000_000)),
    ],
)
def test_what_the_device_says_of_throttling_rejects(before: Conditions, after: Conditions) -> None:
    assert verdict_of(blocks_of(), before, after) == (Verdict.REJECTED, (VerdictReason.THROTTLED,))


def test_throttling_is_what_a_sustained_run_is_about() -> None:
    setup = MeasuringSetup(runtime="fake", thermal_mode=ThermalMode.SUSTAINED)
    after = Conditions(throttled=True, temperature_celsius=92.0)
    blocks = moving(((1800, 1200),) * 6)
    assert verdict_of(blocks, after=after, setup=setup) == (Verdict.TRUSTED, ())
    assert verdict_of(blocks, after=after, setup=setup, findings=(VerdictReason.NOT_STEADY,))[0] is Verdict.NOISY


@pytest.mark.parametrize(("busy_s", "verdict"), [(1.05, Verdict.TRUSTED), (1.5, Verdict.NOISY)])
def test_others_on_the_core_are_seen_in_its_counters(busy_s: float, verdict: Verdict) -> None:
    setup = MeasuringSetup(runtime="fake", clock=Clock.WALL)
    before = Conditions(uptime_s=100.0, core_busy_s=40.0, process_cpu_s=1.0)
    after = Conditions(uptime_s=102.0, core_busy_s=40.0 + busy_s, process_cpu_s=2.0)
    assert verdict_of(blocks_of(), before, after, setup)[0] is verdict
    assert foreign_share(before, after) == pytest.approx((busy_s - 1) / 2)
    assert foreign_share(before, replace(after, uptime_s=100.1)) is None  # too short for counters of 10 ms


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        (Conditions(), Conditions(cpu_quota=2.0), Verdict.TRUSTED),
        (Conditions(), Conditions(cpu_quota=0.5), Verdict.NOISY),
        (Conditions(quota_throttled_s=1.0), Conditions(quota_throttled_s=1.3), Verdict.NOISY),
    ],
)
def test_a_quota_counts_against_wall_time(before: Conditions, after: Conditions, verdict: Verdict) -> None:
    setup = MeasuringSetup(runtime="fake", clock=Clock.WALL)
    assert verdict_of(blocks_of(), before, after, setup)[0] is verdict
    assert verdict_of(blocks_of(), before, after)[0] is Verdict.TRUSTED


def test_a_reference_kernel_far_from_its_usual_time() -> None:
    blocks = blocks_of(references=(10.0,) * 6)
    for usual_ns, verdict in ((10.5, Verdict.TRUSTED), (13.0, Verdict.NOISY), (8.0, Verdict.NOISY)):
        assert (
            judge(blocks, summarize(blocks, SETUP.clock), SETUP, Conditions(), Conditions(), (), usual_ns)[0] is verdict
        )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (Conditions(screen_on=False), Conditions(screen_on=True)),
        (Conditions(charging=True), Conditions(charging=False)),
        (Conditions(cpuset="/top-app"), Conditions(cpuset="/background")),
    ],
)
def test_a_phone_whose_state_changes(before: Conditions, after: Conditions) -> None:
    assert verdict_of(blocks_of(), before, after) == (Verdict.NOISY, (VerdictReason.RUN_MODE_CHANGED,))


def test_with_several_processes_they_are_the_unit() -> None:
    # Each process is steady in itself and differs from the others: blocks alone would look like eighteen good ones.
    medians = (100e3, 108e3, 94e3, 103e3, 90e3, 110e3)
    blocks = tuple(replace(b, process=i) for i, m in enumerate(medians) for b in blocks_of((m,) * 3))
    setup = MeasuringSetup(runtime="fake", processes=6)
    assert verdict_of(blocks, setup=setup) == (Verdict.NOISY, (VerdictReason.CI_TOO_WIDE,))
    statistics = summarize(blocks, setup.clock)
    assert (statistics.num_processes, statistics.ci95_low_ns, statistics.ci95_high_ns) == (6, 90e3, 110e3)
    steady = tuple(replace(b, process=0) for b in blocks_of(STEADY * 2))
    assert verdict_of(steady, setup=setup) == (Verdict.NOISY, (VerdictReason.TOO_FEW_SAMPLES,))
