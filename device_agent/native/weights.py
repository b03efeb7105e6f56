"""The weights of one operator, read a few output channels at a time.

They may lie in a file, with zeros left out: packing them in slices keeps them from ever being dense in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float32]

#: Elements of a slice, unless one output channel has more: 256 KB.
_SLICE_ELEMENTS = 1 << 16


class WeightSource(Protocol):
    """An array (outputs, ...), or what is read like one."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, channels: slice, /) -> FloatArray: ...


class Weights:
    """The weights of the output channels from `first` to `last` of a source, as rows."""

    def __init__(self, source: WeightSource, first: int = 0, last: int | None = None) -> None:
        self._source = source
        self._first = first
        self.num_rows = (source.shape[0] if last is None else last) - first
        self.num_columns = int(np.prod(source.shape[1:]))
        self._num_nonzero: int | None = None

    def rows(self, first: int, last: int) -> FloatArray:
        """The rows from `first` to `last`, float32 (last - first, columns)."""
        values = self._source[self._first + first : self._first + min(last, self.num_rows)]
        return values.reshape(-1, self.num_columns)

    def all(self) -> FloatArray:
        """All rows at once."""
        return self.rows(0, self.num_rows)

    def part(self, channels: slice) -> Weights:
        """Those of some consecutive output channels."""
        return Weights(self._source, self._first + channels.start, self._first + channels.stop)

    def windows(self, multiple: int = 1) -> Iterator[tuple[int, int]]:
        """Cuts the rows into ranges (first, last) of a slice's size, whose borders are multiples of `multiple`."""
        step = max(1, _SLICE_ELEMENTS // max(1, self.num_columns * multiple)) * multiple
        for first in range(0, self.num_rows, step):
            yield first, min(first + step, self.num_rows)

    def count_nonzero(self) -> int:
        if self._num_nonzero is None:
            counts = (np.count_nonzero(self.rows(first, last)) for first, last in self.windows())
            self._num_nonzero = sum(map(int, counts))
        return self._num_nonzero
