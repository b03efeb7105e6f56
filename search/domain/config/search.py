"""A search as the user writes it: the body of POST /v1/searches and, as YAML, the file of `kerf search run`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from typing import Any, get_args, get_origin, get_type_hints

from device_agent.contracts import ContractError, MeasuringSetup, decode
from search.domain.config.method import AccuracyConfig, Estimator, MappingConfig, Method, MethodConfig
from search.domain.config.model_and_data import DatasetConfig, ModelConfig
from search.domain.config.space import SpaceConfig
from search.domain.config.training import Regime, SelectionConfig, TrainingConfig
from search.domain.objective import Constraint, LatencyOverDevices, Metric, Objective

#: The task that is built in: classes, cross-entropy and top-1 accuracy.
TOP1 = "top1"


class MeasuringStrategy(StrEnum):
    """Which kernels a search measures."""

    #: A grid over all that its space can reach, before it begins; latencies are interpolated in it.
    GRID = "grid"
    #: A few first, then between generations those where uncertainty meets the front; a model predicts the rest.
    ACTIVE = "active"


_ROUND_GENERATIONS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuringConfig:
    """How kernels and whole networks are measured; see `MeasuringSetup`.

    `calibration_networks` random pruned networks are measured whole, to fit the correction from the sum of kernels to a
    whole network. `max_kernels` bounds the table of either strategy. With `whole_front`, all of the front is measured
    whole at the end: what is not selected, untrained.
    """

    kernels: MeasuringSetup = field(
        default_factory=lambda: MeasuringSetup(runtime="native", budget_s=0.5, ci_half_width=0.03)
    )
    networks: MeasuringSetup = field(
        default_factory=lambda: MeasuringSetup(
            runtime="native", budget_s=18.0, min_warmup_s=0.5, processes=6, ci_half_width=0.02
        )
    )
    calibration_networks: int = 5
    strategy: MeasuringStrategy = MeasuringStrategy.GRID
    #: With `active`: generations from one round of measuring to the next.
    round_generations: int = _ROUND_GENERATIONS
    max_kernels: int = 400
    whole_front: bool = False

    def __post_init__(self) -> None:
        if self.kernels.runtime != self.networks.runtime:
            raise ContractError(
                f"kernels are measured on {self.kernels.runtime!r} but networks on {self.networks.runtime!r}: "
                "predictions need one runtime"
            )
        if self.calibration_networks < 3:
            raise ContractError(f"calibration_networks {self.calibration_networks!r} must be at least 3")
        is_default = self.round_generations == _ROUND_GENERATIONS
        if self.round_generations < 1 or not (is_default or self.strategy is MeasuringStrategy.ACTIVE):
            raise ContractError(
                f"measuring.round_generations {self.round_generations!r} must be at least 1, and belongs to "
                f"measuring.strategy 'active', not to {self.strategy.value!r}"
            )


#: Methods with survivors, which can be scored again.
_POPULATION_METHODS = (Method.JCW, Method.AACP, Method.NSGA2)

#: Methods that go on when the latency of everything they know changes a little. The others optimise over the latencies
#: of one table, or divide them into bounds at the start.
_ACTIVE_METHODS = (Method.JCW, Method.NSGA2, Method.RANDOM)


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """A search job. `device` names a device (its id or name); None takes the only suitable one.

    `devices` names several instead: one front whose networks are good on all of them. `latency_ms` is then what
    `latency_over_devices` makes of their latencies, and a constraint may name one of them.

    `latency_from` names an earlier search whose latency table is taken as it is, so that no kernel is measured.

    `task` says what the network learns: `top1`, or the name of one that a package on the worker announces.
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
    task: str = TOP1

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
        if self.task != TOP1:
            self._check_own_task()
        if self.measuring.strategy is MeasuringStrategy.ACTIVE:
            self._check_active()

    @property
    def excludes_unprofitable(self) -> bool:
        """Whether choices that do not pay are left out: only where nothing but accuracy and latency counts, since a
        sparser layer still has fewer weights; not with published operators, which know nothing of it, and not where
        latencies change between generations, as what is evaluated for a genome must not.
        """
        counted = {o.metric for o in self.objectives} | {c.metric for c in self.constraints}
        return (
            self.space.weights is not None
            and self.space.weights.exclude_unprofitable
            and not self.method.reproduce_reference
            and self.measuring.strategy is MeasuringStrategy.GRID
            and counted <= {Metric.ERROR, Metric.LOSS, Metric.LATENCY_MS}
        )

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

    def _check_own_task(self) -> None:
        """Refuse what only classification has."""
        if not 1 <= len(self.task) <= 200 or not self.task.isprintable():
            raise ContractError(f"task {self.task!r} must be the name of a task, of 1 to 200 characters")
        problems = []
        if self.model.network is None:
            problems.append("the networks of the zoo are classifiers: give model.network")
        if Method.EXACT in (self.method.name, self.method.seed_with):
            problems.append("the method 'exact' draws labels from classes: use another one")
        if self.training.regime is Regime.JCW:
            problems.append("training.regime 'jcw' smooths labels of classes: use 'finetune'")
        elif self.training.distillation > 0:
            problems.append("training.distillation compares probabilities of classes: set it to 0")
        if problems:
            raise ContractError(f"the task {self.task!r} does not go with this config: {'; '.join(problems)}")

    def _check_active(self) -> None:
        """Refuse what choosing measurements between generations does not go with."""
        problems = []
        if self.method.name not in _ACTIVE_METHODS or self.method.seed_with is not None:
            seeds = "" if self.method.seed_with is None else f" with seed_with {self.method.seed_with.value!r}"
            allowed = ", ".join(m.value for m in _ACTIVE_METHODS)
            problems.append(
                f"the method {self.method.name.value!r}{seeds} works on the latencies of one table: use {allowed}"
            )
        metrics = [o.metric for o in self.objectives]
        if len(metrics) != 2 or Metric.LATENCY_MS not in metrics or not {Metric.LOSS, Metric.ERROR} & set(metrics):
            told = ", ".join(m.value for m in metrics)
            problems.append(
                f"the objectives {told} are no front of accuracy and latency: use loss (or error) and latency_ms"
            )
        if self.latency_from is not None:
            problems.append("latency_from takes a table as it is: leave it out")
        if problems:
            raise ContractError(
                f"measuring.strategy 'active' does not go with this config: {'; '.join(problems)}; or use 'grid'"
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
        _refuse_unknown_keys_of(hints[key], value, f"{where}.{key}")


def _refuse_unknown_keys_of(hint: Any, value: Any, where: str) -> None:
    """The same for the value of a key, in the forms that its type allows."""
    if is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, Mapping):
            _refuse_unknown_keys(hint, value, where)
        return
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        for place, item in enumerate(value):
            for option in get_args(hint):
                _refuse_unknown_keys_of(option, item, f"{where}[{place}]")
        return
    for option in get_args(hint):
        _refuse_unknown_keys_of(option, value, where)
