"""Robust statistics of timing samples, standard library only.

The headline is the median over blocks of each block's median. Samples within a block are correlated (one frequency, one
neighbour on the machine), so the block is the unit: neither one slow block nor a few slow samples in every block move
the figure, and its confidence interval counts blocks, not samples. Blocks of one process are correlated as well (where
its memory lies, which tiles its tuning took): where there are several processes, these are the units.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median, pstdev

from device_agent.contracts.measurement import Block, Clock, Statistics

CONFIDENCE = 0.95

#: The trimmed mean leaves this part of the samples out at each end (ExecuTorch, mobile-ai-bench: the middle 80 %).
TRIMMED_AT_EACH_END = 0.1

#: A sample further out than this in modified z-score is an outlier (Iglewicz and Hoaglin 1993).
OUTLIER_MODIFIED_Z = 3.5

#: Differences below this are those of reading a clock, not of a kernel.
RESOLUTION_NS = 10.0

#: 0.6745 is the third quartile of the standard normal: it makes the MAD comparable to a standard deviation.
_NORMAL_THIRD_QUARTILE = 0.6745


def percentile(samples: Sequence[float], percent: float) -> float:
    """The `percent`-th percentile (0..100) with linear interpolation between order statistics.

    Raises `ValueError` for no samples or a percentage outside 0..100.
    """
    if not samples:
        raise ValueError("a percentile of no samples is undefined")
    if not 0 <= percent <= 100:
        raise ValueError(f"percent {percent!r} is not in 0..100")
    ordered = sorted(samples)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def median_absolute_deviation(samples: Sequence[float], centre: float | None = None) -> float:
    """The median of |sample - centre|; the centre is the median unless given. Raises `ValueError` for no samples."""
    if not samples:
        raise ValueError("the deviation of no samples is undefined")
    around = median(samples) if centre is None else centre
    return median(abs(s - around) for s in samples)


def modified_z_scores(samples: Sequence[float]) -> tuple[float, ...]:
    """0.6745 (sample - median) / MAD of each sample. All zero where the MAD is zero: nothing stands out then."""
    mad = median_absolute_deviation(samples)
    if mad == 0:
        return (0.0,) * len(samples)
    centre = median(samples)
    return tuple(_NORMAL_THIRD_QUARTILE * (s - centre) / mad for s in samples)


def median_interval(values: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """Confidence interval of the median from order statistics; no assumption about the distribution.

    The interval from the k-th smallest to the k-th largest of n independent values covers the median with probability
    1 - 2 P(Binomial(n, 1/2) < k). The largest k that reaches `confidence` is taken. None where no k does: at 95 % that
    is below six values.
    """
    n = len(values)
    tail = 0.0
    rank = 0
    for k in range(1, n // 2 + 1):
        tail += math.comb(n, k - 1) / 2**n
        if 1 - 2 * tail < confidence:
            break
        rank = k
    if rank == 0:
        return None
    ordered = sorted(values)
    return ordered[rank - 1], ordered[n - rank]


def relative_half_width(interval: tuple[float, float] | None, centre: float) -> float | None:
    """Half of an interval's width as a part of `centre`; None where either is undefined."""
    if interval is None or centre <= 0:
        return None
    return (interval[1] - interval[0]) / (2 * centre)


def samples_of(block: Block, clock: Clock) -> tuple[float, ...]:
    """The samples of a block that `clock` took, in ns for one run."""
    return block.thread_cpu_ns if clock is Clock.THREAD_CPU else block.wall_ns


def block_medians(blocks: Sequence[Block], clock: Clock) -> tuple[float, ...]:
    """The median of each block."""
    return tuple(median(samples_of(block, clock)) for block in blocks)


def reference_medians(blocks: Sequence[Block]) -> tuple[float, ...]:
    """The median time of the reference kernel in each block that has it."""
    return tuple(median(block.reference_ns) for block in blocks if block.reference_ns)


def num_processes(blocks: Sequence[Block]) -> int:
    """How many fresh processes took `blocks`."""
    return len({block.process for block in blocks})


def over_units(blocks: Sequence[Block], values: Sequence[float]) -> tuple[float, ...]:
    """One value for each independent unit, of one value for each block: the values themselves, or their median in each
    process where there are several.
    """
    if num_processes(blocks) < 2:
        return tuple(values)
    by_process: dict[int, list[float]] = {}
    for block, value in zip(blocks, values, strict=True):
        by_process.setdefault(block.process, []).append(value)
    return tuple(median(own) for own in by_process.values())


def unit_medians(blocks: Sequence[Block], clock: Clock) -> tuple[float, ...]:
    """The medians that the headline and its interval are made of: one for each block or process."""
    return over_units(blocks, block_medians(blocks, clock))


def trimmed_mean(samples: Sequence[float], part: float = TRIMMED_AT_EACH_END) -> float:
    """The mean without the smallest and the largest `part` of the samples. Raises `ValueError` for no samples."""
    if not samples:
        raise ValueError("the mean of no samples is undefined")
    cut = int(part * len(samples))
    return fmean(sorted(samples)[cut : len(samples) - cut])


def coefficient_of_variation(values: Sequence[float]) -> float | None:
    """Standard deviation as a part of the mean; None for fewer than two values or a mean that is not positive."""
    centre = fmean(values) if values else 0.0
    return pstdev(values, centre) / centre if len(values) >= 2 and centre > 0 else None


def summarize(blocks: Sequence[Block], clock: Clock, reference_name: str | None = None) -> Statistics:
    """Statistics of `blocks` as read by `clock`. Raises `ValueError` when there is no sample at all."""
    samples = [s for block in blocks for s in samples_of(block, clock)]
    if not samples:
        raise ValueError("statistics of no samples are undefined: take at least one block")
    medians = unit_medians(blocks, clock)
    centre = median(medians)
    interval = median_interval(medians)
    references = reference_medians(blocks)
    referred = [block for block in blocks if block.reference_ns and median(block.reference_ns) > 0]
    ratios = over_units(referred, [median(samples_of(block, clock)) / median(block.reference_ns) for block in referred])
    return Statistics(
        median_ns=centre,
        mean_ns=fmean(samples),
        min_ns=min(samples),
        p5_ns=percentile(samples, 5),
        p10_ns=percentile(samples, 10),
        p90_ns=percentile(samples, 90),
        p95_ns=percentile(samples, 95),
        mad_ns=median_absolute_deviation(samples, centre),
        num_samples=len(samples),
        num_blocks=len(blocks),
        ci95_low_ns=None if interval is None else interval[0],
        ci95_high_ns=None if interval is None else interval[1],
        reference_ns=median(references) if references else None,
        reference_ratio=median(ratios) if ratios else None,
        reference_name=reference_name if references else None,
        stdev_ns=pstdev(samples),
        trimmed_mean_ns=trimmed_mean(samples),
        unit_cv=coefficient_of_variation(medians),
        num_processes=num_processes(blocks),
    )


def is_narrow(interval: tuple[float, float] | None, centre: float, tolerance: float) -> bool:
    """Whether an interval (ns) is within `tolerance` of `centre`, or narrower than clocks can tell apart."""
    half_width = relative_half_width(interval, centre)
    if interval is None or half_width is None:
        return False
    return half_width <= tolerance or (interval[1] - interval[0]) / 2 <= RESOLUTION_NS
