"""Densities of all layers from one threshold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from device_agent.contracts import ContractError
from search.rates import threshold_rates

SCORES = {"wide": np.linspace(0.0, 1.0, 1001), "narrow": np.linspace(0.5, 1.5, 101)}
MACS = {"wide": 3e6, "narrow": 1e6}


@pytest.mark.parametrize("target", [0.1, 0.3, 0.7, 1.0])
def test_the_target_holds_and_one_threshold_parts_all(target: float) -> None:
    (rates,) = threshold_rates(SCORES, MACS, [target], min_density={})
    kept = sum(rates.densities[name] * MACS[name] for name in MACS) / 4e6
    assert target <= kept < target + 0.01
    thresholds = [np.quantile(SCORES[name], 1.0 - rates.densities[name]) for name in SCORES]
    if 0.0 < rates.densities["wide"] < 1.0 and 0.0 < rates.densities["narrow"] < 1.0:
        assert thresholds[0] == pytest.approx(thresholds[1], abs=0.02)
    assert rates.densities["narrow"] >= rates.densities["wide"]


def test_larger_targets_keep_more_of_every_layer() -> None:
    vectors = threshold_rates(SCORES, MACS, [0.2, 0.4, 0.6], min_density={})
    for smaller, larger in itertools.pairwise(vectors):
        assert all(smaller.densities[name] <= larger.densities[name] for name in SCORES)


def test_layers_keep_their_least() -> None:
    (rates,) = threshold_rates(SCORES, MACS, [0.1], min_density={"wide": 0.25, "narrow": 0.25})
    assert rates.densities == {"wide": 0.25, "narrow": 0.25}


def test_bad_input() -> None:
    with pytest.raises(ContractError, match=r"targets \(0.0,\) must be in"):
        threshold_rates(SCORES, MACS, [0.0], min_density={})
    with pytest.raises(ContractError, match="no layer has weights to prune"):
        threshold_rates({}, {}, [0.5], min_density={})
