"""Random pruned versions of the zoo's networks: what latency models are fitted for and judged by.

Every network has a name such as "vgg16/held_out/3", from which alone its decisions are drawn. Splits have different
names and therefore different networks: POOL gives kernels to measure, CALIBRATION fits the correction of whole
networks, DEVELOPMENT is for looking at while a model is built, and HELD_OUT for the final figures only.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from enum import StrEnum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import KernelSpec, NetworkPlan, PlanOp, canonical_json
from device_agent.contracts.codec import loads
from device_agent.synthesis import synthesize_weights
from search.domain.architectures import ARCHITECTURES
from search.domain.config import ChannelsConfig, SpaceConfig, WeightsConfig
from search.domain.network import NetworkSpec
from search.domain.space import SearchSpace, VariableKind
from search.latency.families import without_seed
from search.lowering import lower
from search.space_builder import build_space

ZOO = ("resnet18", "resnet20", "resnet56", "mobilenet_v1", "mobilenet_v2", "vgg16")

SCHEMES = (
    "unstructured",
    "group:4x1",
    "group:8x1",
    "block_punched:4x4",
    "block_punched:8x4",
    "block_punched:8x16",
    "pattern:4x1/4",
)
FULLY_CONNECTED = ("unstructured", "group:4x1", "block:8x16")
DENSITIES = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0)
#: Networks keep channels in multiples of one of these: staircases of registers are to be met on and between steps.
_MULTIPLES = (2, 4, 8)
_MIN_RATIO, _MOST_CHOICES = 0.25, 64
_SPREAD = 0.25


class Split(StrEnum):
    """What a network is for."""

    POOL = "pool"
    CALIBRATION = "calibration"
    DEVELOPMENT = "development"
    HELD_OUT = "held_out"


def network_spec(architecture: str, cache: Path) -> NetworkSpec:
    """The traced network; tracing proves its groups and takes seconds, so what was found is kept in `cache`."""
    path = cache / f"{architecture}.json"
    if path.is_file():
        return loads(NetworkSpec, path.read_bytes())
    # Only here: whoever reads stored measurements does without torch.
    import torch

    from search.models.zoo import build_model
    from search.pruning.trace import trace_network

    # On busy cores, threads that wait for each other make this many times slower.
    torch.set_num_threads(1)
    spec = trace_network(build_model(architecture), ARCHITECTURES[architecture].input_shape, architecture)
    cache.mkdir(parents=True, exist_ok=True)
    path.write_text(canonical_json(spec), encoding="utf-8")
    return spec


def network_name(architecture: str, split: Split, index: int) -> str:
    return f"{architecture}/{split.value}/{index}"


def pruned_plan(spec: NetworkSpec, name: str) -> NetworkPlan:
    """The pruned network `name` of `spec`: its levels of channels and density, schemes and choices by chance."""
    rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
    one_scheme = rng.random() < 0.5
    schemes = (SCHEMES[int(rng.integers(len(SCHEMES)))],) if one_scheme else SCHEMES
    space = build_space(
        spec,
        SpaceConfig(
            channels=ChannelsConfig(
                min_ratio=_MIN_RATIO, multiple_of=int(rng.choice(_MULTIPLES)), max_choices=_MOST_CHOICES
            ),
            weights=WeightsConfig(schemes=schemes, densities=DENSITIES, fully_connected=FULLY_CONNECTED),
        ),
    )
    return lower(spec, space.decode(_genome(space, rng)))


def _genome(space: SearchSpace, rng: np.random.Generator) -> tuple[int, ...]:
    levels = {VariableKind.CHANNELS: rng.uniform(), VariableKind.DENSITY: rng.uniform()}
    genome = []
    for variable in space.variables:
        place = rng.uniform()
        if variable.kind in levels:
            place = float(np.clip(rng.normal(levels[variable.kind], _SPREAD), 0.0, 1.0))
        genome.append(min(int(place * len(variable.choices)), len(variable.choices) - 1))
    return tuple(genome)


def pool_kernels(specs: Sequence[NetworkSpec], count: int, per_network: int = 4) -> list[KernelSpec]:
    """`count` distinct kernels as pruned networks have them: some of each of many networks, in a fixed random order."""
    found: dict[KernelSpec, None] = {}
    for name, kernels in _pool_networks(specs):
        rng = np.random.default_rng(int.from_bytes(hashlib.sha256(f"kernels of {name}".encode()).digest()[:8], "big"))
        for index in rng.choice(len(kernels), size=min(per_network, len(kernels)), replace=False):
            found.setdefault(without_seed(kernels[index]))
            if len(found) == count:
                return list(found)
    raise AssertionError("unreachable: networks never end")


def _pool_networks(specs: Sequence[NetworkSpec]) -> Iterator[tuple[str, tuple[KernelSpec, ...]]]:
    index = 0
    while True:
        for spec in specs:
            name = network_name(spec.architecture, Split.POOL, index)
            yield name, pruned_plan(spec, name).kernels
        index += 1


def random_tensors(plan: NetworkPlan) -> dict[str, NDArray[np.float32]]:
    """Weights for `plan`, pruned as it says, another seed for each operator: times depend on masks, not on values."""
    tensors = {}
    for index, op in enumerate(plan.ops):
        for name, tensor in synthesize_weights(_seeded(op, index)).items():
            tensors[f"{op.name}.{name}"] = tensor
    return tensors


def _seeded(op: PlanOp, index: int) -> KernelSpec:
    return dataclasses.replace(op.kernel, seed=index + 1)
