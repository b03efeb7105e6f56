"""The memory that a program may use, and the proof that its steps stay inside of it."""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from device_agent.native.errors import NativeError
from device_agent.native.library import Library, Region, Step
from device_agent.native.steps import Way

Arrays = Sequence[NDArray[Any]]

POINTERS = tuple(field[0] for field in Step._fields_ if field[1] is ctypes.c_void_p)


def by_address(arrays: Iterable[NDArray[Any]]) -> dict[int, NDArray[Any]]:
    return {array.ctypes.data: array for array in arrays}


class Regions:
    """Arrays that do not overlap. Those that are not writeable are constants."""

    def __init__(self, arrays: Mapping[int, NDArray[Any]]) -> None:
        """`arrays` by the addresses where they begin."""
        self._arrays = arrays
        self._addresses = sorted(arrays)

    def find(self, address: int) -> int:
        """The address where the array begins that holds `address`. Raises `NativeError`."""
        index = bisect.bisect_right(self._addresses, address) - 1
        start = self._addresses[index] if index >= 0 else address
        if index < 0 or address - start > self._arrays[start].nbytes:
            raise NativeError(f"the address {address:#x} is in no array of the program")
        return start

    def check(self, library: Library, steps: Sequence[Step]) -> None:
        """Prove that no step reads or writes outside of the arrays, or writes to a constant. Raises `NativeError`."""
        used = sorted({self.find(address) for step in steps for name in POINTERS if (address := getattr(step, name))})
        table = (Region * len(used))(*(_region(start, self._arrays[start]) for start in used))
        library.check_steps(steps, table)


def _region(start: int, array: NDArray[Any]) -> Region:
    return Region(address=start, bytes=array.nbytes, is_writable=array.flags.writeable)


class ProgramCheck:
    """Checks the ways of one node after the other, before any of them is run."""

    def __init__(self, library: Library, held: Arrays) -> None:
        """`held` may grow between two checks."""
        self._library = library
        self._held = held
        self._shared: dict[int, NDArray[Any]] = {}
        self._num_seen = 0

    def check(self, ways: Sequence[Way]) -> None:
        """Raises `NativeError` where a step could touch memory that is not the program's."""
        self._shared |= by_address(self._held[self._num_seen :])
        self._num_seen = len(self._held)
        own = by_address(array for way in ways for array in way.held)
        Regions(self._shared | own).check(self._library, [step for way in ways for step in way.steps])
