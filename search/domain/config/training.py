"""Which candidates are trained, and how."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import StrEnum

from device_agent.contracts import ContractError

#: Settings of masked fine-tuning that JCW's published schedule fixes.
_FINETUNE_ONLY = ("epochs", "learning_rate", "weight_decay", "distillation")


class Regime(StrEnum):
    """How the selected candidates are trained."""

    #: Masked fine-tuning with distillation from the unpruned network.
    FINETUNE = "finetune"
    #: JCW's published schedule: dense, with ADMM, and with the zeros held.
    JCW = "jcw"


class InitialWeights(StrEnum):
    """What training starts from."""

    INHERITED = "inherited"
    FRESH = "fresh"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingConfig:
    """Training of the selected candidates.

    `regime: finetune` is SGD with momentum 0.9, zeros held, and a cosine from `learning_rate`; `distillation` is the
    weight of the Kullback-Leibler term towards the unpruned network's outputs. `regime: jcw` has its own lengths, 240
    epochs in all, and rates: `schedule_factor` shortens all of them, and rates are scaled with `batch_size`.
    """

    regime: Regime = Regime.FINETUNE
    epochs: float = 2.0
    batch_size: int = 128
    learning_rate: float = 0.02
    weight_decay: float = 1e-4
    distillation: float = 0.5
    schedule_factor: float = 1.0
    initial_weights: InitialWeights = InitialWeights.INHERITED

    def __post_init__(self) -> None:
        self._check_regime()
        if self.epochs < 0 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ContractError("training needs epochs >= 0, batch_size >= 1 and a positive learning_rate")
        if not 0.0 <= self.distillation <= 1.0:
            raise ContractError(f"distillation {self.distillation!r} is not in [0, 1]")

    def _check_regime(self) -> None:
        """Refuse settings that the regime would not read."""
        if not 0.0 < self.schedule_factor <= 1.0:
            raise ContractError(f"schedule_factor {self.schedule_factor!r} is not in (0, 1]")
        names = ("schedule_factor", "initial_weights") if self.regime is Regime.FINETUNE else _FINETUNE_ONLY
        defaults = {f.name: f.default for f in fields(self)}
        for name in names:
            if getattr(self, name) != defaults[name]:
                other = Regime.JCW if self.regime is Regime.FINETUNE else Regime.FINETUNE
                remedy = "set training.epochs" if self.regime is Regime.FINETUNE else "set training.schedule_factor"
                raise ContractError(
                    f"training.{name} belongs to the regime {other.value!r}, not to {self.regime.value!r}: leave it "
                    f"out, and {remedy} for the length"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectionConfig:
    """Which part of the front is trained, exported and verified: `candidates` points spread over its latency range.

    With `max_latency_ratio`, only points at most that part of the dense TFLite latency are taken, as far as there are
    enough.
    """

    candidates: int = 8
    max_latency_ratio: float | None = None

    def __post_init__(self) -> None:
        if self.candidates < 1:
            raise ContractError(f"candidates {self.candidates!r} must be at least 1")
