"""Measures what latency models are fitted to and judged by: kernels of pruned networks, and pruned networks whole.

    python -m bench.latency.dataset --work out/bench/latency --passes 2    # half an hour; goes on where it was stopped

Everything is measured in this process, as an agent would measure it. One line of JSON is kept for each measurement of
a kernel or network in `measurements.jsonl` of the work folder, with the reference kernel beside it (`attempts`).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench.latency.attempts import done_keys, num_turns, read_records
from bench.latency.pruned_networks import (
    ZOO,
    Split,
    network_name,
    network_spec,
    pool_kernels,
    pruned_plan,
    random_tensors,
)
from bench.measured import measured, measured_network
from device_agent.contracts import (
    KernelSpec,
    KernelTask,
    Measurement,
    MeasuringSetup,
    NetworkPlan,
    encode,
    kernel_id,
)
from device_agent.measuring.task import Surroundings
from search.domain.network import NetworkSpec
from search.latency.families import without_seed

KERNELS = MeasuringSetup(runtime="native", budget_s=0.4, ci_half_width=0.02)
NETWORKS = MeasuringSetup(runtime="native", budget_s=2.0, ci_half_width=0.01)
NUM_KERNELS = 2000
#: Networks of each architecture.
NUM_NETWORKS = {Split.CALIBRATION: 20, Split.DEVELOPMENT: 5, Split.HELD_OUT: 20}
MEASUREMENTS_FILE = "measurements.jsonl"
#: So many kernels between two networks.
_KERNELS_BETWEEN = 8

_Item = KernelSpec | tuple[str, NetworkPlan]


def items(specs: list[NetworkSpec], num_kernels: int, num_held_out: int) -> Iterator[_Item]:
    """Everything to measure, kernels and networks mixed."""
    networks = [
        (name, pruned_plan(spec, name))
        for split, count in (NUM_NETWORKS | {Split.HELD_OUT: num_held_out}).items()
        for index in range(count)
        for spec in specs
        for name in (network_name(spec.architecture, split, index),)
    ]
    for index, kernel in enumerate(pool_kernels(specs, num_kernels)):
        yield kernel
        if index % _KERNELS_BETWEEN == 0 and networks:
            yield networks.pop(0)
    yield from networks


def measure_all(work: Path, num_kernels: int, num_held_out: int, minutes: float, passes: int) -> None:
    """Measure what is missing in `work`, everything `passes` times, for at most `minutes`.

    Each pass is in an order of its own: what the machine does over minutes would otherwise fall on the same ones.
    """
    specs = [network_spec(architecture, work / "specs") for architecture in ZOO]
    deadline = time.monotonic() + 60 * minutes
    wanted = list(items(specs, num_kernels, num_held_out))
    path = work / MEASUREMENTS_FILE
    for turn in range(num_turns(passes)):
        done = done_keys(read_records(path), turn=turn, passes=passes)
        order = np.random.default_rng(turn).permutation(len(wanted)).tolist()
        missing = [wanted[index] for index in order if _key(wanted[index]) not in done]
        print(f"turn {turn + 1}: {len(missing)} of {len(wanted)} to measure", file=sys.stderr)
        with path.open("a", encoding="utf-8") as file:
            for number, item in enumerate(missing, start=1):
                if time.monotonic() > deadline:
                    print("out of time: run again to go on", file=sys.stderr)
                    return
                file.write(json.dumps(_record(item)) + "\n")
                file.flush()
                if number % 50 == 0:
                    print(f"{number} of {len(missing)}", file=sys.stderr)


def _key(item: _Item) -> str:
    return kernel_id(item) if isinstance(item, KernelSpec) else item[0]


def kernel_record(
    kernel: KernelSpec, setup: MeasuringSetup, surroundings: Surroundings | None = None
) -> dict[str, Any]:
    """The line of a kernel: measured, or why it was not."""
    started = time.monotonic()
    kernel = without_seed(kernel)
    found = measured(KernelTask(kernel=kernel, setup=setup), surroundings=surroundings)
    return _told({"key": kernel_id(kernel), "kernel": encode(kernel)}, found, started)


def _record(item: _Item) -> dict[str, Any]:
    if isinstance(item, KernelSpec):
        return kernel_record(item, KERNELS)
    started = time.monotonic()
    name, plan = item
    ops = [[op.name, list(op.inputs), op.residual, encode(without_seed(op.kernel))] for op in plan.ops]
    found = measured_network(plan, random_tensors(plan), NETWORKS)
    return _told({"key": name, "ops": ops}, found, started)


def _told(about: dict[str, Any], found: Measurement | str, started: float) -> dict[str, Any]:
    about["seconds"] = round(time.monotonic() - started, 3)
    if isinstance(found, str):
        return about | {"failed": found}
    return about | {
        "statistics": dataclasses.asdict(found.statistics),
        "verdict": found.verdict.value,
        "reasons": [reason.value for reason in found.reasons],
        "op_ns": [round(ns, 1) for ns in found.op_ns],
        "runtime_version": found.provenance.runtime_version,
        "runtime_sha256": found.provenance.runtime_sha256,
        "isa": found.provenance.isa,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("out/bench/latency"))
    parser.add_argument("--kernels", type=int, default=NUM_KERNELS)
    parser.add_argument("--held-out", type=int, default=NUM_NETWORKS[Split.HELD_OUT], help="of each architecture")
    parser.add_argument("--passes", type=int, default=1, help="measurements of each, minutes apart; the median counts")
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    measure_all(options.work, options.kernels, options.held_out, options.minutes, options.passes)


if __name__ == "__main__":
    main()
