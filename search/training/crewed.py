"""Training of chosen candidates by a crew of processes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from search.compute import CPU, gpu
from search.data.loading import LoadedData
from search.domain.config import TrainingConfig
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.evaluation import evaluate
from search.models.checkpoint import save_checkpoint
from search.parallel.crew import Contact, Do
from search.training.regimes import CandidateTrainer
from search.training.sgd import Watcher


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPiece:
    """A candidate to train. Its state is kept in `checkpoint_path`, on the machine where it is trained, if given."""

    decisions: Decisions
    checkpoint_path: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedCandidate:
    """Weights as a safetensors file, and how good they are on the test set."""

    weights: bytes
    accuracy: float
    loss: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainingWork:
    """What each process of the crew needs: see `CandidateTrainer`. `threads` and `uses_gpu` are as in `OneShotWork`.

    A piece tells an `EpochReport` after each epoch, and lines for the user as text.
    """

    model: nn.Module
    spec: NetworkSpec
    data: LoadedData
    settings: TrainingConfig
    seed: int
    threads: int | None = None
    uses_gpu: bool = False

    def __call__(self) -> Do:
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        trainers: list[CandidateTrainer] = []

        def train(piece: TrainingPiece, contact: Contact) -> TrainedCandidate:
            if not trainers:
                trainers.append(self._trainer(contact))
            watcher = Watcher(on_epoch=contact.tell, on_step=contact.check, checkpoint_path=piece.checkpoint_path)
            trained = trainers[0].train(piece.decisions, watcher)
            test = self.data.split.test
            tested = evaluate(trained.model, test, self.data.normalise, resolution=trained.resolution)
            with tempfile.TemporaryDirectory(prefix="kerf-") as folder:
                path = Path(folder) / "weights.safetensors"
                save_checkpoint(trained.model, path)
                return TrainedCandidate(weights=path.read_bytes(), accuracy=tested.accuracy, loss=tested.loss)

        return train

    def _trainer(self, contact: Contact) -> CandidateTrainer:
        device = gpu() if self.uses_gpu else CPU
        return CandidateTrainer(self.model, self.spec, self.data, self.settings, self.seed, contact.tell, device=device)
