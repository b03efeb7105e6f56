"""How far a measurement can be trusted, with named reasons. Thresholds are constants, each with its ground."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from device_agent.contracts.measurement import (
    Block,
    Clock,
    Conditions,
    MeasuringSetup,
    Statistics,
    Verdict,
    VerdictReason,
)
from device_agent.measuring.statistics import (
    OUTLIER_MODIFIED_Z,
    is_narrow,
    median_interval,
    modified_z_scores,
    reference_medians,
    relative_half_width,
)

#: An interval wider than +-25 % leaves the order of two candidates open even at a factor of 1.5.
REJECTED_HALF_WIDTH = 0.25

#: A governor at rest stays within this; a clock that moved by more gives another latency in proportion.
FREQUENCY_MOVED_BY = 0.05

#: A clock that fell by this while the processor is warm was throttled.
THROTTLED_BY = 0.10
THROTTLING_CELSIUS = 60.0

#: Hotter than this at the end, a device is at its limit even if its clock has not fallen yet.
TOO_HOT_CELSIUS = 85.0

#: The reference kernel's cost never changes: if its median is less certain than this, the machine moved.
REFERENCE_HALF_WIDTH = 0.10

#: Wall time above this multiple of CPU time means that others ran on the core.
CONTENDED_RATIO = 1.25
#: Likewise, more than this part of wall samples far above their median.
CONTENDED_OUTLIERS = 0.10

_REJECTING = frozenset(
    {
        VerdictReason.THROTTLED,
        VerdictReason.WRONG_DELEGATE,
        VerdictReason.SPARSE_PATH_NOT_TAKEN,
        VerdictReason.WRONG_OUTPUT,
    }
)


def judge(
    blocks: Sequence[Block],
    statistics: Statistics,
    setup: MeasuringSetup,
    before: Conditions,
    after: Conditions,
    findings: Sequence[VerdictReason] = (),
) -> tuple[Verdict, tuple[VerdictReason, ...]]:
    """The verdict on `blocks` and its reasons, in the order of `VerdictReason`.

    `findings` are reasons that were seen elsewhere: a wrong output, a wrong delegate. TRUSTED has no reasons.
    """
    reasons = set(findings)
    interval = None
    if statistics.ci95_low_ns is not None and statistics.ci95_high_ns is not None:
        interval = (statistics.ci95_low_ns, statistics.ci95_high_ns)
    half_width = relative_half_width(interval, statistics.median_ns)
    wide = interval is not None and not is_narrow(interval, statistics.median_ns, setup.ci_half_width)
    if wide:
        reasons.add(VerdictReason.CI_TOO_WIDE)
    if interval is None or statistics.num_blocks < setup.min_blocks:
        reasons.add(VerdictReason.TOO_FEW_SAMPLES)
    # CPU time does not count the time of others: contention then only explains a wide interval.
    if (setup.clock is Clock.WALL or wide) and _is_contended(blocks, setup):
        reasons.add(VerdictReason.CONTENTION)
    reasons.update(_frequency_reasons(before, after))
    if after.temperature_celsius is not None and after.temperature_celsius > TOO_HOT_CELSIUS:
        reasons.add(VerdictReason.TOO_HOT)
    references = reference_medians(blocks)
    if references:
        spread = relative_half_width(median_interval(references), median(references))
        if spread is not None and spread > REFERENCE_HALF_WIDTH:
            reasons.add(VerdictReason.REFERENCE_DRIFTED)

    # The median of differences may be zero or less: then it says nothing at all.
    too_wide_to_use = wide and (half_width is None or half_width > REJECTED_HALF_WIDTH)
    if reasons & _REJECTING or too_wide_to_use:
        verdict = Verdict.REJECTED
    elif reasons:
        verdict = Verdict.NOISY
    else:
        verdict = Verdict.TRUSTED
    return verdict, tuple(reason for reason in VerdictReason if reason in reasons)


def _frequency_reasons(before: Conditions, after: Conditions) -> set[VerdictReason]:
    reasons: set[VerdictReason] = set()
    if before.governor != after.governor:
        reasons.add(VerdictReason.FREQUENCY_MOVED)
    if not before.frequency_hz or after.frequency_hz is None:
        return reasons
    change = after.frequency_hz / before.frequency_hz - 1
    if abs(change) > FREQUENCY_MOVED_BY:
        reasons.add(VerdictReason.FREQUENCY_MOVED)
    warm = after.temperature_celsius is not None and after.temperature_celsius >= THROTTLING_CELSIUS
    if change < -THROTTLED_BY and warm:
        reasons.add(VerdictReason.THROTTLED)
    return reasons


def _is_contended(blocks: Sequence[Block], setup: MeasuringSetup) -> bool:
    wall = [w for block in blocks for w in block.wall_ns]
    # Within a block: blocks that differ as a whole are drift.
    outliers = sum(z > OUTLIER_MODIFIED_Z for block in blocks for z in modified_z_scores(block.wall_ns))
    if outliers > CONTENDED_OUTLIERS * len(wall):
        return True
    # With several threads the caller's CPU time is only a part of the work.
    cpu = sum(c for block in blocks for c in block.thread_cpu_ns)
    return setup.threads == 1 and cpu > 0 and sum(wall) > CONTENDED_RATIO * cpu
