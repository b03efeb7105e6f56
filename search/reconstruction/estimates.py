"""The estimated error of every candidate of a space, as a sum of small tables over its variables."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from device_agent.contracts import DENSE, ContractError, WeightPruning
from search.algorithms.factors import Factor
from search.algorithms.threads import one_thread
from search.data.batches import Normalisation
from search.data.dataset import ImageData
from search.domain.network import Axis, NetworkSpec
from search.domain.space import Genome, SchemeChoice, SearchSpace, VariableKind, space_id
from search.lowering import channel_sources
from search.pareto import FloatArray
from search.pruning.channels import importance
from search.pruning.groups import kept_sides
from search.reconstruction.layer_errors import IndexArray, output_change
from search.reconstruction.loss_growth import LayerChanges, loss_growths
from search.reconstruction.moments import LayerMoments, layer_moments

_FORMAT = 1
_DIGITS = 6

#: Variables whose choices are judged by the layers that they change. All others need a measured loss for each choice.
_LAYERWISE = frozenset({VariableKind.CHANNELS, VariableKind.DENSITY, VariableKind.SCHEME})

#: The one-shot losses, in nats, of genomes.
MeasuredLosses = Callable[[Sequence[Genome]], FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ErrorEstimates:
    """`factors` add up to nats of loss above the unpruned network's; each is 0 where nothing is pruned."""

    space_id: str
    factors: tuple[Factor, ...]


def estimate_errors(
    model: nn.Module,
    spec: NetworkSpec,
    space: SearchSpace,
    images: ImageData,
    normalise: Normalisation,
    measured_losses: MeasuredLosses,
    *,
    least_squares: bool = False,
    on_layer: Callable[[int, int], None] = lambda done, total: None,
) -> ErrorEstimates:
    """A table for each layer, over the widths that it reads and writes and its own density and scheme. A layer behind a
    concatenation, which reads several groups, has a table for each of them and one for its density and scheme: to first
    order, these errors add up.

    Variables that are no matter of single layers (resolution, depth) get a table of measured losses, a choice at a time
    with all else unpruned.

    Args:
        model: The trained network.
        spec: Its description.
        space: What may vary.
        images: Calibration images.
        normalise: As in training.
        measured_losses: Asked only for spaces with such variables.
        least_squares: See `layer_errors.output_change`.
        on_layer: Called with (layers done, layers) between steps; what it raises ends the work.
    """
    moments = layer_moments(model, spec, images, normalise, on_batch=lambda: on_layer(0, len(spec.plan.ops)))
    kept = _kept_channels(model, spec, space)
    layers = {}
    for operator, layer in moments.items():
        parts = _layer_choices(operator, layer, spec, space, kept)
        if parts:
            layers[operator] = parts
    changes = {
        operator: LayerChanges(
            make=functools.partial(_changes, moments[operator], parts, least_squares=least_squares),
            mean=moments[operator].mean,
            kept_outputs=parts[0].kept_outputs,
        )
        for operator, parts in layers.items()
    }
    growths = loss_growths(model, spec, images, normalise, changes, on_batch=lambda done: on_layer(done, len(layers)))
    factors = []
    for operator, parts in layers.items():
        rows = np.cumsum([choices.num_changes for choices in parts])[:-1]
        for choices, growth in zip(parts, np.split(growths[operator], rows), strict=True):
            factors.append(choices.factor(space, growth))
    return ErrorEstimates(space_id=space_id(space), factors=(*factors, *_measured_factors(space, measured_losses)))


def errors_to_json(estimates: ErrorEstimates) -> str:
    """A text to be stored with the search."""
    factors = [
        {
            "variables": list(f.variables),
            "shape": list(f.values.shape),
            "values": [float(f"{v:.{_DIGITS}g}") for v in f.values.ravel()],
        }
        for f in estimates.factors
    ]
    return json.dumps({"format": _FORMAT, "space_id": estimates.space_id, "factors": factors})


def errors_from_json(text: str) -> ErrorEstimates:
    """Read what `errors_to_json` wrote. Raises `ContractError` where it is damaged."""
    try:
        data: Mapping[str, Any] = json.loads(text)
        if data["format"] != _FORMAT:
            raise ValueError(f"format {data['format']!r}")
        factors = tuple(
            Factor(
                variables=tuple(int(v) for v in f["variables"]),
                values=np.array(f["values"], dtype=np.float64).reshape(f["shape"]),
            )
            for f in data["factors"]
        )
        return ErrorEstimates(space_id=str(data["space_id"]), factors=factors)
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(f"the stored error estimates are damaged: {error!r}") from None


def _kept_channels(model: nn.Module, spec: NetworkSpec, space: SearchSpace) -> dict[str, list[IndexArray]]:
    """For each group of the space, the channels that each choice keeps, as `pruning.channels.kept_channels` does."""
    kept = {}
    for variable in space.variables:
        if variable.kind is VariableKind.CHANNELS:
            ranking = np.argsort(-importance(model, spec, spec.group(variable.target)), kind="stable")
            kept[variable.target] = [np.sort(ranking[: int(count)]).astype(np.int64) for count in variable.choices]
    return kept


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _LayerChoices:
    """What a space may do to one layer. `axes` are the variables of (inputs, outputs, density, scheme), None where the
    layer has none; `prunings` those of each density and scheme, schemes fastest.
    """

    kept_inputs: list[IndexArray]
    kept_outputs: list[IndexArray]
    prunings: list[WeightPruning]
    axes: tuple[int | None, int | None, int | None, int | None]

    @property
    def num_changes(self) -> int:
        return len(self.kept_inputs) * len(self.prunings)

    def factor(self, space: SearchSpace, growths: FloatArray) -> Factor:
        """The table of nats (inputs x prunings, outputs), with the variables of `space` in their order."""
        inputs, outputs, density, scheme = self.axes
        num_schemes = 1 if scheme is None else space.num_choices[scheme]
        values = growths.reshape(len(self.kept_inputs), -1, num_schemes, len(self.kept_outputs))
        values = np.moveaxis(values, 3, 1)
        axes = list(self.axes)
        if inputs is not None and inputs == outputs:
            # One group on both sides (a layer within a residual stream): the same choice.
            values = np.einsum("iids->ids", values)
            axes = [inputs, density, scheme]
        present = [axis for axis in axes if axis is not None]
        values = values.reshape([space.num_choices[a] for a in present])
        order = np.argsort(present)
        return Factor(variables=tuple(present[i] for i in order), values=values.transpose(order))


def _layer_choices(
    operator: str, layer: LayerMoments, spec: NetworkSpec, space: SearchSpace, kept: Mapping[str, list[IndexArray]]
) -> tuple[_LayerChoices, ...]:
    """One but for layers that read several groups; none where nothing varies but the outputs that are there."""
    positions = {(v.kind, v.target): p for p, v in enumerate(space.variables)}
    sources = channel_sources(spec)[operator]
    groups = [g for g in dict.fromkeys(sources.inputs.groups) if (VariableKind.CHANNELS, g) in positions]
    output_group = sources.outputs.group or ""
    outputs = positions.get((VariableKind.CHANNELS, output_group))
    density = positions.get((VariableKind.DENSITY, operator))
    scheme = positions.get((VariableKind.SCHEME, operator))
    densities = (1.0,) if density is None else tuple(float(d) for d in space.variables[density].choices)
    schemes = (
        (space.default_scheme,)
        if scheme is None
        else tuple(SchemeChoice.parse(str(s)) for s in space.variables[scheme].choices)
    )
    # Without a variable of its own a layer stays as it is, whatever the default scheme.
    is_prunable = density is not None or scheme is not None
    prunings = [s.with_density(d) for d in densities for s in schemes] if is_prunable else [DENSE]
    kept_outputs = [np.arange(layer.weight.shape[0])] if outputs is None else kept[output_group]

    def choices(group: str | None, *, is_pruned: bool) -> _LayerChoices:
        """What `group` and, with `is_pruned`, the layer's own variables do to it; other groups are whole."""
        everything = [np.arange(layer.weight.shape[1])]
        return _LayerChoices(
            kept_inputs=everything
            if group is None
            else [kept_sides(spec, {group: indices})[operator, Axis.IN] for indices in kept[group]],
            kept_outputs=kept_outputs,
            prunings=prunings if is_pruned else [DENSE],
            axes=(
                None if group is None else positions[VariableKind.CHANNELS, group],
                outputs,
                density if is_pruned else None,
                scheme if is_pruned else None,
            ),
        )

    if len(groups) == 1:
        return (choices(groups[0], is_pruned=True),)
    own = (choices(None, is_pruned=True),) if is_prunable else ()
    return (*own, *(choices(group, is_pruned=False) for group in groups))


def _changes(moments: LayerMoments, parts: Sequence[_LayerChoices], *, least_squares: bool) -> Iterator[FloatArray]:
    for choices in parts:
        for inputs, pruning in itertools.product(choices.kept_inputs, choices.prunings):
            with one_thread():
                change = output_change(moments, inputs, pruning, least_squares=least_squares)
            yield change


def _measured_factors(space: SearchSpace, measured_losses: MeasuredLosses) -> list[Factor]:
    factors = []
    for position, variable in enumerate(space.variables):
        if variable.kind in _LAYERWISE:
            continue
        unpruned = space.unpruned
        trials = [(*unpruned[:position], c, *unpruned[position + 1 :]) for c in range(len(variable.choices))]
        losses = measured_losses(trials)
        if not np.isfinite(losses).all():
            raise ContractError(f"the loss of {variable.name} is not finite for some choice: leave that choice out")
        factors.append(Factor(variables=(position,), values=np.maximum(0.0, losses - losses[-1])))
    return factors
