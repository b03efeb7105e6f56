"""Printed as JSON by an aarch64 Python: what TFLite does there with 1x1 weights stored without zeros."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    # Behind the agent's own folder: for the samples of tests alone.
    sys.path.append(str(ROOT))
    import numpy as np

    from device_agent.contracts import (
        Activation,
        KernelTask,
        Measurement,
        MeasuringSetup,
        NetworkFormat,
        Source,
        encode,
    )
    from device_agent.formats.tflite import plan_to_tflite
    from device_agent.measuring.task import Surroundings, measure_task
    from device_agent.runtimes import make_runtime, probe_runtimes
    from device_agent.runtimes.litert_profile import profiled_operators
    from device_agent.runtimes.reference import run_network
    from device_agent.runtimes.sparse_probe import probe_sparse_1x1
    from device_agent.runtimes.tflite import TfliteRuntime
    from device_agent.synthesis import synthesize_input
    from tests.unit.device_agent.runtimes.sparse_samples import GROUP, mobile_network, pointwise

    kernels = {
        "unstructured": pointwise(24, 40, 9),
        "group": pointwise(16, 16, 8, pruning=GROUP, residual=True, activation=Activation.RELU6),
        "3x3": pointwise(kernel_h=3, kernel_w=3, padding=1),
    }
    # The budget bounds an emulated run; nothing here depends on the times.
    setup = MeasuringSetup(runtime="tflite-sparse", budget_s=0.2)
    measured = {}
    for name, kernel in kernels.items():
        task = KernelTask(kernel=kernel, setup=setup)
        result = measure_task(task, surroundings=Surroundings(source=Source.EMULATED, cores=()))
        if isinstance(result, Measurement):
            reasons = [reason.value for reason in result.reasons]
            measured[name] = {"mode": result.provenance.mode, "source": result.provenance.source, "reasons": reasons}
        else:
            measured[name] = {"failure": result.reason.value, "detail": result.detail}

    plan, tensors = mobile_network()
    x = synthesize_input(plan.input_shape, 3)
    expected = run_network(plan, tensors, x).reshape(-1)
    data = plan_to_tflite(plan, tensors, sparse_1x1=True)
    sparse = make_runtime("tflite-sparse").load_network(data, NetworkFormat.TFLITE, plan.input_shape, 1)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "mobile.tflite"
        model.write_bytes(data)
        tags = profiled_operators(model, TfliteRuntime().library_folder)
    answer = {
        "probe": encode(probe_sparse_1x1()),
        "runtimes": {info.name: [info.sparse_1x1, info.unavailable] for info in probe_runtimes()},
        "kernels": measured,
        "network": {"mode": sparse.mode, "tags": tags, "error": float(np.abs(sparse.run(x) - expected).max())},
        "largest": float(np.abs(expected).max()),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
