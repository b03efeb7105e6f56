"""Writes the folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from device_agent.formats.packed import open_packed
from device_agent.formats.tflite import plan_to_tflite
from device_agent.native.deployment.amalgamation import (
    HEADER_FILE,
    SOURCE_FILE,
    amalgamated_header,
    amalgamated_source,
)
from device_agent.native.executor import NativeNetwork

IMAGE_FILE = "network.kerf"
PACKED_FILE = "network.kerfnet"
TFLITE_FILE = "network.tflite"
_COPIED = ("example.c", "run.py", "README.txt")


def write_deployment(packed: bytes, folder: Path, *, isa: str | None = None, tune: bool = True) -> NativeNetwork:
    """Write all that runs the packed network into `folder`, and return the network as it was prepared.

    Tiles are chosen for `isa`, by timing them on this machine with `tune`. Raises `ContractError` for a file that is no
    packed network, `NativeError` and its kinds where it cannot run here.
    """
    plan, tensors = open_packed(packed)
    network = NativeNetwork(plan, tensors, isa=isa, tune=tune)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / PACKED_FILE).write_bytes(packed)
    (folder / TFLITE_FILE).write_bytes(
        plan_to_tflite(plan, {name: np.asarray(tensor) for name, tensor in tensors.items()})
    )
    (folder / HEADER_FILE).write_text(amalgamated_header(), encoding="utf-8")
    (folder / SOURCE_FILE).write_text(amalgamated_source(), encoding="utf-8")
    for name in _COPIED:
        (folder / name).write_bytes((Path(__file__).parent / name).read_bytes())
    # Last: where it lies, the rest is complete.
    (folder / IMAGE_FILE).write_bytes(network.image())
    return network
