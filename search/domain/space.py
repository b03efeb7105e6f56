"""The search space: a list of variables with finitely many choices, and how a genome becomes decisions.

Every search method works on the same genome, a tuple of choice indices, one for each variable.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from device_agent.contracts import DENSE, ContractError, PruningScheme, WeightPruning, content_id

Genome = tuple[int, ...]


class VariableKind(StrEnum):
    """What a variable decides."""

    #: Channels kept in a pruning group; the target is the group's name, choices are counts.
    CHANNELS = "channels"
    #: Density of an operator's weights; the target is the operator's name.
    DENSITY = "density"
    #: Scheme of an operator's weights; choices are written as `SchemeChoice` texts.
    SCHEME = "scheme"
    #: Input height and width in pixels; the target is empty.
    RESOLUTION = "resolution"
    #: Whether a residual block stays; the target is the block's name, choices are 0 (removed) and 1 (kept).
    DEPTH = "depth"


#: What a DEPTH variable chooses from.
DEPTH_CHOICES = (0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class SchemeChoice:
    """A pruning scheme with its block, without a density. Written as "group:4x1", "block_punched:8x4",
    "block:8x16", "pattern:4x1/4" (entries behind the slash), "unstructured" or "dense".
    """

    scheme: PruningScheme
    block_filters: int = 1
    block_channels: int = 1
    pattern_entries: int = 0

    @classmethod
    def parse(cls, text: str) -> SchemeChoice:
        name, _, rest = text.partition(":")
        try:
            scheme = PruningScheme(name)
            block, _, entries = rest.partition("/")
            filters, _, channels = (block or "1x1").partition("x")
            choice = cls(
                scheme=scheme,
                block_filters=int(filters),
                block_channels=int(channels or 1),
                pattern_entries=int(entries or (4 if scheme is PruningScheme.PATTERN else 0)),
            )
        except ValueError:
            raise ContractError(
                f"{text!r} is no pruning scheme: write for example 'group:4x1', 'block_punched:8x4', "
                "'pattern:4x1/4', 'unstructured' or 'dense'"
            ) from None
        choice.with_density(1.0 if scheme is not PruningScheme.PATTERN else choice.pattern_entries / 9)
        return choice

    @classmethod
    def of(cls, pruning: WeightPruning) -> SchemeChoice:
        """The scheme of a pruning, whatever its density."""
        return cls(
            scheme=pruning.scheme,
            block_filters=pruning.block_filters,
            block_channels=pruning.block_channels,
            pattern_entries=pruning.pattern_entries,
        )

    def __str__(self) -> str:
        if self.scheme in (PruningScheme.DENSE, PruningScheme.UNSTRUCTURED):
            return self.scheme.value
        text = f"{self.scheme.value}:{self.block_filters}x{self.block_channels}"
        return f"{text}/{self.pattern_entries}" if self.pattern_entries else text

    def with_density(self, density: float) -> WeightPruning:
        """The pruning of a kernel at `density`. At density 1 every scheme but PATTERN is the dense one.

        A pattern never keeps more than entries/9 of the weights: larger densities mean all kernels with their pattern.
        """
        if self.scheme is PruningScheme.DENSE:
            return DENSE
        if self.scheme is PruningScheme.PATTERN:
            density = min(density, self.pattern_entries / 9)
        elif density >= 1.0:
            return DENSE
        return WeightPruning(
            scheme=self.scheme,
            density=density,
            block_filters=self.block_filters,
            block_channels=self.block_channels,
            pattern_entries=self.pattern_entries,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Variable:
    """One decision. `choices` are in ascending order where they are numbers; the last is the unpruned one."""

    kind: VariableKind
    target: str
    choices: tuple[int | float | str, ...]

    def __post_init__(self) -> None:
        if not self.choices:
            raise ContractError(f"{self.name} has no choices")
        if self.kind is VariableKind.DEPTH and self.choices != DEPTH_CHOICES:
            raise ContractError(f"the choices of {self.name} must be 0 (removed) and 1 (kept): {self.choices}")
        if self.kind is not VariableKind.SCHEME and list(self.choices) != sorted(set(self.choices), key=float):
            raise ContractError(f"the choices of {self.name} must be ascending and distinct: {self.choices}")

    @property
    def name(self) -> str:
        return f"{self.kind.value}:{self.target}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """What a candidate does to the network. What is not named stays as it is.

    `removed_blocks` are sorted. What else is said about their operators has no effect.
    """

    channels: Mapping[str, int] = field(default_factory=dict)
    pruning: Mapping[str, WeightPruning] = field(default_factory=dict)
    resolution: int | None = None
    removed_blocks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if list(self.removed_blocks) != sorted(set(self.removed_blocks)):
            raise ContractError(f"removed_blocks must be sorted and distinct: {self.removed_blocks}")


# Without slots, so that what follows from the variables is computed once: methods ask for it thousands of times.
@dataclass(frozen=True, kw_only=True)
class SearchSpace:
    """The variables of a search. `default_scheme` applies to every DENSITY variable without a SCHEME variable."""

    variables: tuple[Variable, ...]
    default_scheme: SchemeChoice

    def __post_init__(self) -> None:
        names = [v.name for v in self.variables]
        if len(set(names)) != len(names):
            raise ContractError("two variables of the search space have the same kind and target")
        if not names:
            raise ContractError("the search space is empty: give channels, weights, depth or resolution to search")

    @functools.cached_property
    def num_choices(self) -> tuple[int, ...]:
        return tuple(len(v.choices) for v in self.variables)

    @property
    def unpruned(self) -> Genome:
        """The genome that takes the last choice everywhere."""
        return tuple(n - 1 for n in self.num_choices)

    @property
    def smallest(self) -> Genome:
        """The genome that takes the first choice everywhere."""
        return (0,) * len(self.variables)

    def decode(self, genome: Genome) -> Decisions:
        """Turn choice indices into decisions. Raises `ContractError` where an index is outside the space."""
        if len(genome) != len(self.variables):
            raise ContractError(f"a genome of {len(genome)} genes does not fit {len(self.variables)} variables")
        channels: dict[str, int] = {}
        densities: dict[str, float] = {}
        schemes: dict[str, SchemeChoice] = {}
        resolution: int | None = None
        removed: list[str] = []
        for variable, index in zip(self.variables, genome, strict=True):
            if not 0 <= index < len(variable.choices):
                raise ContractError(f"choice {index} of {variable.name} is not in 0..{len(variable.choices) - 1}")
            choice = variable.choices[index]
            if variable.kind is VariableKind.CHANNELS:
                channels[variable.target] = int(choice)
            elif variable.kind is VariableKind.DENSITY:
                densities[variable.target] = float(choice)
            elif variable.kind is VariableKind.SCHEME:
                schemes[variable.target] = SchemeChoice.parse(str(choice))
            elif variable.kind is VariableKind.DEPTH:
                removed += [] if choice else [variable.target]
            else:
                resolution = int(choice)
        targets = [*densities, *(t for t in schemes if t not in densities)]
        pruning = {
            target: schemes.get(target, self.default_scheme).with_density(densities.get(target, 1.0))
            for target in targets
        }
        return Decisions(
            channels=channels, pruning=pruning, resolution=resolution, removed_blocks=tuple(sorted(removed))
        )


def space_id(space: SearchSpace) -> str:
    """The identity of a search space."""
    return content_id("s", space)
