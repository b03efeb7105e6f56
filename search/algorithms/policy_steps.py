"""The steps of a policy's episode: a network's layers in their order, and what may be done at each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from device_agent.contracts import Op, WeightPruning
from search.domain.space import SchemeChoice, SearchSpace, VariableKind
from search.mapping import Layer, MappingInput
from search.pareto import BoolArray, FloatArray, IntArray


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Step:
    """Choices for `variables` (positions in the space), one row of `actions` (actions, variables) each; `places` says
    how much each keeps, from the smallest (0) to the unpruned (1).
    """

    name: str
    kind: VariableKind
    variables: tuple[int, ...]
    actions: IntArray
    places: FloatArray


def steps_of(space: SearchSpace) -> tuple[Step, ...]:
    """One step for each layer (scheme, block and density at once) and for each other variable.

    A density that prunes under a scheme exactly as a larger one does is no action: patterns cap it, and at density 1
    all schemes are the dense one.
    """
    layers: dict[str, list[int]] = {}
    steps: list[tuple[str, VariableKind, list[int]]] = []
    for position, variable in enumerate(space.variables):
        if variable.kind in (VariableKind.DENSITY, VariableKind.SCHEME):
            if variable.target not in layers:
                layers[variable.target] = []
                steps.append((variable.target, VariableKind.DENSITY, layers[variable.target]))
            layers[variable.target].append(position)
        else:
            steps.append((variable.target, variable.kind, [position]))
    return tuple(
        _weight_step(space, name, positions)
        if kind is VariableKind.DENSITY
        else Step(
            name=name,
            kind=kind,
            variables=tuple(positions),
            actions=np.arange(space.num_choices[positions[0]])[:, None],
            places=_even(space.num_choices[positions[0]]),
        )
        for name, kind, positions in steps
    )


def padded(steps: Sequence[Step]) -> tuple[FloatArray, BoolArray]:
    """The places (steps, actions) and which of them are actions at all."""
    most = max(len(step.actions) for step in steps)
    places = np.zeros((len(steps), most))
    allowed = np.zeros((len(steps), most), dtype=np.bool_)
    for row, step in enumerate(steps):
        places[row, : len(step.places)] = step.places
        allowed[row, : len(step.places)] = True
    return places, allowed


def genomes_of(steps: Sequence[Step], actions: IntArray, num_variables: int) -> IntArray:
    """The genomes (n, variables) of walks `actions` (n, steps)."""
    genomes = np.zeros((len(actions), num_variables), dtype=np.int64)
    for column, step in enumerate(steps):
        genomes[:, list(step.variables)] = step.actions[actions[:, column]]
    return genomes


def actions_of(steps: Sequence[Step], genomes: IntArray) -> tuple[IntArray, BoolArray]:
    """The walks (n, steps) that make `genomes` (n, variables), and which genomes (n,) have one."""
    walks = np.zeros((len(genomes), len(steps)), dtype=np.int64)
    found = np.ones(len(genomes), dtype=np.bool_)
    for column, step in enumerate(steps):
        same = (genomes[:, None, list(step.variables)] == step.actions[None]).all(axis=2)
        found &= same.any(axis=1)
        walks[:, column] = same.argmax(axis=1)
    return walks, found


def features_of(steps: Sequence[Step], mapping: MappingInput | None) -> FloatArray:
    """What is known of each step, (steps, features), each about in [-1, 1]: its kind, its place in the network, and, of
    layers, kernel size, filters, inputs, height, stride, whether depthwise or fully connected, the shares of parameters
    and latency, and the density that the rates give it. inferred: the paper's own state is not published.
    """
    layers: Mapping[str, Layer] = {} if mapping is None else {layer.name: layer for layer in mapping.layers}
    densities = {} if mapping is None or not mapping.rates else mapping.rates[len(mapping.rates) // 2].densities
    weights = {name: float(layer.kernel.num_weights) for name, layer in layers.items()}
    times = {name: layer.largest_latency_ns for name, layer in layers.items()}
    rows = []
    for index, step in enumerate(steps):
        row = [
            float(step.kind is VariableKind.DENSITY),
            float(step.kind is VariableKind.CHANNELS),
            2.0 * index / max(1, len(steps) - 1) - 1.0,
        ]
        layer = layers.get(step.name)
        if layer is None:
            row += [0.0] * 10
        else:
            kernel = layer.kernel
            row += [
                kernel.kernel_h / 7.0,
                math.log2(kernel.out_channels) / 10.0,
                math.log2(kernel.in_channels) / 10.0,
                math.log2(kernel.input_h) / 8.0,
                float(kernel.stride > 1),
                float(layer.is_depthwise),
                float(kernel.op is Op.FULLY_CONNECTED),
                weights[step.name] / max(weights.values()),
                times[step.name] / max(times.values()),
                densities.get(step.name, 1.0),
            ]
        rows.append(row)
    return np.array(rows, dtype=np.float64)


def _weight_step(space: SearchSpace, name: str, positions: Sequence[int]) -> Step:
    kinds = [space.variables[p].kind for p in positions]
    kept: dict[WeightPruning, tuple[tuple[int, ...], float]] = {}
    for indices in np.ndindex(*(space.num_choices[p] for p in positions)):
        scheme, density = space.default_scheme, 1.0
        for kind, position, index in zip(kinds, positions, indices, strict=True):
            choice = space.variables[position].choices[index]
            if kind is VariableKind.SCHEME:
                scheme = SchemeChoice.parse(str(choice))
            else:
                density = float(choice)
        pruning = scheme.with_density(density)
        # The last of equal ones is the unpruned genome's.
        kept[pruning] = (tuple(int(i) for i in indices), pruning.density)
    densities = sorted({density for _, density in kept.values()})
    levels = dict(zip(densities, _even(len(densities)), strict=True))
    if len(densities) == 1:
        levels = dict.fromkeys(densities, 1.0)
    return Step(
        name=name,
        kind=VariableKind.DENSITY,
        variables=tuple(positions),
        actions=np.array([indices for indices, _ in kept.values()], dtype=np.int64),
        places=np.array([levels[density] for _, density in kept.values()]),
    )


def _even(count: int) -> FloatArray:
    return np.linspace(0.0, 1.0, count) if count > 1 else np.ones(1)
