"""A search as the user writes it: the body of POST /v1/searches and, as YAML, the file of `kerf search run`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any, get_args, get_type_hints

from device_agent.contracts import ContractError, MeasuringSetup, PruningScheme, decode
from search.domain.architectures import ARCHITECTURES
from search.domain.objective import Constraint, LatencyOverDevices, Metric, Objective
from search.domain.space import SchemeChoice


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The network to prune. `checkpoint` is a safetensors file (a path for the CLI, an artifact's SHA-256 for the
    server); without it the network is trained from scratch on the data set for `train_epochs`.
    """

    architecture: str
    checkpoint: str | None = None
    train_epochs: int = 10

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            near = difflib.get_close_matches(self.architecture, ARCHITECTURES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ContractError(
                f"unknown architecture {self.architecture!r}{hint} Known are {', '.join(ARCHITECTURES)}"
            )
        if self.train_epochs < 1:
            raise ContractError(f"train_epochs {self.train_epochs!r} must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetConfig:
    """The data. `train` and `test` are zips of class folders of images (paths for the CLI, artifacts' SHA-256 for the
    server). `name: digits` needs neither: scikit-learn's 8x8 digits, split by seed.

    `holdout_fraction` of the training set is held out for accuracy estimates; the test set is only for final figures.
    """

    name: str = "custom"
    train: str | None = None
    test: str | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    holdout_fraction: float = 0.1
    split_seed: int = 0
    flip: bool = True
    crop_padding: int = 4

    def __post_init__(self) -> None:
        if self.name != "digits" and not (self.train and self.test):
            raise ContractError("dataset needs 'train' and 'test' (zips of class folders), or 'name: digits'")
        if not 0.0 < self.holdout_fraction < 0.9:
            raise ContractError(f"holdout_fraction {self.holdout_fraction!r} is not in (0, 0.9)")
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ContractError(f"mean {self.mean} and std {self.std} must have one positive std for each mean")


@dataclass(frozen=True, slots=True, kw_only=True)
class ChannelsConfig:
    """Channel counts to search: multiples of `multiple_of`, from `min_ratio` of the width on; at most `max_choices`."""

    min_ratio: float = 0.25
    multiple_of: int = 4
    max_choices: int = 8

    def __post_init__(self) -> None:
        if not 0.0 < self.min_ratio <= 1.0:
            raise ContractError(f"min_ratio {self.min_ratio!r} is not in (0, 1]")
        if self.multiple_of < 1 or self.max_choices < 2:
            raise ContractError("channels needs multiple_of >= 1 and max_choices >= 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsConfig:
    """Weight densities to search. One scheme is applied everywhere; several become a variable of each layer.

    `stem_min_density` bounds the first convolution, which is small and sensitive. `fully_connected` has the schemes of
    fully connected layers; without any they stay dense.
    """

    densities: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    schemes: tuple[str, ...] = ("group:4x1",)
    stem_min_density: float = 1.0
    fully_connected: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.densities or not all(0.0 < d <= 1.0 for d in self.densities):
            raise ContractError(f"densities {self.densities} must be a list of numbers in (0, 1]")
        if not self.schemes:
            raise ContractError("weights needs at least one scheme")
        for scheme in self.schemes:
            if SchemeChoice.parse(scheme).scheme is PruningScheme.BLOCK:
                raise ContractError(
                    f"weights.schemes: {scheme!r} prunes fully connected layers only: name it in "
                    "weights.fully_connected, and 'block_punched' here"
                )
        for scheme in self.fully_connected:
            if SchemeChoice.parse(scheme).scheme is PruningScheme.PATTERN:
                raise ContractError(
                    f"weights.fully_connected: {scheme!r} needs 3x3 kernels: use 'block:8x16' or 'group:4x1'"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class DepthConfig:
    """Residual blocks that may be removed: all that the network can do without, but those named in `keep`."""

    keep: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolutionConfig:
    """Heights and widths of the input to search: `sides`, or the network's own and smaller ones by `step` down to
    `min_ratio` of it, at most `max_choices`. The default step is 32 for inputs above 64 pixels, 4 from 16 on, else 2.
    """

    sides: tuple[int, ...] | None = None
    min_ratio: float = 0.5
    step: int | None = None
    max_choices: int = 5

    def __post_init__(self) -> None:
        if self.sides is not None and (not self.sides or min(self.sides) < 1):
            raise ContractError(f"resolution.sides {self.sides} must be a list of pixels, each at least 1")
        if self.sides is not None and self.step is not None:
            raise ContractError("resolution takes 'sides' or 'step', not both")
        if not 0.0 < self.min_ratio <= 1.0:
            raise ContractError(f"resolution.min_ratio {self.min_ratio!r} is not in (0, 1]")
        if (self.step is not None and self.step < 1) or self.max_choices < 2:
            raise ContractError("resolution needs step >= 1 and max_choices >= 2")


@dataclass(frozen=True, slots=True, kw_only=True)
class SpaceConfig:
    """What may vary. What is left out stays as it is."""

    channels: ChannelsConfig | None = None
    weights: WeightsConfig | None = None
    depth: DepthConfig | None = None
    resolution: ResolutionConfig | None = None

    def __post_init__(self) -> None:
        if self.channels is None and self.weights is None and self.depth is None and self.resolution is None:
            raise ContractError("space is empty: give 'channels', 'weights', 'depth', 'resolution' or several of them")


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodConfig:
    """The search method. `generations` counts the initial population as the first.

    `reproduce_reference` takes the operators as their authors released them, quirks included.
    With `seed_with: exact`, half of the first population are points of the exact front of estimated layer errors.
    """

    name: Method = Method.JCW
    population: int = 24
    generations: int = 10
    seed: int = 0
    reproduce_reference: bool = False
    seed_with: Method | None = None

    def __post_init__(self) -> None:
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


#: Methods with survivors, which can be scored again.
_POPULATION_METHODS = (Method.JCW, Method.AACP, Method.NSGA2)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuringConfig:
    """How kernels and whole networks are measured; see `MeasuringSetup`.

    `calibration_networks` random pruned networks are measured whole, to fit the correction from the sum of kernels to a
    whole network.
    """

    kernels: MeasuringSetup = field(
        default_factory=lambda: MeasuringSetup(runtime="native", budget_s=0.5, ci_half_width=0.03)
    )
    networks: MeasuringSetup = field(
        default_factory=lambda: MeasuringSetup(runtime="native", budget_s=3.0, ci_half_width=0.02)
    )
    calibration_networks: int = 5
    max_kernels: int = 400

    def __post_init__(self) -> None:
        if self.kernels.runtime != self.networks.runtime:
            raise ContractError(
                f"kernels are measured on {self.kernels.runtime!r} but networks on {self.networks.runtime!r}: "
                "predictions need one runtime"
            )
        if self.calibration_networks < 3:
            raise ContractError(f"calibration_networks {self.calibration_networks!r} must be at least 3")


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """A search job. `device` names a device (its id or name); None takes the only suitable one.

    `devices` names several instead: one front whose networks are good on all of them. `latency_ms` is then what
    `latency_over_devices` makes of their latencies, and a constraint may name one of them.

    `latency_from` names an earlier search whose latency table is taken as it is, so that no kernel is measured.
    """

    name: str
    model: ModelConfig
    dataset: DatasetConfig
    space: SpaceConfig
    device: str | None = None
    devices: tuple[str, ...] = ()
    latency_over_devices: LatencyOverDevices = LatencyOverDevices.MAX
    latency_from: str | None = None
    method: MethodConfig = field(default_factory=MethodConfig)
    objectives: tuple[Objective, ...] = (Objective(metric=Metric.LOSS), Objective(metric=Metric.LATENCY_MS))
    constraints: tuple[Constraint, ...] = ()
    accuracy: AccuracyConfig = field(default_factory=AccuracyConfig)
    measuring: MeasuringConfig = field(default_factory=MeasuringConfig)
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    mapping: MappingConfig | None = None

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 200:
            raise ContractError("name must have 1 to 200 characters")
        metrics = [o.metric for o in self.objectives]
        if len(set(metrics)) != len(metrics) or not metrics:
            raise ContractError("objectives must be different metrics, for example loss and latency_ms")
        if len(metrics) == 1:
            self._check_single_objective(metrics[0])
        if self.method.reproduce_reference:
            self._check_reference()
        if self.method.name is Method.THREE_DIMENSIONS:
            if self.space.depth is None and self.space.channels is None and self.space.resolution is None:
                raise ContractError(
                    "the method 'three_dimensions' searches depth, width and resolution: open space.depth, "
                    "space.channels or space.resolution"
                )
            if not {Metric.LOSS, Metric.ERROR} & set(metrics):
                raise ContractError(
                    "the method 'three_dimensions' fits the accuracy of networks: add the objective loss"
                )
        if self.accuracy.estimator is Estimator.SUPERNET and self.method.name not in _POPULATION_METHODS:
            raise ContractError(
                f"accuracy.estimator 'supernet' scores survivors again in each generation, and the method "
                f"{self.method.name.value!r} has none: use {', '.join(m.value for m in _POPULATION_METHODS)}, or the "
                "estimator 'one_shot'"
            )
        if self.mapping is not None and self.method.name not in (Method.RULE_MAPPING, Method.POLICY_GRADIENT):
            raise ContractError(
                f"mapping is for the methods rule_mapping and policy_gradient, not for {self.method.name.value}: leave "
                "it out, or change method.name"
            )
        if self.method.name is Method.RULE_MAPPING and self.space.weights is None:
            raise ContractError("the method rule_mapping chooses how weights are pruned: give space.weights")
        self._check_devices()

    def _check_devices(self) -> None:
        if self.device is not None and self.devices:
            raise ContractError(
                f"device {self.device!r} and devices {', '.join(self.devices)} are both given: keep one"
            )
        twice = [name for i, name in enumerate(self.devices) if name in self.devices[:i]]
        if twice:
            raise ContractError(f"devices has {twice[0]!r} twice: name each device once")
        if self.latency_over_devices is not LatencyOverDevices.MAX and len(self.devices) < 2:
            raise ContractError(
                f"latency_over_devices {self.latency_over_devices.value!r} needs two or more 'devices': leave it out"
            )
        adds_up = len(self.devices) < 2 or self.latency_over_devices is LatencyOverDevices.MEAN
        if Method.EXACT in (self.method.name, self.method.seed_with) and not adds_up:
            raise ContractError(
                f"the method 'exact' adds up latencies of layers, which the {self.latency_over_devices.value!r} over "
                "several devices is not: set latency_over_devices to 'mean' and bound single devices by constraints, "
                "or use another method"
            )
        named = self.devices or (() if self.device is None else (self.device,))
        for constraint in self.constraints:
            if constraint.device is not None and constraint.device not in named:
                known = f"this search is for {', '.join(named)}" if named else "'device' and 'devices' name none"
                raise ContractError(
                    f"a constraint is on device {constraint.device!r}, but {known}: name it as it is named there"
                )

    def _check_single_objective(self, metric: Metric) -> None:
        """One network, the best within bounds, as AACP has it."""
        if metric not in (Metric.ERROR, Metric.LOSS) or not self.constraints:
            raise ContractError(
                f"the single objective {metric.value!r} asks for one network: it must be error or loss, with "
                "constraints on what the network may cost; or give two objectives, for example loss and latency_ms"
            )
        if self.method.name not in (Method.AACP, Method.NSGA2, Method.RANDOM):
            raise ContractError(
                f"the method {self.method.name.value!r} looks for a front over latency: add the objective latency_ms, "
                "or use aacp for the one best network within bounds"
            )

    def _check_reference(self) -> None:
        """Refuse what JCW's published operators do not know."""
        problems = []
        if self.constraints:
            bounds = ", ".join(f"{c.metric.value} <= {c.max:g}" for c in self.constraints)
            problems.append(f"no constraints, but there are {bounds}")
        if self.space.weights is not None and len(self.space.weights.schemes) > 1:
            problems.append(f"one scheme, but there are {', '.join(self.space.weights.schemes)}")
        if self.method.seed_with is not None:
            problems.append(f"no seeds, but there is seed_with {self.method.seed_with.value!r}")
        if len(self.objectives) != 2 or Metric.LATENCY_MS not in {o.metric for o in self.objectives}:
            metrics = ", ".join(o.metric.value for o in self.objectives)
            problems.append(f"two objectives, of which one is latency_ms, but there are {metrics}")
        if problems:
            raise ContractError(
                f"method.reproduce_reference takes JCW's published operators, which know {'; '.join(problems)}: change "
                "that, or leave reproduce_reference out"
            )


def parse_config(data: object) -> SearchConfig:
    """Check and build a config from plain data (parsed YAML or JSON).

    Raises `ContractError` with the path of the first bad value; a misspelt key comes with the nearest known one.
    """
    if not isinstance(data, Mapping):
        raise ContractError("a search config is a mapping with at least name, model, dataset and space")
    _refuse_unknown_keys(SearchConfig, data, "config")
    return decode(SearchConfig, data, "config")


def _refuse_unknown_keys(cls: type, data: Mapping[str, Any], where: str) -> None:
    known = {f.name for f in fields(cls)}
    hints = get_type_hints(cls)
    for key, value in data.items():
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys are {', '.join(sorted(known))}"
            raise ContractError(f"{where}: unknown key {key!r}; {hint}")
        for option in (hints[key], *get_args(hints[key])):
            if is_dataclass(option) and isinstance(option, type) and isinstance(value, Mapping):
                _refuse_unknown_keys(option, value, f"{where}.{key}")
