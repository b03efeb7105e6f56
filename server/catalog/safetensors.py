"""The header of a safetensors file: what can be checked of a checkpoint without torch.

Format: https://huggingface.co/docs/safetensors (8 bytes length, JSON header, data).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path

from device_agent.contracts import ContractError

#: Of 40,000 tensors. The library takes 100 MB, which would cost this process gigabytes to read.
MAX_HEADER_BYTES = 4 << 20
#: More dimensions, or longer ones, are of no network; their product alone could take hours.
_MAX_DIMENSIONS = 16
_MAX_EXTENT = 1 << 48
_ELEMENT_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointHeader:
    num_tensors: int
    num_elements: int


def read_header(path: Path) -> CheckpointHeader:
    """Read and check the header. Raises `ContractError` where the file is no sound safetensors file."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or not 2 <= length <= min(MAX_HEADER_BYTES, size - 8):
            raise ContractError(
                _REMEDY.format(f"its header does not fit into it, or has more than {MAX_HEADER_BYTES >> 20} MiB")
            )
        try:
            header = json.loads(file.read(length))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            elements = sum(_check_tensor(name, entry, size - 8 - length) for name, entry in tensors.items())
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, ContractError):
                raise
            raise ContractError(_REMEDY.format("its header cannot be read")) from None
    if not tensors:
        raise ContractError(_REMEDY.format("it holds no tensors"))
    return CheckpointHeader(num_tensors=len(tensors), num_elements=elements)


_REMEDY = "the artifact is no safetensors file ({}): save the state dict with safetensors.torch.save_file"


def _check_tensor(name: str, entry: dict[str, object], data_bytes: int) -> int:
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in _ELEMENT_BYTES:
        raise ContractError(f"tensor {name!r} has the type {dtype!r}: save it as float32")
    if (
        not isinstance(shape, list)
        or len(shape) > _MAX_DIMENSIONS
        or not all(isinstance(n, int) and 0 <= n <= _MAX_EXTENT for n in shape)
    ):
        raise ContractError(_REMEDY.format(f"tensor {name!r} has the shape {shape!r}"))
    if not isinstance(offsets, list) or not all(isinstance(n, int) for n in offsets) or len(offsets) != 2:
        raise ContractError(_REMEDY.format(f"tensor {name!r} has the offsets {offsets!r}"))
    begin, end = offsets
    count = prod(shape)
    if not 0 <= begin <= end <= data_bytes or end - begin != count * _ELEMENT_BYTES[dtype]:
        raise ContractError(_REMEDY.format(f"tensor {name!r} does not lie inside the file"))
    return count
