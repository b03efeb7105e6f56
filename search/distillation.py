"""Learning from the unpruned network's outputs beside the labels (Hinton et al. 2015, arXiv 1503.02531)."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from search.compute import CPU
from search.data.batches import network_input
from search.data.loading import LoadedData
from search.evaluation import logits_of

_TEMPERATURE = 4.0
_MAX_REMEMBERED_BYTES = 256 << 20


class DistillationTeacher:
    """The unpruned network, whose outputs pruned ones learn.

    Runs with the same seed see the same augmented images at every step, so outputs are remembered, and the second
    candidate of a search learns from them for free. A teacher belongs to one data set.

    Args:
        model: The unpruned network; a copy is kept.
        data: What the students will be trained on.
        device: Where the students are trained.
    """

    def __init__(self, model: nn.Module, data: LoadedData, device: torch.device = CPU) -> None:
        self.data = data
        model = copy.deepcopy(model).eval()
        self._model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._remembered: dict[tuple[int, ...], Tensor] = {}
        self._remembered_bytes = 0

    @torch.no_grad()
    def logits(self, images: Tensor, key: tuple[int, ...]) -> Tensor:
        """Outputs (n, classes) for augmented uint8 images (n, h, w, c), both on its device. Equal keys must mean equal
        images.
        """
        known = self._remembered.get(key)
        if known is not None:
            return known
        outputs: Tensor = logits_of(self._model, network_input(images, self.data.normalise))
        if self._remembered_bytes + outputs.nbytes <= _MAX_REMEMBERED_BYTES:
            self._remembered[key] = outputs
            self._remembered_bytes += outputs.nbytes
        return outputs


def distillation_loss(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Kullback-Leibler divergence of softened outputs, times the squared temperature to keep the gradients' size."""
    return _TEMPERATURE**2 * F.kl_div(
        F.log_softmax(logits / _TEMPERATURE, dim=1),
        F.log_softmax(teacher_logits / _TEMPERATURE, dim=1),
        reduction="batchmean",
        log_target=True,
    )
