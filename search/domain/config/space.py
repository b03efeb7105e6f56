"""What may vary, as the user opens it."""

from __future__ import annotations

from dataclasses import dataclass

from device_agent.contracts import ContractError, PruningScheme
from search.domain.space import SchemeChoice


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
    fully connected layers; without any they stay dense. With `exclude_unprofitable`, a choice is not tried where a
    denser one takes no longer (`search.unprofitable`).
    """

    densities: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    schemes: tuple[str, ...] = ("group:4x1",)
    stem_min_density: float = 1.0
    fully_connected: tuple[str, ...] = ()
    exclude_unprofitable: bool = True

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
