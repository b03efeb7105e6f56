"""Running networks for their accuracy: the arithmetic that is fastest here, batch norm recalibration, evaluation."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from search.compute import device_of
from search.data.batches import Normalisation, as_tensors, iterate_batches, network_input
from search.data.dataset import ImageData
from search.tasks.base import task_of

#: Small enough that the activations of a batch stay in the cache: larger ones were up to twice as slow.
EVALUATION_BATCH = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyEstimate:
    """Share of images classified rightly, and mean cross-entropy in nats; NaN where there is a `failure`.

    For a task of one's own, `accuracy` is the mean of its metric over images, and `loss` that of its loss.
    """

    accuracy: float
    loss: float
    #: Why there is no estimate.
    failure: str | None = None


@functools.cache
def bfloat16_is_fast() -> bool:
    """Whether the processor multiplies matrices of bfloat16 in hardware (AMX on x86).

    Networks then run two to three times faster in it; without such hardware it is emulated and slower than float32.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return "amx_bf16" in flags.split()


@contextmanager
def fast_arithmetic() -> Iterator[None]:
    """Convolutions in bfloat16 where that is fast, with parameters, statistics and losses in float32."""
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16_is_fast()):
        yield


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: ImageData,
    normalise: Normalisation,
    *,
    resolution: int | None = None,
    batch_size: int = EVALUATION_BATCH,
) -> AccuracyEstimate:
    """Accuracy and loss of a network in evaluation mode on all of `data`, as its task judges them, wherever its weights
    are.
    """
    images, labels = as_tensors(data)
    task = task_of(data)
    correct, loss = 0.0, 0.0
    with in_mode(model, training=False):
        device = device_of(model)
        for batch, target in iterate_batches(images, labels, batch_size):
            inputs = network_input(batch.to(device), normalise, resolution)
            judged = task.judge(logits_of(model, inputs), target.to(device))
            correct += judged.metric_sum
            loss += judged.loss_sum
    return AccuracyEstimate(accuracy=correct / len(data), loss=loss / len(data))


@torch.no_grad()
def recalibrate_batch_norm(
    model: nn.Module, images: Tensor, normalise: Normalisation, *, resolution: int | None, batch_size: int
) -> None:
    """Replace the statistics of batch norm, in place, by their plain mean over batches of `images`.

    Pruning shifts activations, and adapting these statistics alone recovers most of a pruned network's accuracy
    (EagleEye, arXiv 2007.02491). Batches have equal sizes, so that each counts the same, and images come in order and
    without augmentation, so that equal networks get equal statistics.

    Args:
        model: The network.
        images: uint8 (n, h, w, c).
        normalise: As in training.
        resolution: Height and width to resize to, or None.
        batch_size: At most so many images at a time.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        with in_mode(model, training=False):
            for norm in norms:
                norm.train()
            for batch in torch.tensor_split(images, -(-len(images) // batch_size)):
                logits_of(model, network_input(batch.to(device_of(model)), normalise, resolution))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum


def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """The network's outputs in float32, (n, classes) or (n, ...), computed in the arithmetic that is fastest here."""
    with fast_arithmetic():
        outputs: Tensor = model(x)
    return outputs.float()


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Switch the whole network to training or evaluation mode, and back."""
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training
