"""How much of each layer stays: densities of all layers from one threshold over their groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from device_agent.contracts import ContractError
from search.mapping import RateVector
from search.pareto import FloatArray


def threshold_rates(
    scores: Mapping[str, FloatArray],
    macs: Mapping[str, float],
    targets: Sequence[float],
    *,
    min_density: Mapping[str, float],
) -> tuple[RateVector, ...]:
    """One vector of densities for each of `targets`, the parts of all layers' multiply-accumulates that stay.

    inferred: "per-layer and per-block rates emerge from the final threshold" (Gong et al., arXiv 2111.11581; BLK-REW,
    arXiv 2001.08357): the threshold is the largest one at which enough stays. Layers keep at least `min_density`, so a
    target below what that leaves gives the smallest densities.

    Args:
        scores: For each layer a score for each of its weights, larger ones stay.
        macs: Multiply-accumulates of each dense layer.
        targets: In (0, 1].
        min_density: The least that each layer keeps; 0 where nothing is said.
    """
    if any(not 0.0 < target <= 1.0 for target in targets):
        raise ContractError(f"targets {tuple(targets)} must be in (0, 1]")
    if not scores:
        raise ContractError("no layer has weights to prune: give space.weights with densities below 1")
    ascending = {name: np.sort(values) for name, values in scores.items()}
    total = sum(macs[name] for name in ascending)

    def densities(threshold: float) -> dict[str, float]:
        return {
            name: max(
                1.0 - int(np.searchsorted(values, threshold, side="left")) / len(values), min_density.get(name, 0.0)
            )
            for name, values in ascending.items()
        }

    levels = np.unique(np.concatenate(list(ascending.values())))
    vectors = []
    for target in targets:
        # The kept part falls with the threshold: bisection over the distinct scores.
        low, high = 0, len(levels) - 1
        while low < high:
            middle = (low + high + 1) // 2
            kept = densities(float(levels[middle]))
            if sum(kept[name] * macs[name] for name in kept) >= target * total:
                low = middle
            else:
                high = middle - 1
        vectors.append(RateVector(target=target, densities=densities(float(levels[low]))))
    return tuple(vectors)
