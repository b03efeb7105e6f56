"""Tasks of users: a loss and a metric in a Python package that is installed where the worker runs.

A config names a task; code never comes with a request. Packages announce theirs in the entry-point group `kerf.tasks`
(https://packaging.python.org/specifications/entry-points/).
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from search.domain.config import TOP1
from search.errors import SearchError
from search.tasks.base import Judgement

ENTRY_POINT_GROUP = "kerf.tasks"

#: Rounding of means over pixels.
_METRIC_TOLERANCE = 1e-4


class TaskError(SearchError, ValueError):
    """A task cannot be found, or does not do what it must. The text names it and the remedy."""


@runtime_checkable
class UserTask(Protocol):
    """What a package gives: an object like this, or a class or function without arguments that makes one.

    Attributes:
        metric_name: What the metric is called in results, for example "mean IoU".
        follows_geometry: Whether targets say where things are in an image. Images are then neither flipped, shifted nor
            resized, as the targets would have to be as well.
    """

    metric_name: str
    follows_geometry: bool

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss of each image, (n,), with gradients.

        Args:
            outputs: What the network gives, float32 (n, ...).
            targets: As the data set has them: int64 or float32 (n, ...).
        """
        ...

    def metric(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """How good each image's output is, (n,), in [0, 1]: 1 is best. What is reported is the mean over images."""
        ...


class OwnTask:
    """A user's task as training and evaluation want it. Each answer is checked, and each error named after the task."""

    def __init__(self, name: str, task: UserTask) -> None:
        self.name = name
        self.metric_name = task.metric_name
        self.follows_geometry = task.follows_geometry
        self._task = task

    def training_loss(self, outputs: Tensor, targets: Tensor, label_smoothing: float = 0.0) -> Tensor:
        if label_smoothing:
            raise TaskError(f"the task {self.name!r} has no classes to smooth: use training.regime 'finetune'")
        return self._of_images("loss", self._task.loss, outputs, targets).mean()

    def judge(self, outputs: Tensor, targets: Tensor) -> Judgement:
        metric = self._of_images("metric", self._task.metric, outputs, targets).double()
        # NaN fails the comparison, too: an output that is no number has no metric either.
        if not bool(((metric >= -_METRIC_TOLERANCE) & (metric <= 1 + _METRIC_TOLERANCE)).all()):
            low, high = float(metric.min()), float(metric.max())
            raise TaskError(
                f"the metric of the task {self.name!r} is {low:g} to {high:g}: it must be in [0, 1] for each image, "
                "and higher where the output is better"
            )
        loss = self._of_images("loss", self._task.loss, outputs, targets)
        return Judgement(metric_sum=float(metric.clamp(0.0, 1.0).sum()), loss_sum=float(loss.double().sum()))

    def _of_images(
        self, what: str, function: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, targets: Tensor
    ) -> Tensor:
        try:
            values: Any = function(outputs, targets)
        except Exception as error:
            raise TaskError(
                f"the {what} of the task {self.name!r} failed on outputs {tuple(outputs.shape)} and targets "
                f"{tuple(targets.shape)} ({targets.dtype}): {type(error).__name__}: {error}"
            ) from error
        if not isinstance(values, Tensor) or values.shape != outputs.shape[:1]:
            found = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise TaskError(
                f"the {what} of the task {self.name!r} gives {found} for {len(outputs)} images: it must be a tensor "
                "with one value for each image"
            )
        return values

    def check(self, outputs: Tensor, targets: Tensor) -> None:
        """Try loss, gradient and metric on some images. Raises `TaskError` where one does not do what it must."""
        tried = outputs.detach().requires_grad_()
        loss = self.training_loss(tried, targets)
        if not loss.requires_grad or not torch.isfinite(loss):
            how = "" if loss.requires_grad else ", without gradients"
            raise TaskError(
                f"the loss of the task {self.name!r} is {float(loss):g}{how}: compute it from the outputs with torch, "
                "and without detach"
            )
        with torch.no_grad():
            self.judge(outputs, targets)


def load_task(name: str) -> OwnTask | None:
    """The task that a config names; None for `top1`, the one that is built in.

    Raises `TaskError` where no installed package has it, or several have, or what it has is no task.
    """
    if name == TOP1:
        return None
    found = {point.value: point for point in entry_points(group=ENTRY_POINT_GROUP, name=name)}
    if not found:
        known = ", ".join(sorted({point.name for point in entry_points(group=ENTRY_POINT_GROUP)})) or "none"
        raise TaskError(
            f"no package on this worker has the task {name!r}; there are: {TOP1} and of packages {known}. Install the "
            f"package that announces it under {ENTRY_POINT_GROUP!r} where the worker runs"
        )
    if len(found) > 1:
        raise TaskError(f"several packages on this worker have the task {name!r} ({', '.join(found)}): remove one")
    (point,) = found.values()
    try:
        loaded = point.load()
        task = loaded() if isinstance(loaded, type) or not isinstance(loaded, UserTask) else loaded
    except Exception as error:
        raise TaskError(
            f"the task {name!r} ({point.value}) cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(task, UserTask):
        raise TaskError(
            f"{point.value} is no task: it needs metric_name, follows_geometry, loss(outputs, targets) and "
            "metric(outputs, targets)"
        )
    return OwnTask(name, task)
