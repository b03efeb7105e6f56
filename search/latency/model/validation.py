"""How well a latency model predicts kernels that it has not seen: cross-validation on the kernels of one series."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from search.errors import LatencyModelError
from search.latency.model.kernel_model import MIN_KERNELS, fit_kernel_model
from search.latency.predictor import HeldOut
from search.latency.table import KernelLatency

NUM_FOLDS = 5

#: Some seven seconds of one core; a part drawn by chance tells the errors of more kernels as well.
MAX_KERNELS = 400


def cross_validate(entries: Sequence[KernelLatency], runtime: str, *, rng: np.random.Generator) -> tuple[HeldOut, ...]:
    """Each kernel with what the model of the other parts of five predicts, drawn by `rng`. Of more than `MAX_KERNELS`,
    a part.

    Raises `LatencyModelError` with too few kernels for a part to be left out.
    """
    needed = MIN_KERNELS + -(-MIN_KERNELS // (NUM_FOLDS - 1))
    if len(entries) < needed:
        raise LatencyModelError(
            f"{len(entries)} kernels were measured, but judging a latency model needs at least {needed}: measure more"
        )
    order = rng.permutation(len(entries))[:MAX_KERNELS]
    held_out: list[HeldOut] = []
    for fold in range(NUM_FOLDS):
        inside = [entries[i] for i in order[fold::NUM_FOLDS]]
        outside = [entries[i] for place, i in enumerate(order) if place % NUM_FOLDS != fold]
        model = fit_kernel_model(outside, runtime, rng=rng)
        predicted, _ = model.predict_all([entry.kernel for entry in inside])
        held_out += [
            HeldOut(kernel=e.kernel, axis="all", measured_ns=e.latency_ns, predicted_ns=float(p))
            for e, p in zip(inside, predicted, strict=True)
        ]
    return tuple(held_out)
