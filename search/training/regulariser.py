"""What a method of pruning may do to a training run: pull on weights, hold zeros, learn between steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn


class Regulariser(Protocol):
    """Takes part in every step of one run (`search.training.sgd`). Made anew for each run.

    A run may stop after any step and go on in another process. So all that a regulariser learns is in `tensors`, and
    everything else follows from the arguments that it was made with, which `fingerprint` names.
    """

    def begin(self, model: nn.Module) -> None:
        """Called once before the first step of every process, also where `restore` follows."""
        ...

    def add_gradients(self, model: nn.Module) -> None:
        """Add to the parameters' `grad`, after the loss's backward pass and before the optimiser's step."""
        ...

    def after_step(self, model: nn.Module, step: int) -> None:
        """Change weights in place after the optimiser's step number `step`, counted from 0 over the whole run."""
        ...

    def after_epoch(self, model: nn.Module, epoch: int) -> None:
        """Called after the last step of epoch number `epoch`, counted from 0; the last one may be a part of one."""
        ...

    def tensors(self) -> Mapping[str, Tensor]:
        """All that was learnt, for the checkpoint. Always the same names and shapes after `begin`."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave; called after `begin`."""
        ...

    def fingerprint(self) -> str:
        """Text that differs where another regulariser, or one with other arguments, would train otherwise."""
        ...
