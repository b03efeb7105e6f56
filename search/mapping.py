"""What the methods that map schemes to layers know beforehand: the layers with their latency tables, and their rates.

Y. Gong et al.: Automatic Mapping of the Best-Suited DNN Pruning Schemes for Real-Time Mobile Acceleration,
arXiv 2111.11581.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from device_agent.contracts import KernelSpec, Op
from search.domain.network import NetworkSpec
from search.domain.space import Genome, SearchSpace, VariableKind
from search.genome_costs import CostTable, WithSums
from search.lowering import channel_sources


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """An operator with weights. `density`, `scheme`, `inputs` and `outputs` are positions of variables in the space;
    None where nothing varies, or channels are those of several groups. `latency` is in ns, as part of a whole network,
    over the columns of genomes that `with_sums` made longer.
    """

    name: str
    kernel: KernelSpec
    latency: CostTable
    with_sums: WithSums
    density: int | None = None
    scheme: int | None = None
    inputs: int | None = None
    outputs: int | None = None

    def latency_ns(self, genome: Genome | Sequence[int]) -> float:
        """This layer's share of a genome's latency."""
        columns = self.with_sums([genome])[0]
        return float(self.latency.values[tuple(columns[list(self.latency.variables)])])

    @property
    def largest_latency_ns(self) -> float:
        """Over all genomes."""
        return float(np.nanmax(self.latency.values))

    @property
    def is_depthwise(self) -> bool:
        return self.kernel.op is Op.DEPTHWISE_CONV2D


@dataclass(frozen=True, slots=True, kw_only=True)
class RateVector:
    """A density in (0, 1] for each prunable operator, which together keep `target` of their multiply-accumulates."""

    target: float
    densities: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MappingInput:
    """`betas` are the latencies that a finer block may cost beyond whole-matrix structured pruning, as parts of it.
    `patterns_on_3x3` says that 3x3 convolutions get patterns instead of blocks.
    """

    layers: tuple[Layer, ...]
    rates: tuple[RateVector, ...]
    betas: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    patterns_on_3x3: bool = False


def network_layers(
    spec: NetworkSpec, space: SearchSpace, latencies: Sequence[CostTable], with_sums: WithSums
) -> tuple[Layer, ...]:
    """The operators of `spec` with weights, in order, with their tables of `GenomeCosts.sum_tables`."""
    positions = {(v.kind, v.target): p for p, v in enumerate(space.variables)}
    tables = {table.operator: table for table in latencies}
    sources = channel_sources(spec)

    def position(kind: VariableKind, target: str | None) -> int | None:
        return None if target is None else positions.get((kind, target))

    return tuple(
        Layer(
            name=op.name,
            kernel=op.kernel,
            latency=tables[op.name],
            with_sums=with_sums,
            density=position(VariableKind.DENSITY, op.name),
            scheme=position(VariableKind.SCHEME, op.name),
            inputs=position(VariableKind.CHANNELS, sources[op.name].inputs.group),
            outputs=position(VariableKind.CHANNELS, sources[op.name].outputs.group),
        )
        for op in spec.plan.ops
        if op.kernel.op.has_weights
    )


def interpolated(places: Sequence[float], values: Sequence[float], wanted: float) -> float:
    """Linear between ascending `places`; the nearest end outside of them."""
    return float(np.interp(wanted, places, values))
