"""A clock that only moves when a fake kernel runs, and such kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


class FakeClock:
    """Both clocks of a sample, set by whoever runs."""

    def __init__(self) -> None:
        self.cpu_ns = 0
        self.now_ns = 0

    def thread_cpu_ns(self) -> int:
        return self.cpu_ns

    def wall_ns(self) -> int:
        return self.now_ns

    def spend(self, cpu_ns: float, wall_ns: float | None = None) -> None:
        self.cpu_ns += round(cpu_ns)
        self.now_ns += round(cpu_ns if wall_ns is None else wall_ns)


class FakeKernel:
    """Costs `cost_ns(run)` of CPU time for its n-th run, and `load` times that of wall time."""

    mode = "dense"
    memory_bytes: int | None = 1000
    name = "fake reference"

    def __init__(
        self, clock: FakeClock, cost_ns: float | Callable[[int], float], *, load: float = 1.0, findings: tuple = ()
    ) -> None:
        self._clock = clock
        self._cost_ns = cost_ns if callable(cost_ns) else lambda _run: cost_ns
        self._load = load
        self.runs = 0
        self.calls: list[int] = []
        self.findings = findings
        self.output = np.zeros(1, np.float32)

    def run(self, x: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
        self.repeat(1)
        return self.output

    def repeat(self, count: int) -> None:
        self.calls.append(count)
        for _ in range(count):
            cost = self._cost_ns(self.runs)
            self.runs += 1
            self._clock.spend(cost, cost * self._load)

    def op_ns(self, rounds: int) -> tuple[float, ...]:
        return (float(rounds),)
