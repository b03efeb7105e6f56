"""What training, estimates and evaluation ask of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor

from search.data.dataset import ImageData
from search.domain.config import TOP1


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Sums over the images of a batch. A metric is in [0, 1] for each image, and higher is better; losses are nats
    where they are cross-entropies.
    """

    metric_sum: float
    loss_sum: float


class LearningTask(Protocol):
    """A loss to train with, and a metric to judge by.

    Attributes:
        name: What a config calls it.
        metric_name: What figures are called: "accuracy" for the share of images whose class is found.
        follows_geometry: Whether targets say where things are in an image, so that they would be wrong for a flipped,
            shifted or resized one.
    """

    @property
    def name(self) -> str: ...

    @property
    def metric_name(self) -> str: ...

    @property
    def follows_geometry(self) -> bool: ...

    def training_loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        """The mean loss of a batch, a scalar with gradients. `outputs` are float32 (n, ...)."""
        ...

    def judge(self, outputs: Tensor, targets: Tensor) -> Judgement:
        """Metric and loss of a batch."""
        ...


class Classification:
    """Cross-entropy, and top-1 accuracy."""

    name = TOP1
    metric_name = "accuracy"
    follows_geometry = False

    def training_loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        return F.cross_entropy(outputs, targets, label_smoothing=label_smoothing)

    def judge(self, outputs: Tensor, targets: Tensor) -> Judgement:
        correct = int((outputs.argmax(1) == targets).sum())
        return Judgement(metric_sum=correct, loss_sum=float(F.cross_entropy(outputs, targets, reduction="sum")))


CLASSIFICATION = Classification()


def task_of(data: ImageData) -> LearningTask:
    """The task of a data set."""
    return CLASSIFICATION if data.task is None else data.task
