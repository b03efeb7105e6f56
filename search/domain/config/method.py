"""How candidates are proposed, and how their accuracy is estimated."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from device_agent.contracts import ContractError


class Method(StrEnum):
    """How candidates are proposed."""

    JCW = "jcw"
    AACP = "aacp"
    NSGA2 = "nsga2"
    RANDOM = "random"
    EXACT = "exact"
    RULE_MAPPING = "rule_mapping"
    POLICY_GRADIENT = "policy_gradient"
    THREE_DIMENSIONS = "three_dimensions"


#: More terms than this have more coefficients than chains have points.
MAX_RANK = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodConfig:
    """The search method. `generations` counts the initial population as the first.

    `reproduce_reference` takes the operators as their authors released them, quirks included.
    With `seed_with: exact`, half of the first population are points of the exact front of estimated layer errors.
    `reconstruct` estimates them as if the weights that stay made up for the others, as training has them do.
    """

    name: Method = Method.JCW
    population: int = 24
    generations: int = 10
    seed: int = 0
    reproduce_reference: bool = False
    seed_with: Method | None = None
    #: Terms of the polynomial of `three_dimensions`.
    rank: int = 1
    reconstruct: bool = False

    def __post_init__(self) -> None:
        if self.reconstruct and Method.EXACT not in (self.name, self.seed_with):
            raise ContractError(
                "method.reconstruct belongs to 'exact' and to 'seed_with: exact', not to "
                f"{self.name.value!r}: leave it out"
            )
        if not 1 <= self.rank <= MAX_RANK or (self.rank != 1 and self.name is not Method.THREE_DIMENSIONS):
            raise ContractError(
                f"method.rank {self.rank!r} must be 1..{MAX_RANK}, and belongs to 'three_dimensions', not to "
                f"{self.name.value!r}: leave it out"
            )
        if self.reproduce_reference and self.name is not Method.JCW:
            raise ContractError(f"reproduce_reference is there for 'jcw', not for {self.name.value!r}: leave it out")
        if self.seed_with not in (None, Method.EXACT) or (
            self.seed_with is not None and self.name in (Method.EXACT, Method.RANDOM)
        ):
            raise ContractError(
                f"seed_with {str(self.seed_with)!r} does not go with method {str(self.name)!r}: only 'exact' can seed, "
                "and only jcw, aacp and nsga2 start from a given population"
            )
        if self.population < 4 or self.generations < 1:
            raise ContractError(
                f"population {self.population!r} must be at least 4 and generations {self.generations!r} at least 1"
            )


class Estimator(StrEnum):
    """How a candidate's accuracy is estimated while a search runs."""

    #: The unpruned network's weights, pruned.
    ONE_SHOT = "one_shot"
    #: JCW's: a network with shared weights, trained for each generation and discarded.
    SUPERNET = "supernet"
    #: A short fine-tuning of each candidate, from the weights of the nearest one that was tuned before.
    FINETUNED = "finetuned"


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyConfig:
    """The estimate: batch norm is recalibrated on `calibration_images`, and accuracy and loss are taken on
    `evaluation_images`, both from the training set and apart from each other.

    `supernet` trains 10 and 20 epochs for each generation, times `schedule_factor`, in batches of `batch_size`.
    `finetuned` trains each candidate for `finetune_epochs`, in batches of `training.batch_size`.
    """

    estimator: Estimator = Estimator.ONE_SHOT
    schedule_factor: float = 1.0
    finetune_epochs: float = 1.0
    calibration_images: int = 512
    evaluation_images: int = 1000
    batch_size: int = 256
    #: Before the front is chosen, so many of the best candidates are judged again on all held-out images; 0 for none.
    reevaluate_top: int = 16

    def __post_init__(self) -> None:
        if self.reevaluate_top < 0:
            raise ContractError(f"reevaluate_top {self.reevaluate_top!r} must be at least 0")
        if min(self.calibration_images, self.evaluation_images, self.batch_size) < 1:
            raise ContractError("calibration_images, evaluation_images and batch_size must be at least 1")
        if not self.finetune_epochs > 0:
            raise ContractError(f"finetune_epochs {self.finetune_epochs!r} must be positive")
        if self.estimator is not Estimator.FINETUNED and self.finetune_epochs != 1.0:
            raise ContractError(
                f"accuracy.finetune_epochs belongs to the estimator 'finetuned', not to {self.estimator.value!r}: "
                "leave it out"
            )
        if not 0.0 < self.schedule_factor <= 1.0:
            raise ContractError(f"schedule_factor {self.schedule_factor!r} is not in (0, 1]")
        if self.estimator is not Estimator.SUPERNET and self.schedule_factor != 1.0:
            raise ContractError(
                f"accuracy.schedule_factor belongs to the estimator 'supernet', not to {self.estimator.value!r}: leave "
                "it out"
            )


class RateSource(StrEnum):
    """Where the pruning rates of layers come from."""

    #: The network is trained with reweighted group regularisation first.
    REWEIGHTED = "reweighted"
    #: The trained network's weights as they are: cheap, and worse.
    MAGNITUDE = "magnitude"


class DataDifficulty(StrEnum):
    """What the rules of `rule_mapping` do to 3x3 convolutions."""

    #: Punched blocks, as for CIFAR-10.
    EASY = "easy"
    #: Patterns, as for ImageNet.
    HARD = "hard"


@dataclass(frozen=True, slots=True, kw_only=True)
class MappingConfig:
    """What `rule_mapping` and `policy_gradient` look for before they search (Gong et al., arXiv 2111.11581).

    `epochs`, `learning_rate` and `strength` are of the regularised training that `rates: reweighted` needs; `targets`
    are parts of the multiply-accumulates, a vector of rates each. `betas` are what a finer block may cost beyond
    whole-matrix pruning. The rules take `data` as easy by default: patterns keep at most 4 of 9 weights, which needs
    long retraining.
    """

    rates: RateSource = RateSource.REWEIGHTED
    epochs: float = 4.0
    learning_rate: float = 0.01
    strength: float = 1e-4
    targets: tuple[float, ...] = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8)
    betas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    data: DataDifficulty = DataDifficulty.EASY

    def __post_init__(self) -> None:
        if not self.epochs > 0 or not self.learning_rate > 0 or not self.strength > 0:
            raise ContractError("mapping.epochs, mapping.learning_rate and mapping.strength must be positive")
        if not self.targets or not all(0.0 < t <= 1.0 for t in self.targets):
            raise ContractError(f"mapping.targets {self.targets} must be a list of numbers in (0, 1]")
        if not self.betas or not all(0.0 <= b <= 10.0 for b in self.betas):
            raise ContractError(f"mapping.betas {self.betas} must be a list of numbers in 0..10")
