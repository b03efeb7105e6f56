"""Kernels and whole networks measured in this process, as an agent would, for benchmarks."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import (
    KernelTask,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    NetworkFormat,
    NetworkPlan,
    NetworkTask,
)
from device_agent.contracts.measurement import Verdict
from device_agent.measuring.task import Surroundings, measure_task
from search.export import write_network

_ATTEMPTS = 3


def measured(
    task: KernelTask | NetworkTask, path: Path | None = None, surroundings: Surroundings | None = None
) -> Measurement | str:
    """The measurement of `task`, or why there is none after three attempts: then the task is named on stderr too."""
    why = ""
    for _ in range(_ATTEMPTS):
        result = measure_task(task, path, surroundings)
        if isinstance(result, MeasurementFailure):
            why = result.detail
        elif result.verdict is Verdict.REJECTED:
            why = ", ".join(reason.value for reason in result.reasons)
        else:
            return result
    print(f"left out ({why}): {task}", file=sys.stderr)
    return why


def measured_network(
    plan: NetworkPlan, tensors: Mapping[str, NDArray[np.float32]], setup: MeasuringSetup
) -> Measurement | str:
    """As `measured`, of a whole network by the native runtime."""
    data = write_network(plan, tensors, NetworkFormat.PACKED)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network"
        path.write_bytes(data)
        task = NetworkTask(
            artifact_sha256=hashlib.sha256(data).hexdigest(),
            artifact_bytes=len(data),
            format=NetworkFormat.PACKED,
            input_shape=plan.input_shape,
            setup=setup,
        )
        return measured(task, path)
