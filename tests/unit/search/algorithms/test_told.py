"""The memory of what was told."""

from __future__ import annotations

import json

import numpy as np
import pytest

from search.algorithms.sampling import genome_code
from search.algorithms.told import ToldFigures

COUNTS = (3, 4)


def test_later_figures_replace_earlier_ones_in_their_place() -> None:
    told = ToldFigures(COUNTS, 2)
    told.learn([(0, 1), (2, 3)], np.array([[1.0, 2.0], [3.0, 4.0]]))
    told.learn([(1, 1), (0, 1), (1, 2)], np.array([[5.0, 6.0], [7.0, 8.0], [np.nan, 1.0]]))
    assert told.genomes.tolist() == [[0, 1], [2, 3], [1, 1]]
    assert told.rows.tolist() == [[7.0, 8.0], [3.0, 4.0], [5.0, 6.0]]
    assert len(told) == 3
    assert genome_code((1, 1), COUNTS) in told
    assert genome_code((1, 2), COUNTS) not in told
    restored = ToldFigures(COUNTS, 2)
    restored.restore(json.loads(json.dumps(told.to_json())))
    assert restored.to_json() == told.to_json()
    assert restored.genomes.tolist() == told.genomes.tolist()
    told.forget()
    assert len(told) == 0
    assert told.to_json() == {}


def test_damaged_memories_are_refused() -> None:
    told = ToldFigures(COUNTS, 2)
    for damaged in (
        {"0": [1.0]},
        {"0": [1.0, 2.0, 3.0]},
        {"0": [1.0, float("nan")]},
        {"fff": [1.0, 2.0]},
        {"x": [1, 2]},
    ):
        with pytest.raises(ValueError, match=r"stored|invalid|beyond"):
            told.restore(damaged)
    assert len(told) == 0
