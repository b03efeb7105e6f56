"""How a chosen candidate is trained, by the name that a config gives it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from search.compute import CPU
from search.data.loading import LoadedData
from search.distillation import DistillationTeacher
from search.domain.config import Regime, TrainingConfig
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.pruning.apply import PrunedModel, apply_decisions
from search.training.finetuning import finetune
from search.training.jcw import train_jcw
from search.training.sgd import Watcher


class CandidateTrainer:
    """Trains candidates of one search, all alike.

    Args:
        model: The unpruned network, from which candidates inherit. It is not changed.
        spec: Its description.
        data: Images, normalisation and augmentation.
        settings: The config's `training`.
        seed: All candidates have the same stream, so a result does not depend on which others are trained.
        tell: Gets a line for the user now and then.
        device: Where candidates are trained; what comes out is on the processor.
    """

    def __init__(
        self,
        model: nn.Module,
        spec: NetworkSpec,
        data: LoadedData,
        settings: TrainingConfig,
        seed: int,
        tell: Callable[[str], None],
        *,
        device: torch.device = CPU,
    ) -> None:
        self._model = model
        self._spec = spec
        self._data = data
        self._settings = settings
        self._seed = seed
        self._tell = tell
        self._device = device
        uses_teacher = settings.regime is Regime.FINETUNE and settings.distillation > 0
        self._teacher = DistillationTeacher(model, data, device) if uses_teacher else None

    def train(self, decisions: Decisions, watcher: Watcher) -> PrunedModel:
        """The trained candidate. It goes on from the watcher's checkpoints, where there are any."""
        generator = torch.Generator().manual_seed(self._seed)
        if self._settings.regime is Regime.JCW:
            return train_jcw(
                self._model,
                self._spec,
                decisions,
                self._data,
                self._settings,
                generator,
                watcher=watcher,
                device=self._device,
                on_admm=lambda cut: self._tell(f"after ADMM the masks cut off {100 * cut:.1f} % of the weights' norm"),
            )
        pruned = apply_decisions(self._model, self._spec, decisions)
        return finetune(
            pruned,
            self._data,
            self._settings,
            generator,
            teacher=self._teacher,
            watcher=watcher,
            device=self._device,
        )
