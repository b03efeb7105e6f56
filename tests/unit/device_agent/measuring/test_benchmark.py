"""The benchmark loop under a clock that only fake kernels move."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from device_agent.contracts import Clock, MeasuringSetup
from device_agent.measuring.benchmark import Samples, Stopwatch, prepare, take_samples, warm_up
from tests.unit.device_agent.measuring.measuring_fakes import FakeClock, FakeKernel


def measure(
    kernel: FakeKernel, clock: FakeClock, setup: MeasuringSetup, reference: FakeKernel | None = None
) -> tuple[Samples, float]:
    watch = Stopwatch(clock, setup.budget_s)
    samples = take_samples(prepare(kernel, reference, setup, clock, watch), setup, clock, watch)
    return samples, watch.elapsed_s


def setup_of(**more: object) -> MeasuringSetup:
    return MeasuringSetup(**{"runtime": "fake", **more})  # type: ignore[arg-type]


def test_warm_up_ends_once_three_batches_agree() -> None:
    clock = FakeClock()
    kernel = FakeKernel(clock, lambda run: 1e6 * max(1.0, 8.0 - run))
    warm = warm_up(kernel, clock, read=Clock.THREAD_CPU, min_sample_s=0.0005, min_warmup_s=0.0, limit_s=1.0)
    assert warm.iterations == 1
    assert warm.runs == 10  # seven that still get faster, then three alike
    assert warm.sample_wall_s == pytest.approx(0.001)


def test_warm_up_lasts_at_least_as_long_as_asked() -> None:
    clock = FakeClock()
    warm = warm_up(
        FakeKernel(clock, 1e5), clock, read=Clock.THREAD_CPU, min_sample_s=0.0005, min_warmup_s=0.02, limit_s=1.0
    )
    assert warm.iterations == 5
    assert clock.now_ns >= 0.02e9


def test_warm_up_of_an_unstable_kernel_stops_at_its_limit() -> None:
    clock = FakeClock()
    kernel = FakeKernel(clock, lambda run: 1e6 * (1 + run % 2))
    warm_up(kernel, clock, read=Clock.THREAD_CPU, min_sample_s=0.0005, min_warmup_s=0.0, limit_s=0.1)
    assert 0.1e9 <= clock.now_ns < 0.11e9


def test_samples_last_as_long_as_asked_by_the_clock_of_the_setup() -> None:
    clock = FakeClock()
    samples, _ = measure(FakeKernel(clock, 10_000, load=4.0), clock, setup_of(min_sample_s=0.001))
    assert samples.iterations_per_sample == 100
    clock = FakeClock()
    samples, _ = measure(FakeKernel(clock, 10_000, load=4.0), clock, setup_of(min_sample_s=0.001, clock=Clock.WALL))
    assert samples.iterations_per_sample == 25


def test_both_clocks_are_sampled_for_one_run() -> None:
    clock = FakeClock()
    samples, _ = measure(FakeKernel(clock, 10_000, load=3.0), clock, setup_of())
    assert set(samples.blocks[0].thread_cpu_ns) == {10_000}
    assert set(samples.blocks[0].wall_ns) == {30_000}


def test_a_steady_kernel_ends_after_the_fewest_blocks() -> None:
    clock = FakeClock()
    samples, elapsed_s = measure(FakeKernel(clock, 50_000), clock, setup_of(min_blocks=6, samples_per_block=10))
    assert [len(b.thread_cpu_ns) for b in samples.blocks] == [10] * 6
    assert elapsed_s < 0.1


def test_an_unsteady_kernel_gets_more_blocks_until_the_interval_is_narrow() -> None:
    clock = FakeClock()
    generator = np.random.default_rng(0)
    kernel = FakeKernel(clock, lambda _run: 1e6 * (1 + 0.05 * generator.standard_normal()))
    samples, _ = measure(kernel, clock, setup_of(samples_per_block=3, ci_half_width=0.01, budget_s=60, max_blocks=100))
    assert 6 < len(samples.blocks) < 100


def test_blocks_never_exceed_their_maximum() -> None:
    clock = FakeClock()
    kernel = FakeKernel(clock, lambda run: 1e6 * (1 + run // 7 % 4))
    samples, _ = measure(kernel, clock, setup_of(budget_s=60, max_blocks=9))
    assert len(samples.blocks) == 9


def test_the_reference_kernel_surrounds_the_candidate() -> None:
    clock = FakeClock()
    kernel, reference = FakeKernel(clock, 100_000), FakeKernel(clock, 20_000)
    samples, _ = measure(kernel, clock, setup_of(), reference)
    assert all(b.reference_ns == (20_000,) * 3 for b in samples.blocks)
    assert set(reference.calls[-3:]) == {15}  # 0.3 ms a sample


def test_the_reference_kernel_is_warm_whatever_the_candidate_left_in_the_caches() -> None:
    clock = FakeClock()
    caches = {"of": "nobody"}

    def cost_of(who: str, alone_ns: float, cold_ns: float) -> Callable[[int], float]:
        def cost_ns(_run: int) -> float:
            was, caches["of"] = caches["of"], who
            return alone_ns if was == who else cold_ns

        return cost_ns

    kernel = FakeKernel(clock, cost_of("candidate", 100_000, 100_000))
    reference = FakeKernel(clock, cost_of("reference", 20_000, 90_000))
    samples, spent_s = measure(kernel, clock, setup_of(budget_s=0.2), reference)
    assert {ns for block in samples.blocks for ns in block.reference_ns} == {20_000}
    assert spent_s <= 0.2


def test_the_frequency_is_read_around_every_block() -> None:
    clock = FakeClock()
    readings = iter(range(1, 100))
    setup = setup_of()
    watch = Stopwatch(clock, setup.budget_s)
    prepared = prepare(FakeKernel(clock, 50_000), None, setup, clock, watch)
    samples = take_samples(prepared, setup, clock, watch, lambda: next(readings))
    read = [(b.frequency_before_hz, b.frequency_after_hz) for b in samples.blocks]
    assert read == [(i, i + 1) for i in range(1, 7)]


def test_warm_up_takes_ten_runs_where_the_time_allows() -> None:
    for limit_s, runs in ((10.0, 10), (0.35, 4)):
        clock = FakeClock()
        kernel = FakeKernel(clock, 1e8)
        warm = warm_up(kernel, clock, read=Clock.THREAD_CPU, min_sample_s=0.0005, min_warmup_s=0.0, limit_s=limit_s)
        assert warm.runs == runs


@pytest.mark.parametrize("cost_ms", [0.01, 1, 12, 40])
def test_the_fewest_blocks_fit_a_small_budget(cost_ms: float) -> None:
    clock = FakeClock()
    samples, elapsed_s = measure(
        FakeKernel(clock, cost_ms * 1e6), clock, setup_of(budget_s=0.5), FakeKernel(clock, 20_000)
    )
    assert len(samples.blocks) == 6
    assert elapsed_s <= 0.5


def test_a_kernel_slower_than_the_budget_still_gets_one_sample() -> None:
    clock = FakeClock()
    samples, _ = measure(FakeKernel(clock, 3e9), clock, setup_of(budget_s=2.0))
    assert [b.thread_cpu_ns for b in samples.blocks] == [(3e9,)]


def test_a_slow_kernel_gets_as_many_blocks_as_fit() -> None:
    clock = FakeClock()
    samples, elapsed_s = measure(FakeKernel(clock, 0.3e9), clock, setup_of(budget_s=2.0))
    assert 2 <= len(samples.blocks) < 6
    assert elapsed_s <= 2.3


def test_a_machine_that_slows_down_does_not_break_the_budget() -> None:
    clock = FakeClock()
    kernel = FakeKernel(clock, lambda run: 1e6 if run < 100 else 20e6)
    _, elapsed_s = measure(kernel, clock, setup_of(budget_s=1.0, max_blocks=1000, ci_half_width=1e-6))
    assert elapsed_s < 1.0 + 10 * 0.02
