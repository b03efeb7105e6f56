"""The files that a user takes away: a fused network for the native executor, for TFLite, as ONNX, as plain tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from device_agent.contracts import NetworkFormat, NetworkPlan, encode
from device_agent.formats.packed import write_packed
from device_agent.formats.tflite import plan_to_tflite

#: File names inside a candidate's folder, by what they hold.
PACKED_FILE = "network.kerfnet"
TFLITE_FILE = "network.tflite"
ONNX_FILE = "network.onnx"
WEIGHTS_FILE = "weights.safetensors"
PLAN_FILE = "plan.json"

#: The exported file that runs a network task of each format.
FORMAT_FILES = {NetworkFormat.PACKED: PACKED_FILE, NetworkFormat.TFLITE: TFLITE_FILE}


def write_network(plan: NetworkPlan, tensors: Mapping[str, NDArray[np.float32]], form: NetworkFormat) -> bytes:
    """A network in the form that a device takes."""
    if form is NetworkFormat.PACKED:
        return write_packed(plan, tensors)
    return plan_to_tflite(plan, tensors)


def export_files(plan: NetworkPlan, tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, bytes]:
    """All files of one network by name: packed, TFLite, and `portable_files`.

    `tensors` are `<op>.weight` and `<op>.bias` as in `NetworkPlan`, with batch norm folded in and masks applied.
    """
    return {
        PACKED_FILE: write_packed(plan, tensors),
        TFLITE_FILE: plan_to_tflite(plan, tensors),
        **portable_files(plan, tensors),
    }


def portable_files(plan: NetworkPlan, tensors: Mapping[str, NDArray[np.float32]]) -> dict[str, bytes]:
    """What other tools read, by name: ONNX, and safetensors beside the plan as JSON."""
    # Only where files are written: commands that take a name from here start without it.
    from search.onnx_export import plan_to_onnx

    return {
        ONNX_FILE: plan_to_onnx(plan, tensors),
        WEIGHTS_FILE: save({name: np.ascontiguousarray(value) for name, value in tensors.items()}),
        PLAN_FILE: (json.dumps(encode(plan), indent=1) + "\n").encode(),
    }
