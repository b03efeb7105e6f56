"""Load until a device is steady, on a fake device that heats up and slows down."""

from __future__ import annotations

import math

from device_agent.contracts import Clock
from device_agent.measuring.sustained import Load, Window, is_steady, load_until_steady
from tests.unit.device_agent.measuring.measuring_fakes import FakeClock, FakeKernel


def window(median_ns: float, celsius: float | None = None) -> Window:
    return Window(median_ns=median_ns, celsius=celsius)


def test_steady_is_six_windows_that_agree() -> None:
    assert not is_steady([window(100)] * 5)
    assert is_steady([window(100)] * 6)
    assert is_steady([window(300), *[window(100 + i / 10) for i in range(6)]])
    assert not is_steady([window(100 + i) for i in range(6)])
    assert is_steady([window(100, 60 + i / 5) for i in range(6)])
    assert not is_steady([window(100, 60 + i / 2) for i in range(6)])


def load(clock: FakeClock, kernel: FakeKernel, celsius: object = None, load_s: float = 300.0) -> Load:
    return load_until_steady(
        kernel,
        10,
        clock,
        read=Clock.THREAD_CPU,
        load_s=load_s,
        read_celsius=celsius,  # type: ignore[arg-type]
    )


def heating(clock: FakeClock, seconds: float) -> float:
    """The temperature of a device that approaches 80 degrees with a time constant of `seconds`."""
    return 80 - 50 * math.exp(-clock.now_ns / 1e9 / seconds)


def test_a_device_is_loaded_until_it_is_as_hot_and_slow_as_it_gets() -> None:
    clock = FakeClock()
    # Above 70 degrees the clock falls in proportion.
    kernel = FakeKernel(clock, lambda _run: 1e7 * (1 + max(0.0, heating(clock, 20.0) - 70) / 20))
    done = load(clock, kernel, lambda: heating(clock, 20.0))
    assert done.steady
    assert done.windows[-1].median_ns > 1.4e7
    assert 60 <= clock.now_ns / 1e9 <= 180
    assert done.runs == kernel.runs


def test_a_device_that_still_heats_up_at_the_end_is_not_steady() -> None:
    clock = FakeClock()
    done = load(clock, FakeKernel(clock, 1e7), lambda: heating(clock, 1000.0))
    assert not done.steady
    assert 300 <= clock.now_ns / 1e9 < 311


def test_without_a_sensor_the_latency_alone_tells() -> None:
    clock = FakeClock()
    assert load(clock, FakeKernel(clock, 1e7), lambda: None).steady
    assert clock.now_ns / 1e9 < 65
