"""The `.kerf` file: one safetensors file whose metadata hold the document of the network.

It is data alone: reading it runs nothing, and checks everything. Format of the container:
https://huggingface.co/docs/safetensors (8 bytes length, JSON header, data).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from device_agent.contracts import ContractError, decode, encode
from search.networks.document import NetworkDocument

METADATA_KEY = "kerf_network"
#: Document and table of tensors of a network with thousands of nodes are a few megabytes.
MAX_HEADER_BYTES = 16 << 20
MAX_FILE_BYTES = 2 << 30

FloatArray = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Network:
    """A document and its tensors, float32, by name; those of the document and no others.

    Raises `ContractError` where a tensor is missing, is not used, has another type or shape, or is not finite.
    """

    document: NetworkDocument
    tensors: Mapping[str, FloatArray]

    def __post_init__(self) -> None:
        shapes = self.document.tensor_shapes
        for name, shape in shapes.items():
            if name not in self.tensors:
                raise ContractError(f"the tensor {name!r} of shape {shape} is missing: convert the network again")
            tensor = self.tensors[name]
            if tensor.dtype != np.float32:
                raise ContractError(f"the tensor {name!r} is {tensor.dtype}, but must be float32")
            if tensor.shape != shape:
                raise ContractError(f"the tensor {name!r} has shape {tensor.shape}, but its node says {shape}")
            if not bool(np.isfinite(tensor).all()):
                raise ContractError(
                    f"the tensor {name!r} holds values that are not finite: train the network again before converting"
                )
        unused = sorted(set(self.tensors) - set(shapes))
        if unused:
            raise ContractError(f"no node uses the tensor {unused[0]!r}: leave it out")
        for node in self.document.nodes:
            variance = node.weights.get("running_var")
            if variance is not None and bool((self.tensors[variance] < 0).any()):
                raise ContractError(f"the tensor {variance!r} is a variance and holds negative values")


def write_network(network: Network, path: Path) -> None:
    """Write a `.kerf` file, whole or not at all. The same network always gives the same bytes.

    Raises `ContractError` where the network would be too large to be read.
    """
    document = json.dumps(encode(network.document), sort_keys=True, separators=(",", ":"), allow_nan=False)
    tensors = {name: np.ascontiguousarray(network.tensors[name]) for name in sorted(network.tensors)}
    data = save(tensors, metadata={METADATA_KEY: document})
    if len(document) > MAX_HEADER_BYTES // 2 or len(data) > MAX_FILE_BYTES:
        raise ContractError(f"the network takes {len(data)} bytes, more than a .kerf file may have ({MAX_FILE_BYTES})")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        partial.write_bytes(data)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_network(path: Path) -> Network:
    """Read and check a `.kerf` file. Nothing in it is run.

    Raises:
        ContractError: The file is not there, is damaged or too large, or its network is not sound. The text names the
            value and the remedy.
    """
    document = read_document(path)
    try:
        with safe_open(path, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, ValueError, AttributeError) as error:
        raise ContractError(f"{path} {_NO_NETWORK.format(error)}") from None
    try:
        return Network(document=document, tensors=tensors)
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from None


def read_document(path: Path) -> NetworkDocument:
    """The document of a `.kerf` file alone, checked; see `read_network`."""
    _check_size(path)
    try:
        with safe_open(path, framework="numpy") as file:
            metadata: dict[str, str] = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ContractError(f"{path} {_NO_NETWORK.format(error)}") from None
    if set(metadata) != {METADATA_KEY}:
        found = ", ".join(sorted(metadata)) or "none"
        raise ContractError(
            f"{path} " + _NO_NETWORK.format(f"its metadata must hold {METADATA_KEY!r} alone, and hold {found:.80}")
        )
    try:
        data = json.loads(metadata[METADATA_KEY], object_pairs_hook=_unique, parse_constant=_refuse_constant)
        return decode(NetworkDocument, data, "network")
    except ContractError as error:
        raise ContractError(f"{path}: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ContractError(f"{path} {_NO_NETWORK.format(f'its document is no JSON: {error}')}") from None


_NO_NETWORK = "is no sound .kerf network ({}): write one with `kerf models convert`"


def _check_size(path: Path) -> None:
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
    except OSError as error:
        raise ContractError(f"cannot read the network {path}: {error.strerror}") from None
    if size > MAX_FILE_BYTES:
        raise ContractError(f"{path} has {size} bytes, more than a .kerf file may have ({MAX_FILE_BYTES})")
    if size < 8 or not 2 <= length <= size - 8:
        raise ContractError(f"{path} {_NO_NETWORK.format('its header does not fit into it')}")
    if length > MAX_HEADER_BYTES:
        raise ContractError(
            f"{path} {_NO_NETWORK.format(f'its header has {length} bytes, at most {MAX_HEADER_BYTES}')}"
        )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ContractError(f"the key {twice!r:.80} stands twice in one object")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ContractError(f"{text} is no JSON number")
