"""How many bytes of weights a runtime reads for a kernel, told from what its kernels took.

Winograd's algorithm reads several times the bytes that are stored, sparse kernels read positions beside values, and
which algorithm a runtime took shows in its times alone: the physical model's prices tell.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from device_agent.contracts import KernelSpec
from search.latency.families import without_seed
from search.latency.model.features import feature_table, kernel_features
from search.latency.model.kernel_model import own_noise
from search.latency.model.physical import fit_physical
from search.latency.table import KernelLatency
from search.pareto import FloatArray


class RuntimeWeights:
    """The bytes of weights of kernels on the runtime of some measured kernels; remembered by kernel."""

    def __init__(self, runtime: str, measured: Sequence[KernelLatency]) -> None:
        self._runtime = runtime
        self._model = fit_physical(
            feature_table([kernel_features(entry.kernel, runtime) for entry in measured]),
            np.array([entry.latency_ns for entry in measured]),
            own_noise(measured),
        )
        self._known: dict[KernelSpec, float] = {}

    def weight_bytes(self, kernels: Sequence[KernelSpec]) -> FloatArray:
        """The bytes that each kernel reads (n,)."""
        bare = [without_seed(kernel) for kernel in kernels]
        new = [kernel for kernel in dict.fromkeys(bare) if kernel not in self._known]
        if new:
            found = self._model.weight_bytes(feature_table([kernel_features(kernel, self._runtime) for kernel in new]))
            self._known.update(zip(new, found.tolist(), strict=True))
        return np.array([self._known[kernel] for kernel in bare])
