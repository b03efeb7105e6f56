"""One run of SGD over a pruned network, which may stop after any step and go on as if it had not.

Everything random follows from one seed, the epoch's number and the step's: the order of the images from the first two,
their augmentation from all. So a run that was stopped ends with the same bits as one that was not.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from device_agent.contracts import canonical_json
from search.compute import CPU
from search.data.batches import as_tensors, augment, network_input
from search.data.loading import LoadedData
from search.distillation import DistillationTeacher, distillation_loss
from search.errors import SearchError
from search.evaluation import EVALUATION_BATCH, AccuracyEstimate, evaluate, logits_of, recalibrate_batch_norm
from search.pruning.apply import PrunedModel
from search.tasks.base import CLASSIFICATION, task_of
from search.training.checkpoint import RunCheckpoint, read_checkpoint, write_checkpoint
from search.training.regulariser import Regulariser
from search.training.schedule import LearningRate

_MOMENTUM = 0.9

#: A run that is killed loses at most so much work. Writing ResNet-56's state takes some 10 ms.
CHECKPOINT_INTERVAL_S = 20.0


class TrainingDiverged(SearchError):
    """The loss is no longer finite. The text names the step and the rate; a smaller `learning_rate` is the remedy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SgdSettings:
    """What one run does. `epochs` may be a fraction; weight decay spares batch norm and biases.

    With `keeps_best_epoch` the result is the network after the epoch with the best accuracy on held-out images, which
    are neither trained on nor the test set.
    """

    epochs: float
    batch_size: int
    learning_rate: LearningRate
    weight_decay: float
    distillation: float = 0.0
    label_smoothing: float = 0.0
    is_nesterov: bool = True
    keeps_best_epoch: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """Progress after an epoch: `epoch` epochs of `epochs` are done (the last may be a part of one).

    `phase` names the run where a training has several; `holdout` is known where the best epoch is kept.
    """

    epoch: int
    epochs: float
    loss: float
    duration_s: float
    images_per_s: float
    phase: str = ""
    holdout: AccuracyEstimate | None = None


def do_nothing() -> None:
    """The `on_step` of a run that nobody watches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Watcher:
    """Who hears of a run, and where its state is kept.

    `on_step` is called after every step and may raise, which ends the run between two steps. `checkpoint_path` is
    written after every epoch and, within one, once `checkpoint_interval_s` have passed since it last was.
    """

    on_epoch: Callable[[EpochReport], None] | None = None
    on_step: Callable[[], None] = do_nothing
    checkpoint_path: Path | None = None
    checkpoint_interval_s: float = CHECKPOINT_INTERVAL_S

    def for_phase(self, name: str) -> Watcher:
        """The watcher of one run of several, with a checkpoint of its own."""
        path = self.checkpoint_path
        return (
            self if path is None else replace(self, checkpoint_path=path.with_name(f"{path.stem}.{name}{path.suffix}"))
        )

    def remove_checkpoints(self) -> None:
        """Remove the file and those of all phases."""
        if self.checkpoint_path is not None:
            self.checkpoint_path.unlink(missing_ok=True)
            for path in self.checkpoint_path.parent.glob(f"{self.checkpoint_path.stem}.*{self.checkpoint_path.suffix}"):
                path.unlink(missing_ok=True)


class SgdRun:
    """One training run, between two steps outside of its methods."""

    def __init__(
        self,
        pruned: PrunedModel,
        data: LoadedData,
        settings: SgdSettings,
        seed: int,
        *,
        teacher: DistillationTeacher | None = None,
        regulariser: Regulariser | None = None,
        watcher: Watcher | None = None,
        phase: str = "",
        device: torch.device = CPU,
    ) -> None:
        """`pruned` is copied, to `device`. Raises `CheckpointError` where the watcher's checkpoint belongs to another
        run.
        """
        if teacher is not None and teacher.data is not data:
            raise ValueError(
                "the teacher was made for other data: make a DistillationTeacher with the data of this run"
            )
        model = copy.deepcopy(pruned.model)
        model = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        masks = {name: mask.to(device) for name, mask in pruned.masks.items()}
        self._pruned = replace(pruned, model=model, masks=masks)
        self._device = device
        self._data = data
        self._task = task_of(data.split.train)
        if teacher is not None and self._task is not CLASSIFICATION:
            raise ValueError(f"the task {self._task.name!r} has no classes to distil: set training.distillation to 0")
        self._settings = settings
        self._seed = seed
        self._teacher = teacher if settings.distillation > 0 else None
        self._regulariser = regulariser
        self._watcher = watcher or Watcher()
        self._phase = phase
        self._images, self._labels = as_tensors(data.split.train)
        self._batch_size = min(settings.batch_size, len(self._images))
        self._steps_per_epoch = len(self._images) // self._batch_size
        self._num_steps = round(settings.epochs * self._steps_per_epoch)
        self._optimizer = _sgd(model, settings)
        self._step = 0
        self._epoch_loss = 0.0
        self._best: dict[str, Tensor] = {}
        self._best_score: AccuracyEstimate | None = None
        self._saved_s = time.monotonic()
        if regulariser is not None:
            regulariser.begin(model)
        self._restore()

    def finish(self) -> PrunedModel:
        """Train to the end. What the watcher's functions raise goes through, and the checkpoint stays."""
        while self._step < self._num_steps:
            self._train_epoch()
        return self._result()

    def _train_epoch(self) -> None:
        """The rest of the current epoch."""
        started = time.perf_counter()
        epoch, done = divmod(self._step, self._steps_per_epoch)
        order = torch.randperm(len(self._images), generator=_generator(self._seed, epoch))
        steps = min(self._steps_per_epoch, self._num_steps - epoch * self._steps_per_epoch)
        self._pruned.model.train()
        for index in range(done, steps):
            chosen = order[index * self._batch_size : (index + 1) * self._batch_size]
            # From 1 on: a trailing zero would give the same stream as the epoch's order.
            generator = _generator(self._seed, epoch, index + 1)
            images = augment(self._images[chosen], self._data.augmentation, generator)
            # Dropout draws from the generator that all of torch shares.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(torch.randint(0, 2**62, (), generator=generator)))
                labels = self._labels[chosen]
                self._epoch_loss += self._train_step(images.to(self._device), labels.to(self._device))
            self._step += 1
            if index + 1 < steps:
                self._save_now_and_then()
                self._watcher.on_step()
        self._end_epoch(epoch, done, steps, started)

    def _end_epoch(self, epoch: int, done: int, steps: int, started: float) -> None:
        model = self._pruned.model.eval()
        if self._regulariser is not None:
            self._regulariser.after_epoch(model, epoch)
        holdout = self._judged() if self._settings.keeps_best_epoch else None
        duration_s = time.perf_counter() - started
        report = EpochReport(
            epoch=epoch + 1,
            epochs=self._settings.epochs,
            loss=self._epoch_loss / steps,
            duration_s=duration_s,
            images_per_s=(steps - done) * self._batch_size / max(duration_s, 1e-9),
            phase=self._phase,
            holdout=holdout,
        )
        self._epoch_loss = 0.0
        self._save()
        self._watcher.on_step()
        if self._watcher.on_epoch is not None:
            self._watcher.on_epoch(report)

    def _train_step(self, images: Tensor, labels: Tensor) -> float:
        settings, model = self._settings, self._pruned.model
        rate = settings.learning_rate.at(self._step, self._num_steps)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        logits = logits_of(model, network_input(images, self._data.normalise, self._pruned.resolution))
        loss = self._task.training_loss(logits, labels, settings.label_smoothing)
        if self._teacher is not None:
            target = self._teacher.logits(images, (self._seed, self._batch_size, self._step))
            loss = (1 - settings.distillation) * loss + settings.distillation * distillation_loss(logits, target)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainingDiverged(
                f"the training loss is {value} at step {self._step} of {self._num_steps} with learning_rate "
                f"{settings.learning_rate.peak:g}: choose a smaller one"
            )
        self._optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if self._regulariser is not None:
            self._regulariser.add_gradients(model)
        self._optimizer.step()
        self._pruned.apply_masks()
        if self._regulariser is not None:
            self._regulariser.after_step(model, self._step)
        return value

    def _judged(self) -> AccuracyEstimate:
        """Accuracy on the held-out images; the network is remembered where no earlier epoch was better."""
        model = self._pruned.model
        score = evaluate(model, self._data.split.holdout, self._data.normalise, resolution=self._pruned.resolution)
        best = self._best_score
        if best is None or (score.accuracy, -score.loss) > (best.accuracy, -best.loss):
            self._best_score = score
            self._best = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
        return score

    def _result(self) -> PrunedModel:
        model = self._pruned.model
        if self._num_steps == 0:
            calibration, _ = as_tensors(self._data.split.calibration)
            recalibrate_batch_norm(
                model,
                calibration,
                self._data.normalise,
                resolution=self._pruned.resolution,
                batch_size=EVALUATION_BATCH,
            )
        if self._best:
            model.load_state_dict(self._best)
        model.to(CPU, memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        masks = {name: mask.to(CPU) for name, mask in self._pruned.masks.items()}
        return replace(self._pruned, model=model.eval(), masks=masks)

    def _save_now_and_then(self) -> None:
        if time.monotonic() - self._saved_s >= self._watcher.checkpoint_interval_s:
            self._save()

    def _save(self) -> None:
        path = self._watcher.checkpoint_path
        if path is None:
            return
        model, optimizer = self._pruned.model, self._optimizer
        tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
        for name, parameter in model.named_parameters():
            # Frozen parameters have none.
            if "momentum_buffer" in optimizer.state[parameter]:
                tensors[f"momentum.{name}"] = optimizer.state[parameter]["momentum_buffer"]
        tensors |= {f"best.{name}": tensor for name, tensor in self._best.items()}
        if self._regulariser is not None:
            tensors |= {f"regulariser.{name}": tensor for name, tensor in self._regulariser.tensors().items()}
        numbers: dict[str, float] = {"step": self._step, "epoch_loss": self._epoch_loss}
        if self._best_score is not None:
            numbers |= {"best_accuracy": self._best_score.accuracy, "best_loss": self._best_score.loss}
        write_checkpoint(path, self._fingerprint(), RunCheckpoint(tensors=tensors, numbers=numbers))
        self._saved_s = time.monotonic()

    def _restore(self) -> None:
        path = self._watcher.checkpoint_path
        if path is None or not path.exists():
            return
        found = read_checkpoint(path, self._fingerprint())
        model = self._pruned.model
        model.load_state_dict(found.group("model"))
        momenta = found.group("momentum")
        for name, parameter in model.named_parameters():
            if name in momenta:
                self._optimizer.state[parameter]["momentum_buffer"] = _as_weight(momenta[name].to(self._device))
        self._best = found.group("best")
        if self._regulariser is not None:
            learnt = found.group("regulariser")
            self._regulariser.restore({name: _as_weight(tensor.to(self._device)) for name, tensor in learnt.items()})
        self._restore_numbers(found.numbers)

    def _restore_numbers(self, numbers: Mapping[str, float]) -> None:
        self._step, self._epoch_loss = int(numbers["step"]), numbers["epoch_loss"]
        if "best_accuracy" in numbers:
            self._best_score = AccuracyEstimate(accuracy=numbers["best_accuracy"], loss=numbers["best_loss"])

    def _fingerprint(self) -> str:
        """What must be equal for a checkpoint to belong to this run."""
        digest = hashlib.sha256()
        shapes = {name: list(tensor.shape) for name, tensor in self._pruned.model.state_dict().items()}
        run = [
            canonical_json(self._settings),
            self._seed,
            len(self._images),
            self._teacher is not None,
            self._pruned.resolution,
            shapes,
            None if self._regulariser is None else self._regulariser.fingerprint(),
        ]
        digest.update(json.dumps(run, sort_keys=True).encode())
        for name, mask in sorted(self._pruned.masks.items()):
            digest.update(name.encode() + np.packbits(mask.cpu().numpy()).tobytes())
        return digest.hexdigest()


def _sgd(model: nn.Module, settings: SgdSettings) -> torch.optim.SGD:
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=settings.learning_rate.peak, momentum=_MOMENTUM, nesterov=settings.is_nesterov)


def _as_weight(stored: Tensor) -> Tensor:
    """A copy in the memory layout that weights have during a run: sums must be formed in the same order."""
    return stored.clone(memory_format=torch.channels_last if stored.ndim == 4 else torch.contiguous_format)


def _generator(*parts: int) -> torch.Generator:
    """Randomness that follows from `parts` alone."""
    state = np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))
