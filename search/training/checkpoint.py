"""The state of a training run in a file: written often, whole or not at all, and refused by other runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from search.models.checkpoint import CheckpointError, read_tensors, write_tensors

_FORMAT = "2"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCheckpoint:
    """Tensors and numbers between two steps. Numbers keep all their digits."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float] = field(default_factory=dict)

    def group(self, prefix: str) -> dict[str, Tensor]:
        """The tensors whose names begin with `prefix` and a dot, without it."""
        start = len(prefix) + 1
        return {name[start:]: tensor for name, tensor in self.tensors.items() if name.startswith(f"{prefix}.")}


def write_checkpoint(path: Path, fingerprint: str, checkpoint: RunCheckpoint) -> None:
    """Replace the file at `path`."""
    stored = {name: t.detach().clone(memory_format=torch.contiguous_format) for name, t in checkpoint.tensors.items()}
    numbers = {f"number.{name}": float(value).hex() for name, value in checkpoint.numbers.items()}
    write_tensors(path, stored, {"format": _FORMAT, "run": fingerprint, **numbers})


def read_checkpoint(path: Path, fingerprint: str) -> RunCheckpoint:
    """Read what `write_checkpoint` wrote. Raises `CheckpointError` where it is damaged or belongs to another run."""
    tensors = read_tensors(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
    if metadata.get("format") != _FORMAT or metadata.get("run") != fingerprint:
        raise CheckpointError(
            f"{path} belongs to another training run (other network, data, settings or seed): remove it, or give "
            "this run another checkpoint path"
        )
    numbers = {
        name.removeprefix("number."): float.fromhex(value)
        for name, value in metadata.items()
        if name.startswith("number.")
    }
    return RunCheckpoint(tensors=tensors, numbers=numbers)
