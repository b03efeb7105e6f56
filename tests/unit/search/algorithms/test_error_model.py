"""What the model of errors learns from losses that its estimates were wrong about."""

from __future__ import annotations

import numpy as np
import pytest

from search.algorithms.error_model import ErrorModel
from search.algorithms.factors import Factor, evaluate
from search.domain.space import SchemeChoice, SearchSpace, Variable, VariableKind
from search.pareto import FloatArray, IntArray

_LAYERS = 4
_SCHEMES = ("group:4x1", "unstructured")


def _space() -> SearchSpace:
    """Layers with a width, a density and a scheme each; the last choices prune nothing."""
    variables = []
    for layer in range(_LAYERS):
        variables += [
            Variable(kind=VariableKind.CHANNELS, target=f"l{layer}", choices=(4, 8, 12, 16)),
            Variable(kind=VariableKind.DENSITY, target=f"l{layer}", choices=(0.25, 0.5, 0.75, 1.0)),
            Variable(kind=VariableKind.SCHEME, target=f"l{layer}", choices=_SCHEMES),
        ]
    return SearchSpace(variables=tuple(variables), default_scheme=SchemeChoice.parse(_SCHEMES[0]))


def _tables(width: float, group: float, unstructured: float) -> list[Factor]:
    """Errors of layers, with a factor for each way of pruning."""
    widths = width * np.array([3.0, 2.0, 1.0, 0.0])
    zeros = np.array([3.0, 2.0, 1.0, 0.0])
    schemes = np.array([group, unstructured])
    values = widths[:, None, None] + zeros[None, :, None] * schemes
    return [Factor(variables=(3 * n, 3 * n + 1, 3 * n + 2), values=(n + 1) * values) for n in range(_LAYERS)]


def _losses(tables: list[Factor], genomes: IntArray) -> FloatArray:
    """Losses grow with the sum of errors, but not in proportion."""
    return 0.1 + evaluate(tables, genomes) ** 0.7


@pytest.fixture
def genomes() -> IntArray:
    rng = np.random.default_rng(0)
    return rng.integers(0, _space().num_choices, size=(96, 3 * _LAYERS))


def _rank_correlation(model: ErrorModel, genomes: IntArray, losses: FloatArray) -> float:
    guessed = np.argsort(np.argsort(evaluate(model.factors(), genomes)))
    return float(np.corrcoef(guessed, np.argsort(np.argsort(losses)))[0, 1])


def test_ways_of_pruning_are_weighed_against_each_other(genomes: IntArray) -> None:
    """Estimates that take whole channels for as harmless as zeros are put right by few candidates."""
    losses = _losses(_tables(8.0, 1.0, 0.5), genomes)
    told, others = slice(0, 24), slice(24, None)
    model = ErrorModel(_space(), _tables(1.0, 1.0, 1.0))
    before = _rank_correlation(model, genomes[others], losses[others])
    model.fit(genomes[told], losses[told])
    assert _rank_correlation(model, genomes[others], losses[others]) > max(0.95, before)
    widths, *zeros = model.way_weights
    assert widths > 3 * max(zeros)


def test_a_fit_depends_on_no_earlier_one(genomes: IntArray) -> None:
    losses = _losses(_tables(8.0, 1.0, 0.5), genomes)
    again, once, never = (ErrorModel(_space(), _tables(1.0, 1.0, 1.0)) for _ in range(3))
    again.fit(genomes[24:60], losses[24:60])
    again.fit(genomes[:24], losses[:24])
    once.fit(genomes[:24], losses[:24])
    assert np.array_equal(evaluate(again.factors(), genomes), evaluate(once.factors(), genomes))
    again.fit(genomes[:4], losses[:4])
    assert np.array_equal(evaluate(again.factors(), genomes), evaluate(never.factors(), genomes))


def test_right_estimates_are_left_alone(genomes: IntArray) -> None:
    tables = _tables(2.0, 1.0, 0.5)
    losses = _losses(tables, genomes)
    model = ErrorModel(_space(), tables)
    model.fit(genomes[:24], losses[:24])
    assert _rank_correlation(model, genomes, losses) > 0.95


def test_the_unpruned_network_has_no_error(genomes: IntArray) -> None:
    model = ErrorModel(_space(), _tables(1.0, 1.0, 1.0))
    assert evaluate(model.factors(), np.array([_space().unpruned]))[0] == 0.0
    assert model.is_ready


def test_ways_sum_up_to_the_estimates(genomes: IntArray) -> None:
    tables = _tables(1.0, 2.0, 3.0)
    assert evaluate(ErrorModel(_space(), tables).factors(), genomes) == pytest.approx(evaluate(tables, genomes))
