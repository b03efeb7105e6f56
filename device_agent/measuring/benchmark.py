"""Timing one executable: calibrate, warm up, then blocks of samples with a reference kernel in between.

A sample is the mean time of one run over an inner loop, read on two clocks at once. Blocks are added until the order-
statistic interval of the median over blocks is narrow enough, or the blocks or the time run out. The interval is looked
at after every block, which makes its coverage a little lower than nominal; `min_blocks` bounds that.

A kernel that runs inside of networks only is timed as a difference: each of its samples is one of a network with it
minus the next one of the network without it.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Protocol

from device_agent.contracts.measurement import Block, Clock, MeasuringSetup
from device_agent.contracts.statistics import block_medians, is_narrow, median_interval

#: Warm-up is over when this many batches in a row agree within this part of their median.
STABLE_BATCHES = 3
STABLE_WITHIN = 0.02

#: And not before so many runs (nn-Meter, ExecuTorch), as far as the time allows.
MIN_WARMUP_RUNS = 10

#: The most of the budget that warming up may take.
WARMUP_SHARE = 0.2

#: The reference kernel is sampled before, amid and after the candidate's samples of a block.
REFERENCE_SAMPLES_PER_BLOCK = 3
REFERENCE_SAMPLE_S = 0.0003

#: An inner loop longer than this means that the clock stands still.
MAX_ITERATIONS = 1 << 24


class Repeatable(Protocol):
    """Something that can be run again and again on the same input."""

    def repeat(self, count: int) -> None:
        """Run `count` times."""
        ...


class SampleClock(Protocol):
    """The two clocks of a sample. Both count nanoseconds from an arbitrary start and never go back."""

    def thread_cpu_ns(self) -> int:
        """CPU time of the calling thread."""
        ...

    def wall_ns(self) -> int:
        """Elapsed time."""
        ...


class SystemSampleClock:
    """The clocks of the operating system."""

    def thread_cpu_ns(self) -> int:
        return time.thread_time_ns()

    def wall_ns(self) -> int:
        return time.perf_counter_ns()


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """The raw outcome of `take_samples`."""

    blocks: tuple[Block, ...]
    iterations_per_sample: int
    warmup_runs: int


@dataclass(frozen=True, slots=True)
class Sample:
    """The mean time of one run on both clocks, in ns."""

    thread_cpu_ns: float
    wall_ns: float

    def read(self, clock: Clock) -> float:
        """The time on one of them."""
        return self.thread_cpu_ns if clock is Clock.THREAD_CPU else self.wall_ns


class Stopwatch:
    """The time left of a budget in seconds, by the wall clock."""

    def __init__(self, clock: SampleClock, budget_s: float) -> None:
        self._clock = clock
        self._start_ns = clock.wall_ns()
        self._budget_s = budget_s

    @property
    def elapsed_s(self) -> float:
        return (self._clock.wall_ns() - self._start_ns) / 1e9

    @property
    def left_s(self) -> float:
        return self._budget_s - self.elapsed_s


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmedUp:
    """A warm executable: how often to repeat it in a sample, and what a sample then costs."""

    iterations: int
    runs: int
    sample_wall_s: float


def warm_up(
    executable: Repeatable,
    clock: SampleClock,
    *,
    read: Clock,
    min_sample_s: float,
    min_warmup_s: float,
    limit_s: float,
) -> WarmedUp:
    """Run until three batches agree within 2 %, ten runs are done and `min_warmup_s` has passed, at most for `limit_s`,
    at least once.

    Batches double until one lasts `min_sample_s` on the clock `read`; from then on they have that length.
    """
    watch = Stopwatch(clock, limit_s)
    iterations = 1
    runs = 0
    recent: list[Sample] = []
    while True:
        sample = take_sample(executable, clock, iterations)
        runs += iterations
        reached = sample.read(read) * iterations >= min_sample_s * 1e9
        if not reached and iterations < MAX_ITERATIONS and watch.left_s > 0:
            per_run_ns = max(sample.read(read), 1.0)
            wanted = math.ceil(min_sample_s * 1e9 / per_run_ns)
            # Cold runs are slow: growing by more than eightfold could overshoot by much.
            iterations = min(max(wanted, iterations + 1), 8 * iterations, MAX_ITERATIONS)
            recent.clear()
            continue
        recent.append(sample)
        last = [s.read(read) for s in recent[-STABLE_BATCHES:]]
        stable = len(last) == STABLE_BATCHES and max(last) - min(last) <= STABLE_WITHIN * median(last)
        enough = runs >= MIN_WARMUP_RUNS and watch.elapsed_s >= min_warmup_s
        if watch.left_s <= 0 or (stable and enough):
            wall_ns = median(s.wall_ns for s in recent[-STABLE_BATCHES:])
            return WarmedUp(iterations=iterations, runs=runs, sample_wall_s=wall_ns * iterations / 1e9)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subtracted:
    """What a sample is lessened by: `executable` is the candidate less `copies` of what is to be timed."""

    executable: Repeatable
    copies: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A candidate and its reference kernel, both warm."""

    executable: Repeatable
    warm: WarmedUp
    reference: Repeatable | None = None
    reference_warm: WarmedUp | None = None
    subtracted: Subtracted | None = None


def prepare(
    executable: Repeatable,
    reference: Repeatable | None,
    setup: MeasuringSetup,
    clock: SampleClock,
    watch: Stopwatch,
    subtracted: Subtracted | None = None,
) -> Prepared:
    """Calibrate and warm up both, in at most a quarter of the time that `watch` has left (but one run each).

    With `subtracted`, samples will be of the difference; its inner loop is the candidate's.
    """
    limit_s = WARMUP_SHARE * max(watch.left_s, 0.0)
    reference_warm = None
    with _without_garbage_collection():
        if reference is not None:
            reference_warm = warm_up(
                reference,
                clock,
                read=setup.clock,
                min_sample_s=REFERENCE_SAMPLE_S,
                min_warmup_s=0.0,
                limit_s=limit_s / 4,
            )
        warm = warm_up(
            executable,
            clock,
            read=setup.clock,
            min_sample_s=setup.min_sample_s,
            min_warmup_s=min(setup.min_warmup_s, limit_s),
            limit_s=limit_s,
        )
        if subtracted is not None:
            # As often as the candidate in a sample: it is a little shorter, so this warms it up as well.
            subtracted.executable.repeat(warm.iterations)
            warm = dataclasses.replace(warm, runs=warm.runs + warm.iterations, sample_wall_s=2 * warm.sample_wall_s)
    return Prepared(
        executable=executable, warm=warm, reference=reference, reference_warm=reference_warm, subtracted=subtracted
    )


def take_samples(
    prepared: Prepared,
    setup: MeasuringSetup,
    clock: SampleClock,
    watch: Stopwatch,
    read_frequency_hz: Callable[[], int | None] = lambda: None,
) -> Samples:
    """Time what was prepared as `setup` says, in the time that `watch` has left. The frequency is read between blocks.

    When the budget is too small for `min_blocks` full blocks, blocks get fewer samples; when even single samples do not
    fit, there are fewer blocks, but always one. The caller sees it by their number.
    """
    warm, reference_warm = prepared.warm, prepared.reference_warm
    blocks: list[Block] = []
    sample_wall_s = warm.sample_wall_s
    # Each sample comes after as many runs that are not timed.
    reference_wall_s = 2 * REFERENCE_SAMPLES_PER_BLOCK * reference_warm.sample_wall_s if reference_warm else 0.0
    frequency_hz = read_frequency_hz()
    with _without_garbage_collection():
        while len(blocks) < setup.max_blocks:
            left_s = watch.left_s
            # Half of what is left is kept back: under load the next blocks may take longer than the last.
            per_block_s = left_s / max(setup.min_blocks - len(blocks), 2)
            fitting = int((per_block_s - reference_wall_s) / max(sample_wall_s, 1e-9))
            if blocks and (left_s <= 0 or left_s < sample_wall_s + reference_wall_s):
                break
            started_ns = clock.wall_ns()
            block = _take_block(prepared, min(max(fitting, 1), setup.samples_per_block), setup, clock)
            block = dataclasses.replace(
                block, frequency_before_hz=frequency_hz, frequency_after_hz=(frequency_hz := read_frequency_hz())
            )
            blocks.append(block)
            if prepared.subtracted is None:
                sample_wall_s = median(block.wall_ns) * warm.iterations / 1e9
            else:
                # A difference does not tell what taking it costs.
                spent_s = (clock.wall_ns() - started_ns) / 1e9 - reference_wall_s
                sample_wall_s = max(spent_s, 0.0) / len(block.wall_ns)
            if len(blocks) >= setup.min_blocks:
                medians = block_medians(blocks, setup.clock)
                if is_narrow(median_interval(medians), median(medians), setup.ci_half_width):
                    break
    return Samples(blocks=tuple(blocks), iterations_per_sample=warm.iterations, warmup_runs=warm.runs)


def _take_block(prepared: Prepared, num_samples: int, setup: MeasuringSetup, clock: SampleClock) -> Block:
    samples: list[Sample] = []
    references: list[float] = []

    def sample_reference() -> None:
        if prepared.reference is not None and prepared.reference_warm is not None:
            # The candidate has taken its caches: a first sample would be slower after a large network (8 % here) than
            # after a small kernel, though the machine is as fast.
            prepared.reference.repeat(prepared.reference_warm.iterations)
            sample = take_sample(prepared.reference, clock, prepared.reference_warm.iterations)
            references.append(sample.read(setup.clock))

    sample_reference()
    for i in range(num_samples):
        if i == (num_samples + 1) // 2:
            sample_reference()
        samples.append(_take_candidate(prepared, clock))
    sample_reference()
    return Block(
        thread_cpu_ns=tuple(s.thread_cpu_ns for s in samples),
        wall_ns=tuple(s.wall_ns for s in samples),
        reference_ns=tuple(references),
    )


def _take_candidate(prepared: Prepared, clock: SampleClock) -> Sample:
    sample = take_sample(prepared.executable, clock, prepared.warm.iterations)
    subtracted = prepared.subtracted
    if subtracted is None:
        return sample
    less = take_sample(subtracted.executable, clock, prepared.warm.iterations)
    return Sample(
        (sample.thread_cpu_ns - less.thread_cpu_ns) / subtracted.copies,
        (sample.wall_ns - less.wall_ns) / subtracted.copies,
    )


def take_sample(executable: Repeatable, clock: SampleClock, iterations: int) -> Sample:
    """Time `iterations` runs as one."""
    # The CPU clock is read inside: it is the headline, and its reading costs more.
    wall_start = clock.wall_ns()
    cpu_start = clock.thread_cpu_ns()
    executable.repeat(iterations)
    cpu_end = clock.thread_cpu_ns()
    wall_end = clock.wall_ns()
    return Sample((cpu_end - cpu_start) / iterations, (wall_end - wall_start) / iterations)


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
