"""Ratios of figures, and many of them in one."""

from __future__ import annotations

import numpy as np
import pytest

from search.latency.comparison import Figure, Ratio, ratio_of, summarise_ratios


def test_the_interval_holds_the_true_ratio_19_times_of_20() -> None:
    """Two figures with 2 % and 1 % of standard error; each interval is of one figure."""
    generator = np.random.default_rng(3)
    hits = 0
    for first, second in np.exp(generator.standard_normal((2000, 2)) * [0.02, 0.01]) * [100.0, 150.0]:
        a = Figure(median=first, ci95=(first * (1 - 1.96 * 0.02), first * (1 + 1.96 * 0.02)))
        b = Figure(median=second, ci95=(second * (1 - 1.96 * 0.01), second * (1 + 1.96 * 0.01)))
        found = ratio_of(a, b)
        assert found.ci95 is not None
        hits += found.ci95[0] <= 1.5 <= found.ci95[1]
    assert 0.93 < hits / 2000 < 0.97


def test_without_an_interval_nothing_is_said_of_difference() -> None:
    found = ratio_of(Figure(median=2.0), Figure(median=3.0, ci95=(2.9, 3.1)))
    assert (found.ratio, found.ci95, found.differs) == (1.5, None, None)


def test_the_mean_is_the_same_whichever_side_is_divided_by() -> None:
    ratios = [Ratio(ratio=r, ci95=(0.9 * r, 1.1 * r)) for r in (0.5, 1.0, 2.0, 4.0)]
    inverse = [Ratio(ratio=1 / r.ratio, ci95=None) for r in ratios]
    found, back = summarise_ratios(ratios), summarise_ratios(inverse)
    assert found.geometric_mean == pytest.approx(2**0.5)
    assert found.geometric_mean * back.geometric_mean == pytest.approx(1.0)
    assert (found.count, found.smallest, found.largest, found.median) == (4, 0.5, 4.0, 1.5)
    assert (found.with_interval, found.differing, back.with_interval) == (4, 3, 0)
    assert found.ci95 is not None
    assert found.ci95[0] < found.geometric_mean < found.ci95[1]
    assert summarise_ratios(ratios[:1]).ci95 is None
    with pytest.raises(ValueError, match="no kernel in common"):
        summarise_ratios([])
