"""Weights of a network in safetensors files. No pickle: a checkpoint is data and cannot run code."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_SHOWN_PROBLEMS = 3


class CheckpointError(ValueError):
    """A checkpoint cannot be read or does not fit its network. The text names the tensors and the remedy."""


def load_checkpoint(model: nn.Module, path: Path | str) -> None:
    """Copy the tensors of a safetensors file into `model`, which is changed only if all of them fit.

    The counters `num_batches_tracked` of batch norm may be missing: nothing here reads them.

    Raises:
        CheckpointError: The file is not there, is damaged, holds values that are not finite, or does not fit.
    """
    tensors = read_tensors(Path(path))
    expected = model.state_dict()
    problems = []
    for name, tensor in expected.items():
        if name not in tensors:
            if not name.endswith("num_batches_tracked"):
                problems.append(f"{name} of shape {tuple(tensor.shape)} is missing")
        elif tensors[name].shape != tensor.shape:
            problems.append(f"{name} has shape {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}")
        elif tensor.is_floating_point() and not bool(torch.isfinite(tensors[name]).all()):
            problems.append(f"{name} holds values that are not finite")
    problems += [f"{name} is not part of the network" for name in sorted(tensors) if name not in expected]
    if problems:
        shown = "; ".join(problems[:_SHOWN_PROBLEMS])
        more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise CheckpointError(
            f"the checkpoint {path} does not fit {type(model).__name__}: {shown}{more}. Name the architecture that it "
            "was trained with, and check the number of classes and of input channels"
        )
    model.load_state_dict(tensors, strict=False)


def save_checkpoint(model: nn.Module, path: Path | str) -> None:
    """Write all parameters and buffers of `model` as a safetensors file, whole or not at all."""
    write_tensors(Path(path), {k: v.detach().contiguous().clone() for k, v in model.state_dict().items()})


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises `CheckpointError` where it cannot be read."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"there is no checkpoint {path}: check the path") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no readable safetensors file ({error}): save it again with safetensors.torch.save_file"
        ) from None


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a safetensors file under a temporary name first, so that a crash leaves no half file behind."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    save_file(tensors, partial, metadata=metadata)
    partial.replace(path)
