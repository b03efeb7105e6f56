"""How far a measurement can be trusted, with named reasons. Thresholds are constants, each with its ground.

It follows from the measurement alone, so that the server comes to the same verdict from the raw samples.
docs/measuring.md has every reason and what to do about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from device_agent.contracts.measurement import (
    Block,
    Clock,
    Conditions,
    MeasuringSetup,
    Statistics,
    ThermalMode,
    Verdict,
    VerdictReason,
)
from device_agent.contracts.statistics import (
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

#: The interval by order statistics leaves out the two outermost of nine blocks: fewer strays than this do not move it.
MOVED_BLOCKS = 0.10

#: A clock that fell by this while the processor is warm was throttled.
THROTTLED_BY = 0.10
THROTTLING_CELSIUS = 60.0

#: Hotter than this at the end, a device is at its limit even if its clock has not fallen yet.
TOO_HOT_CELSIUS = 85.0

#: The reference kernel's cost never changes: if its median is less certain than this, the machine moved. Likewise if it
#: is this far from what it usually takes on the device: processes on a machine at one speed agree within 5 %
#: (bench/latency/spread.py).
REFERENCE_HALF_WIDTH = 0.10

#: Wall time above this multiple of CPU time means that others ran on the core.
CONTENDED_RATIO = 1.25
#: Likewise, more than this part of wall samples far above their median.
CONTENDED_OUTLIERS = 0.10
#: Likewise, others had the core for more than this part of the time (the same threshold, from the core's own counters).
CONTENDED_SHARE = 1 - 1 / CONTENDED_RATIO
#: Those counters move in steps of 10 ms: over less time than this their error is above 5 %.
MIN_COUNTED_S = 0.4

#: A control group that held the process back for more than this part of the time made it slower by as much.
HELD_BACK = 0.01

_REJECTING = frozenset(
    {
        VerdictReason.THROTTLED,
        VerdictReason.WRONG_DELEGATE,
        VerdictReason.SPARSE_PATH_NOT_TAKEN,
        VerdictReason.WRONG_OUTPUT,
    }
)

#: What only the device can see; it does not follow from samples and conditions.
FINDINGS = frozenset(
    {
        VerdictReason.WRONG_DELEGATE,
        VerdictReason.SPARSE_PATH_NOT_TAKEN,
        VerdictReason.WRONG_OUTPUT,
        VerdictReason.NOT_PINNED,
        VerdictReason.NOT_COLD,
        VerdictReason.NOT_STEADY,
    }
)

#: In the mode SUSTAINED the heat and what the device does about it are what is measured.
_SUSTAINED_IS_ABOUT = frozenset({VerdictReason.THROTTLED, VerdictReason.FREQUENCY_MOVED, VerdictReason.TOO_HOT})


def judge(
    blocks: Sequence[Block],
    statistics: Statistics,
    setup: MeasuringSetup,
    before: Conditions,
    after: Conditions,
    findings: Iterable[VerdictReason] = (),
    usual_reference_ns: float | None = None,
) -> tuple[Verdict, tuple[VerdictReason, ...]]:
    """The verdict on `blocks` and its reasons, in the order of `VerdictReason`.

    `findings` are reasons that were seen elsewhere: a wrong output, a wrong delegate. `usual_reference_ns` is what the
    reference kernel usually takes on this device. TRUSTED has no reasons.
    """
    reasons = set(findings)
    interval = None
    if statistics.ci95_low_ns is not None and statistics.ci95_high_ns is not None:
        interval = (statistics.ci95_low_ns, statistics.ci95_high_ns)
    half_width = relative_half_width(interval, statistics.median_ns)
    wide = interval is not None and not is_narrow(interval, statistics.median_ns, setup.ci_half_width)
    if wide:
        reasons.add(VerdictReason.CI_TOO_WIDE)
    too_few = statistics.num_blocks < setup.min_blocks or statistics.num_processes < setup.processes
    if interval is None or too_few:
        reasons.add(VerdictReason.TOO_FEW_SAMPLES)
    # CPU time does not count the time of others: contention then only explains a wide interval.
    if setup.clock is Clock.WALL or wide:
        if _is_contended(blocks, setup, before, after):
            reasons.add(VerdictReason.CONTENTION)
        if _is_held_back(setup, before, after):
            reasons.add(VerdictReason.CPU_QUOTA)
    heat = _frequency_reasons(blocks, before, after)
    if after.temperature_celsius is not None and after.temperature_celsius > TOO_HOT_CELSIUS:
        heat.add(VerdictReason.TOO_HOT)
    is_sustained = setup.thermal_mode is ThermalMode.SUSTAINED
    reasons.update(heat - _SUSTAINED_IS_ABOUT if is_sustained else heat)
    if _has_drifted(blocks, None if is_sustained else usual_reference_ns):
        reasons.add(VerdictReason.REFERENCE_DRIFTED)
    if any(
        None not in (one, other) and one != other
        for one, other in (
            (before.screen_on, after.screen_on),
            (before.charging, after.charging),
            (before.cpuset, after.cpuset),
        )
    ):
        reasons.add(VerdictReason.RUN_MODE_CHANGED)

    # The median of differences may be zero or less: then it says nothing at all.
    too_wide_to_use = wide and (half_width is None or half_width > REJECTED_HALF_WIDTH)
    if reasons & _REJECTING or too_wide_to_use:
        verdict = Verdict.REJECTED
    elif reasons:
        verdict = Verdict.NOISY
    else:
        verdict = Verdict.TRUSTED
    return verdict, tuple(reason for reason in VerdictReason if reason in reasons)


def moved_blocks(blocks: Sequence[Block]) -> tuple[int, ...]:
    """The places of blocks before or after which the frequency was more than 5 % off the median of all readings."""
    read = [
        tuple(hz for hz in (block.frequency_before_hz, block.frequency_after_hz) if hz is not None) for block in blocks
    ]
    every = [hz for own in read for hz in own]
    if not every:
        return ()
    usual_hz = median(every)
    return tuple(i for i, own in enumerate(read) if any(abs(hz / usual_hz - 1) > FREQUENCY_MOVED_BY for hz in own))


def foreign_share(before: Conditions, after: Conditions) -> float | None:
    """The part of the time that others had the measuring core; None where the counters do not tell."""
    ends = [(c.uptime_s, c.core_busy_s, c.process_cpu_s) for c in (before, after)]
    if any(value is None for end in ends for value in end):
        return None
    elapsed_s, busy_s, own_s = (last - first for first, last in zip(*ends, strict=True))
    return None if elapsed_s < MIN_COUNTED_S else max(0.0, busy_s - own_s) / elapsed_s


def _frequency_reasons(blocks: Sequence[Block], before: Conditions, after: Conditions) -> set[VerdictReason]:
    reasons: set[VerdictReason] = set()
    if before.governor != after.governor or len(moved_blocks(blocks)) > MOVED_BLOCKS * len(blocks):
        reasons.add(VerdictReason.FREQUENCY_MOVED)
    # The device's own word: it lowers its clock now, did so meanwhile, or may no longer run as fast as before.
    if before.throttled or after.throttled or _rise(before.throttle_count, after.throttle_count) > 0:
        reasons.add(VerdictReason.THROTTLED)
    if before.frequency_limit_hz and after.frequency_limit_hz is not None:
        fall = 1 - after.frequency_limit_hz / before.frequency_limit_hz
        if fall > FREQUENCY_MOVED_BY:
            reasons.add(VerdictReason.THROTTLED)
    if not before.frequency_hz or after.frequency_hz is None:
        return reasons
    change = after.frequency_hz / before.frequency_hz - 1
    if abs(change) > FREQUENCY_MOVED_BY:
        reasons.add(VerdictReason.FREQUENCY_MOVED)
    warm = after.temperature_celsius is not None and after.temperature_celsius >= THROTTLING_CELSIUS
    if change < -THROTTLED_BY and warm:
        reasons.add(VerdictReason.THROTTLED)
    return reasons


def _has_drifted(blocks: Sequence[Block], usual_reference_ns: float | None) -> bool:
    references = reference_medians(blocks)
    if not references:
        return False
    centre = median(references)
    spread = relative_half_width(median_interval(references), centre)
    if spread is not None and spread > REFERENCE_HALF_WIDTH:
        return True
    return usual_reference_ns is not None and abs(centre / usual_reference_ns - 1) > REFERENCE_HALF_WIDTH


def _is_contended(blocks: Sequence[Block], setup: MeasuringSetup, before: Conditions, after: Conditions) -> bool:
    wall = [w for block in blocks for w in block.wall_ns]
    # Within a block: blocks that differ as a whole are drift.
    outliers = sum(z > OUTLIER_MODIFIED_Z for block in blocks for z in modified_z_scores(block.wall_ns))
    if outliers > CONTENDED_OUTLIERS * len(wall):
        return True
    if setup.threads > 1:
        # The caller's CPU time, and its core, are only a part of the work.
        return False
    share = foreign_share(before, after)
    if share is not None and share > CONTENDED_SHARE:
        return True
    cpu = sum(c for block in blocks for c in block.thread_cpu_ns)
    return cpu > 0 and sum(wall) > CONTENDED_RATIO * cpu


def _is_held_back(setup: MeasuringSetup, before: Conditions, after: Conditions) -> bool:
    if after.cpu_quota is not None and after.cpu_quota < setup.threads:
        return True
    held_s = _rise(before.quota_throttled_s, after.quota_throttled_s)
    elapsed_s = _rise(before.uptime_s, after.uptime_s)
    return held_s > HELD_BACK * elapsed_s


def _rise(before: float | None, after: float | None) -> float:
    """How much a counter rose; 0 where it cannot be read."""
    return 0.0 if before is None or after is None else after - before
