"""What was told of every genome, as arrays that grow: decoding all of them in each generation takes long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.algorithms.base import SearcherState
from search.algorithms.sampling import genome_codes, genome_of_code
from search.domain.space import Genome
from search.pareto import FloatArray, IntArray

#: With fewer evaluated candidates, what would be learnt from them is worth nothing.
MIN_TOLD = 8


class ToldFigures:
    """A row of finite figures for each genome, in the order in which genomes were first told.

    Args:
        num_choices: Of the space's variables.
        width: Figures of a row.
    """

    def __init__(self, num_choices: tuple[int, ...], width: int) -> None:
        self._num_choices = num_choices
        self._width = width
        self.forget()

    def forget(self) -> None:
        """Drop all that was learnt."""
        self._places: dict[str, int] = {}
        #: (n, v)
        self.genomes: IntArray = np.zeros((0, len(self._num_choices)), dtype=np.int64)
        #: (n, width)
        self.rows: FloatArray = np.zeros((0, self._width))

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, code: str) -> bool:
        return code in self._places

    def learn(self, genomes: Sequence[Genome] | IntArray, rows: FloatArray) -> None:
        """Note the `rows` (n, width) of `genomes`, instead of earlier ones; those with a NaN teach nothing."""
        defined = np.isfinite(rows).all(axis=1)
        chosen = np.array(genomes, dtype=np.int64).reshape(len(genomes), len(self._num_choices))[defined]
        before = len(self._places)
        codes = genome_codes(chosen, self._num_choices)
        places = np.array([self._places.setdefault(code, len(self._places)) for code in codes], dtype=np.int64)
        missing = len(self._places) - before
        if missing:
            self.genomes = np.concatenate((self.genomes, np.zeros((missing, len(self._num_choices)), dtype=np.int64)))
            self.rows = np.concatenate((self.rows, np.zeros((missing, self._width))))
        self.genomes[places] = chosen
        self.rows[places] = rows[defined]

    def to_json(self) -> SearcherState:
        return dict(zip(self._places, self.rows.tolist(), strict=True))

    def restore(self, data: SearcherState) -> None:
        """Take over what `to_json` gave. Raises `ValueError`, `TypeError` or `AttributeError` where it is damaged."""
        genomes = [genome_of_code(str(code), self._num_choices) for code in data]
        if any(len(values) != self._width for values in data.values()):
            raise ValueError(f"the stored figures of a genome are not {self._width}")
        rows = np.array(list(data.values()), dtype=np.float64).reshape(-1, self._width)
        if not np.isfinite(rows).all():
            raise ValueError("a stored figure is not finite")
        self.forget()
        self.learn(genomes, rows)
