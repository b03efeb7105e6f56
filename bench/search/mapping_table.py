"""The latency table of a ResNet-20 with many schemes, measured here: for mapping.py.

    python -m bench.search.mapping_table --output table.json      # about ten minutes on one core

Kernels and a few whole pruned networks are measured in this process, as an agent would measure them, and brought to one
speed of the machine by the reference kernel.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from torch import nn

from bench import measured as one_process
from bench.search.a72 import shared_data
from device_agent.contracts import KernelTask, MeasuringSetup, setup_id
from device_agent.contracts.measurement import Measurement
from search.domain.config import ChannelsConfig, SpaceConfig, WeightsConfig
from search.domain.network import NetworkSpec
from search.domain.space import Decisions, Genome, SearchSpace
from search.latency.drift import at_usual_speed, usual_references
from search.latency.knots import knots_for
from search.latency.table import LatencyTable, dump_table, kernel_latency, network_latency
from search.lowering import lower
from search.models.checkpoint import load_checkpoint
from search.models.zoo import build_model
from search.pruning.apply import apply_decisions
from search.pruning.fold import to_plan_tensors
from search.pruning.trace import trace_network
from search.space_builder import build_space

ARCHITECTURE = "resnet20"
INPUT_SHAPE = (3, 32, 32)
SCHEMES = (
    "unstructured",
    "group:4x1",
    "group:8x1",
    "block_punched:4x4",
    "block_punched:8x4",
    "block_punched:8x16",
    "pattern:4x1/4",
)
DENSITIES = (0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
CHANNELS = ChannelsConfig(min_ratio=0.25, multiple_of=4, max_choices=5)
_KERNELS = MeasuringSetup(runtime="native", budget_s=0.3, ci_half_width=0.03)
_NETWORKS = MeasuringSetup(runtime="native", budget_s=2.0, ci_half_width=0.02)
_CALIBRATION_LEVELS = (0.1, 0.25, 0.4, 0.55, 0.7, 0.85)
_ATTEMPTS = 3


def mapping_space(spec: NetworkSpec) -> SearchSpace:
    """Everything that a layer may be: whole channels, each scheme, each density."""
    return build_space(
        spec, SpaceConfig(channels=CHANNELS, weights=WeightsConfig(schemes=SCHEMES, densities=DENSITIES))
    )


def measure_table(output: Path) -> None:
    """Measure and write the table; kernels that fail or are rejected three times are named and left out."""
    model = build_model(ARCHITECTURE)
    load_checkpoint(model, shared_data() / "resnet20-cifar10-jpeg.safetensors")
    model.eval()
    spec = trace_network(model, INPUT_SHAPE, ARCHITECTURE)
    space = mapping_space(spec)
    kernels = knots_for(spec, space, 2000)
    print(f"{len(kernels)} kernels", file=sys.stderr)
    tasks = [KernelTask(kernel=kernel, setup=_KERNELS) for kernel in kernels]
    measured = []
    for number, task in enumerate(tasks, start=1):
        found = one_process.measured(task)
        if not isinstance(found, str):
            measured.append((task, found))
        if number % 50 == 0:
            print(f"{number} of {len(tasks)}", file=sys.stderr)
    networks = []
    for genome in _calibration_genomes(space):
        decisions = space.decode(genome)
        found = measured_network(model, spec, decisions)
        if found is not None:
            networks.append((lower(spec, decisions), found))
    everything = [m.statistics for _, m in measured] + [m.statistics for _, m in networks]
    usual = usual_references(everything)
    provenance = measured[0][1].provenance
    table = LatencyTable(
        device_id="this-machine",
        setup_id=setup_id(_KERNELS),
        runtime="native",
        runtime_version=provenance.runtime_version,
        source=provenance.source,
        kernels=tuple(kernel_latency(t.kernel, at_usual_speed(m.statistics, usual)) for t, m in measured),
        networks=tuple(network_latency(plan, at_usual_speed(m.statistics, usual)) for plan, m in networks),
    )
    output.write_text(dump_table(table))


def measured_network(model: nn.Module, spec: NetworkSpec, decisions: Decisions) -> Measurement | None:
    """A pruned network, measured whole; None where that failed."""
    plan, tensors = to_plan_tensors(apply_decisions(model, spec, decisions), spec, decisions)
    found = one_process.measured_network(plan, tensors, _NETWORKS)
    return None if isinstance(found, str) else found


def measured_network_ms(model: nn.Module, spec: NetworkSpec, decisions: Decisions) -> float | None:
    """The median of a whole network in ms as it was now, without correction for the machine's speed."""
    found = measured_network(model, spec, decisions)
    return None if found is None else found.statistics.median_ns / 1e6


def _calibration_genomes(space: SearchSpace) -> list[Genome]:
    """The unpruned network, and random ones from heavily to lightly pruned."""
    rng = np.random.default_rng(0)
    genomes = [space.unpruned]
    for level in _CALIBRATION_LEVELS:
        places = np.clip(rng.normal(level, 0.2, len(space.variables)), 0.0, 1.0)
        genomes.append(tuple(round(float(p) * (n - 1)) for p, n in zip(places, space.num_choices, strict=True)))
    return genomes


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the latency table that bench.search.mapping needs.")
    parser.add_argument("--output", type=Path, required=True)
    measure_table(parser.parse_args().output)


if __name__ == "__main__":
    main()
