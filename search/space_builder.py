"""The search space of a network: which channel counts, densities, schemes, blocks and resolutions are worth trying.

`SearchSpace.unpruned` of a built space always decodes to the dense network: the dense kernel stays a choice everywhere,
as sparse kernels lose to it at high densities.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TypeVar

from device_agent.contracts import ContractError, KernelSpec, Op, PlanOp, PruningScheme, WeightPruning
from search.domain.config import ChannelsConfig, DepthConfig, ResolutionConfig, SpaceConfig, WeightsConfig
from search.domain.network import NetworkSpec
from search.domain.objective import Constraint, Metric
from search.domain.space import DEPTH_CHOICES, Decisions, Genome, SchemeChoice, SearchSpace, Variable, VariableKind
from search.errors import InfeasibleBudget
from search.lowering import lower

T = TypeVar("T")

_DENSE_SCHEME = SchemeChoice(scheme=PruningScheme.DENSE)

#: What a genome alone determines, so that its smallest value can be found before the search.
BUDGET_METRICS = frozenset({Metric.LATENCY_MS, Metric.MACS, Metric.PARAMETERS, Metric.MODEL_BYTES})

#: Sweeps over all variables when looking for the smallest value. The figures are nearly sums over operators, so that
#: the first sweep does almost all; a second one settles neighbours.
_MAX_SWEEPS = 4


def build_space(spec: NetworkSpec, config: SpaceConfig) -> SearchSpace:
    """The variables that `config` opens in the network `spec`.

    A RESOLUTION variable, one DEPTH variable for each removable block, one CHANNELS variable for each pruning group,
    and one DENSITY variable for each prunable operator (fully connected layers only where the config has schemes for
    them). Where several schemes apply to an operator, a SCHEME variable chooses. Variables with a single choice are
    left out.

    Raises `ContractError` where nothing is left to vary, and where the network has nothing of what `config` opens.
    """
    variables: list[Variable] = []
    if config.resolution is not None:
        variables += _resolution_variables(spec, config.resolution)
    if config.depth is not None:
        variables += _depth_variables(spec, config.depth)
    if config.channels is not None:
        variables += _channel_variables(spec, config.channels)
    default = _DENSE_SCHEME
    if config.weights is not None:
        schemes = tuple(SchemeChoice.parse(text) for text in config.weights.schemes)
        fully_connected = tuple(SchemeChoice.parse(text) for text in config.weights.fully_connected)
        default = schemes[0]
        stem = next((op.name for op in spec.plan.ops if op.kernel.op is Op.CONV2D), None)
        for op in spec.plan.ops:
            if op.name in spec.prunable_ops:
                offered = fully_connected if op.kernel.op is Op.FULLY_CONNECTED else schemes
                variables += _weight_variables(op, config.weights, offered, default, is_stem=op.name == stem)
    if not variables:
        raise ContractError(
            f"nothing of {spec.architecture} may vary: {len(spec.groups)} pruning groups, {len(spec.blocks)} removable "
            f"blocks and {len(spec.prunable_ops)} prunable operators leave no choice under {config}"
        )
    return SearchSpace(variables=tuple(variables), default_scheme=default)


def channel_choices(channels: int, config: ChannelsConfig, repeats: int = 1) -> tuple[int, ...]:
    """Multiples of `multiple_of` from `min_ratio * channels` on, and `channels` itself; thinned to `max_choices`.

    Each channel stands for `repeats` channels of every operator at least, as behind shuffles and around grouped
    convolutions, and the operators are to have multiples. Always ends with `channels`, and starts with the smallest
    multiple that is allowed.
    """
    step = config.multiple_of // math.gcd(config.multiple_of, repeats)
    first = max(1, math.ceil(config.min_ratio * channels / step - 1e-9)) * step
    return spread((*range(first, channels, step), channels), config.max_choices)


def resolution_choices(
    side: int, config: ResolutionConfig, fits: Callable[[int], bool] = lambda _: True
) -> tuple[int, ...]:
    """The sides to try for a network whose own is `side`, ascending, that one the last.

    Sides that do not fit are left out, unless `config.sides` names them: then they are the user's to see refused.

    Raises `ContractError` where `config.sides` are larger than `side`: images are decoded to the network's own size.
    """
    if config.sides is not None:
        if max(config.sides) > side:
            raise ContractError(
                f"space.resolution.sides has {max(config.sides)}, but the network's input has {side} pixels a side: "
                "give smaller ones"
            )
        return tuple(sorted({*config.sides, side}))
    step = config.step or default_resolution_step(side)
    smallest = config.min_ratio * side - 1e-9
    sides = [s for s in range(side, max(0, math.ceil(smallest) - 1), -step) if s == side or fits(s)]
    return spread(sorted(sides), config.max_choices)


def default_resolution_step(side: int) -> int:
    """Multiples of 32 are usual for ImageNet, whose networks halve the side five times, and 4 for CIFAR (twice)."""
    return 32 if side > 64 else 4 if side >= 16 else 2


def spread(values: Sequence[T], count: int) -> tuple[T, ...]:
    """At most `count` of `values`, evenly over their order, the first and the last among them (the last, for one)."""
    if count < 1:
        raise ValueError(f"cannot take {count} values")
    if len(values) <= count:
        return tuple(values)
    if count == 1:
        return (values[-1],)
    last = len(values) - 1
    return tuple(values[(2 * i * last + count - 1) // (2 * (count - 1))] for i in range(count))


def check_budget(
    space: SearchSpace, constraints: Sequence[Constraint], measure: Callable[[Genome, Constraint], float]
) -> None:
    """Refuse bounds that no candidate can meet, before a search spends time on them.

    `measure` gives the figure of a genome that a constraint bounds. Bounds on accuracy are not checked: their best
    value is unknown before the search.

    Raises `InfeasibleBudget`, naming every such bound with the smallest value that was reached.
    """
    broken = []
    for constraint in constraints:
        if constraint.metric in BUDGET_METRICS:
            smallest = smallest_value(space, functools.partial(_figure, measure, constraint))
            if constraint.violation(smallest) > 0:
                bound = f"{constraint.subject} <= {constraint.max:g}"
                broken.append(f"{bound}: the smallest found in this space is {smallest:.6g}")
    if broken:
        raise InfeasibleBudget(
            f"no candidate reaches {'; nor '.join(broken)}. Raise the {'bound' if len(broken) == 1 else 'bounds'}, or "
            "allow smaller channel counts (space.channels.min_ratio) or densities (space.weights.densities), removed "
            "blocks (space.depth) or resolutions (space.resolution)"
        )


def smallest_value(space: SearchSpace, value: Callable[[Genome], float]) -> float:
    """The smallest `value` that coordinate descent from `space.smallest` finds.

    Exact where `value` is a sum of terms that each grow with their variables, as it is for MACs and parameters. For
    latencies, where a sparse kernel may be slower than the dense one, descent tries every choice of every variable.
    """
    best = space.smallest
    best_value = value(best)
    for _ in range(_MAX_SWEEPS):
        before = best_value
        for position, num_choices in enumerate(space.num_choices):
            for choice in range(num_choices):
                if choice == best[position]:
                    continue
                trial = (*best[:position], choice, *best[position + 1 :])
                trial_value = value(trial)
                if trial_value < best_value:
                    best, best_value = trial, trial_value
        if best_value == before:
            break
    return best_value


def _figure(measure: Callable[[Genome, Constraint], float], constraint: Constraint, genome: Genome) -> float:
    return measure(genome, constraint)


def _resolution_variables(spec: NetworkSpec, config: ResolutionConfig) -> list[Variable]:
    _, height, width = spec.plan.input_shape
    if height != width:
        raise ContractError(
            f"space.resolution searches square inputs, but {spec.architecture} takes {height}x{width}: leave it out"
        )
    reasons: dict[int, str] = {}

    def fits(side: int) -> bool:
        try:
            lower(spec, Decisions(resolution=side))
        except ContractError as error:
            reasons[side] = str(error)
            return False
        return True

    choices = resolution_choices(height, config, fits)
    for side in config.sides or ():
        if not fits(side):
            raise ContractError(f"{spec.architecture} does not take images of {side}x{side} pixels ({reasons[side]})")
    if len(choices) == 1:
        if reasons:
            raise ContractError(
                f"space.resolution is open, but {spec.architecture} takes no smaller images "
                f"({next(iter(reasons.values()))}): leave it out"
            )
        return []
    return [Variable(kind=VariableKind.RESOLUTION, target="", choices=choices)]


def _depth_variables(spec: NetworkSpec, config: DepthConfig) -> list[Variable]:
    if not spec.blocks:
        why = "; ".join(f"{b.name}: {b.reason}" for b in spec.refused_blocks) or "it has no residual blocks"
        raise ContractError(f"space.depth is open, but no block of {spec.architecture} can be removed ({why})")
    for name in config.keep:
        spec.block(name)
    return [
        Variable(kind=VariableKind.DEPTH, target=block.name, choices=DEPTH_CHOICES)
        for block in spec.blocks
        if block.name not in config.keep
    ]


def _channel_variables(spec: NetworkSpec, config: ChannelsConfig) -> list[Variable]:
    variables = []
    for group in spec.groups:
        repeats = min(Counter((member.op, member.axis) for member in group.members).values())
        choices = channel_choices(group.channels, config, repeats)
        if len(choices) > 1:
            variables.append(Variable(kind=VariableKind.CHANNELS, target=group.name, choices=choices))
    return variables


def _weight_variables(
    op: PlanOp, config: WeightsConfig, schemes: Sequence[SchemeChoice], default: SchemeChoice, *, is_stem: bool
) -> list[Variable]:
    """The DENSITY variable of an operator, and the SCHEME variable where it needs one."""
    usable = [s for s in dict.fromkeys(schemes) if _applies(s, op.kernel)]
    bound = config.stem_min_density if is_stem else 0.0
    densities = sorted({float(d) for d in config.densities if d >= bound} | {1.0})
    if len(densities) == 1 or all(s.scheme is PruningScheme.DENSE for s in usable):
        return []
    if not any(s.with_density(1.0).scheme is PruningScheme.DENSE for s in usable):
        usable.append(_DENSE_SCHEME)
    # Patterns first: the last choice must be one that is dense at density 1.
    usable.sort(key=lambda s: s.scheme is not PruningScheme.PATTERN)
    variables = [Variable(kind=VariableKind.DENSITY, target=op.name, choices=_distinct(densities, usable))]
    if len(usable) > 1 or usable[0] != default:
        variables.append(Variable(kind=VariableKind.SCHEME, target=op.name, choices=tuple(str(s) for s in usable)))
    return variables


def _applies(scheme: SchemeChoice, kernel: KernelSpec) -> bool:
    return scheme.scheme is not PruningScheme.PATTERN or (
        kernel.op is Op.CONV2D and (kernel.kernel_h, kernel.kernel_w) == (3, 3)
    )


def _distinct(densities: Sequence[float], schemes: Sequence[SchemeChoice]) -> tuple[float, ...]:
    """`densities` without those that prune exactly as a larger one does (a pattern caps the density), largest kept."""
    kept: dict[tuple[WeightPruning, ...], float] = {}
    for density in densities:
        kept[tuple(scheme.with_density(density) for scheme in schemes)] = density
    return tuple(sorted(kept.values()))
