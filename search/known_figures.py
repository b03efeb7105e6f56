"""Latency and counts of many genomes at once, as the search methods want them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from device_agent.contracts import ContractError, NetworkPlan
from device_agent.formats.packed import weight_bytes
from search.algorithms.factors import Factor
from search.domain.network import NetworkSpec
from search.domain.objective import Constraint, LatencyOverDevices, Metric
from search.domain.space import SearchSpace
from search.genome_costs import CostTable, GenomeCosts, KernelCost
from search.latency.fleet import FleetLatencyModel, over_devices
from search.latency.network import NetworkLatencyModel
from search.pareto import FloatArray, IntArray
from search.problem import SearchProblem

#: What a plan alone decides, on any device.
PLAN_METRICS = frozenset({Metric.MACS, Metric.PARAMETERS, Metric.MODEL_BYTES})

_NS_PER_MS = 1e6

#: The name of the device where a search has only one, and nothing tells it apart.
_ONLY_DEVICE = ""


_PLAN_COSTS: dict[str, KernelCost] = {
    "macs": lambda kernel: float(kernel.macs),
    "parameters": lambda kernel: float(kernel.parameters),
    "model_bytes": lambda kernel: float(weight_bytes(kernel)),
}


def bounds_problem(
    spec: NetworkSpec, space: SearchSpace, constraints: Sequence[Constraint], figures: NetworkFigures | None = None
) -> SearchProblem:
    """The problem of meeting `constraints` on known figures alone: those of the plan, and latency with `figures`.

    For `search.algorithms.repair.least_violating`, before a search begins.
    """
    if figures is not None:
        return SearchProblem(
            space=space,
            objectives=(),
            constraints=tuple(c for c in constraints if c.metric in NetworkFigures.METRICS),
            known=figures,
            known_metrics=NetworkFigures.METRICS,
            tables=figures.tables,
            known_latencies=figures.latencies_ms,
            device_tables=figures.device_tables,
        )
    costs = GenomeCosts(spec, space, _PLAN_COSTS)

    def known(genomes: ArrayLike) -> Mapping[Metric, FloatArray]:
        return {Metric(name): column for name, column in zip(costs.names, costs.sums(genomes).T, strict=True)}

    def tables(metric: Metric) -> tuple[Factor, ...]:
        return _factors(costs, metric.value)

    return SearchProblem(
        space=space,
        objectives=(),
        constraints=tuple(c for c in constraints if c.metric in PLAN_METRICS),
        known=known,
        known_metrics=PLAN_METRICS,
        tables=tables,
    )


def check_tables(spec: NetworkSpec, space: SearchSpace) -> None:
    """Raise `ContractError`, with the remedy, where `NetworkFigures.tables` would for the size of a table."""
    GenomeCosts(spec, space, _PLAN_COSTS).check_tables()


class NetworkFigures:
    """What a genome alone decides: a `KnownFigures` of `METRICS`. Tables fill up as genomes are asked for.

    With a `FleetLatencyModel`, `latency_ms` is that over its devices, and `latencies_ms` gives each one's.

    Raises `KernelNotMeasured`, when called, where a genome leads outside of a latency table.
    """

    METRICS = PLAN_METRICS | {Metric.LATENCY_MS}

    def __init__(self, spec: NetworkSpec, space: SearchSpace, latency: NetworkLatencyModel | FleetLatencyModel) -> None:
        if isinstance(latency, NetworkLatencyModel):
            latency = FleetLatencyModel({_ONLY_DEVICE: latency}, LatencyOverDevices.MAX)
        self._fleet = latency
        models = latency.models.values()
        self._offsets_ns = np.array([model.correction.offset_ns for model in models])
        self._costs = GenomeCosts(
            spec,
            space,
            {
                **{_column(name): m.kernel_ns for name, m in latency.models.items()},
                **_PLAN_COSTS,
            },
        )

    def layer_latencies(self) -> Mapping[str, tuple[CostTable, ...]]:
        """For each device what each operator adds to the latency of a network, in ns, over the choices of its own
        variables and sums of channels (`with_sums`). Every cell is computed, so this takes seconds for a large space;
        later calls are quick.
        """
        return {device: self._costs.sum_tables(_column(device)) for device in self._fleet.devices}

    def with_sums(self, genomes: ArrayLike) -> IntArray:
        """`genomes` with the columns that `layer_latencies` is over: see `GenomeCosts.with_sums`."""
        return self._costs.with_sums(genomes)

    def latency_tables(self) -> tuple[CostTable, ...]:
        """As `layer_latencies`, with several devices made one in each cell: for choices within a layer, not to be added
        up.
        """
        return tuple(
            CostTable(
                operator=own[0].operator,
                variables=own[0].variables,
                values=over_devices(np.stack([t.values for t in own], axis=-1), self._fleet.over),
            )
            for own in zip(*self.layer_latencies().values(), strict=True)
        )

    def __call__(self, genomes: ArrayLike) -> Mapping[Metric, FloatArray]:
        return self.with_latencies_ms(genomes)[0]

    def latencies_ms(self, genomes: ArrayLike) -> Mapping[str, FloatArray]:
        """The latency (n,) of `genomes` on each device: a `KnownLatencies`."""
        return self.with_latencies_ms(genomes)[1]

    def with_latencies_ms(self, genomes: ArrayLike) -> tuple[Mapping[Metric, FloatArray], Mapping[str, FloatArray]]:
        """The figures of `genomes`, and their latencies on each device, from one sum over operators."""
        sums = self._costs.sums(genomes)
        macs, parameters, model_bytes = sums[:, len(self._offsets_ns) :].T
        latencies: FloatArray = (sums[:, : len(self._offsets_ns)] + self._offsets_ns) / _NS_PER_MS
        figures = {
            Metric.LATENCY_MS: over_devices(latencies, self._fleet.over),
            Metric.MACS: macs,
            Metric.PARAMETERS: parameters,
            Metric.MODEL_BYTES: model_bytes,
        }
        return figures, dict(zip(self._fleet.devices, latencies.T, strict=True))

    def tables(self, metric: Metric) -> tuple[Factor, ...]:
        """Tables that add up to one of `METRICS`: one for each operator, and what does not vary.

        Every cell is computed, so this takes seconds for a large space; later calls are quick.

        Raises `ContractError` for the latency of several devices where it is no such sum.
        """
        if metric is not Metric.LATENCY_MS:
            return _factors(self._costs, metric.value)
        devices = self._fleet.devices
        if len(devices) == 1:
            return self.device_tables(devices[0])
        if self._fleet.over is not LatencyOverDevices.MEAN:
            raise ContractError(
                f"the {self._fleet.over.value!r} of latencies over {len(devices)} devices is no sum over layers: set "
                "latency_over_devices to 'mean' and bound the devices by constraints, or use another method"
            )
        return tuple(
            Factor(variables=factor.variables, values=factor.values / len(devices))
            for device in devices
            for factor in self.device_tables(device)
        )

    def device_tables(self, device: str) -> tuple[Factor, ...]:
        """Tables that add up to the latency in ms on one device."""
        place = self._fleet.devices.index(device)
        offset = self._offsets_ns[place] / _NS_PER_MS
        return (
            *_factors(self._costs, _column(device), 1.0 / _NS_PER_MS),
            Factor(variables=(), values=np.array(offset)),
        )


def _factors(costs: GenomeCosts, column: str, scale: float = 1.0) -> tuple[Factor, ...]:
    """The tables of one column of `costs`, times `scale`."""
    return tuple(Factor(variables=t.variables, values=scale * t.values) for t in costs.tables(column))


def _column(device: str) -> str:
    return f"latency_ns {device}"


def plan_figures(plan: NetworkPlan) -> dict[Metric, float]:
    """The figures `PLAN_METRICS` of one plan, which need no latency table."""
    return {
        Metric.MACS: float(plan.macs),
        Metric.PARAMETERS: float(plan.parameters),
        Metric.MODEL_BYTES: float(sum(weight_bytes(kernel) for kernel in plan.kernels)),
    }
