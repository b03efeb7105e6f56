"""A kernel that runs inside of networks only: its time is the difference of two networks' times."""

from __future__ import annotations

from collections.abc import Callable

from device_agent.contracts.measurement import VerdictReason
from device_agent.runtimes.base import Executable, FloatArray


class DifferenceExecutable:
    """`more` holds the kernel `copies` times more often than `fewer`, and is the same otherwise.

    As an executable it is the longer network: `run` takes that network's input and gives its output. Who times it has
    to time both, in turn, and divide (`measuring.benchmark`). `check` runs both; it returns their outputs and whether
    these are right.
    """

    #: What is held besides the kernel is as much: it would say nothing about the kernel.
    memory_bytes: int | None = None

    def __init__(
        self,
        *,
        more: Executable,
        fewer: Executable,
        copies: int,
        check: Callable[[], tuple[tuple[FloatArray, ...], bool]],
    ) -> None:
        self.more = more
        self.fewer = fewer
        self.copies = copies
        self.check = check

    @property
    def mode(self) -> str:
        return self.more.mode

    @property
    def findings(self) -> tuple[VerdictReason, ...]:
        found = (*self.more.findings, *self.fewer.findings)
        return tuple(reason for reason in VerdictReason if reason in found)

    def run(self, x: FloatArray, residual: FloatArray | None = None) -> FloatArray:
        return self.more.run(x, residual)

    def repeat(self, count: int) -> None:
        self.more.repeat(count)

    def op_ns(self, rounds: int) -> tuple[float, ...]:
        return ()
