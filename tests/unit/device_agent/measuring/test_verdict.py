"""Every reason of a verdict, provoked by the samples or the conditions that it is about."""

from __future__ import annotations

import pytest

from device_agent.contracts import Block, Clock, Conditions, MeasuringSetup, Verdict, VerdictReason
from device_agent.measuring.statistics import summarize
from device_agent.measuring.verdict import judge

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
