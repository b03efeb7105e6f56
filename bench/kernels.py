"""The native kernels against the peak of the core and against dense baselines: single layers and whole networks.

    python -m bench.kernels [--json FILE]              # all layers and networks of the zoo: minutes
    python -m bench.kernels --quick [--json FILE]      # a choice of them: under 50 s
    python -m bench.kernels --layers '128@28' --no-baselines     # one layer and no network, for kernel work: seconds

One thread. Thread-CPU times; in every round the peak loop, the dense baselines and all native variants of a layer
take turns, so that a disturbance hits all of them alike, and figures are medians over rounds of ratios within a
round. Weights are random: times do not depend on their values.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import single_layers, threads, whole_networks
from bench.layers import Layer, prunings, zoo_layers
from bench.peak import PeakLoop
from bench.single_layers import PEAK, LayerRow, LayerTimer
from bench.threads import ThreadRow, thread_rows
from bench.timing import MIN_SAMPLE_NS, Variant, time_interleaved
from bench.whole_networks import Loader, NetworkRow, network_rows
from bench.zoo import NETWORKS
from device_agent.contracts import NetworkFormat, NetworkPlan, PruningScheme
from device_agent.formats.tflite import plan_to_tflite
from device_agent.native.library import load_library
from device_agent.runtimes import Runtime, RuntimeUnavailable, make_runtime
from device_agent.runtimes.base import Executable
from device_agent.runtimes.ncnn import NcnnRuntime

_FULL_DENSITIES = {
    PruningScheme.DENSE: (1.0,),
    PruningScheme.GROUP: (0.5, 0.3, 0.2, 0.1),
    PruningScheme.UNSTRUCTURED: (0.5, 0.2, 0.1),
    PruningScheme.PATTERN: (4 / 9,),
}
_QUICK_DENSITIES = {
    PruningScheme.DENSE: (1.0,),
    PruningScheme.GROUP: (0.3, 0.1),
    PruningScheme.UNSTRUCTURED: (0.2,),
    PruningScheme.PATTERN: (4 / 9,),
}
_QUICK_LAYERS = (
    "64@56",
    "128@28",
    "256@14",
    "512@7",
    "128-256@28s2",
    "1x1 256-512@14s2",
    "16@32",
    "64@8",
    "dw 256@28",
    "dw 256@28s2",
    "1x1 512@14",
)
_NETWORK_DENSITIES = (1.0, 0.3, 0.1)
_QUICK_THREAD_DENSITIES = (0.3,)
#: Rounds of layers, of networks, and of networks on several threads.
_FULL_ROUNDS = (21, 21, 41)
_QUICK_ROUNDS = (7, 5, 15)
#: Several repetitions of the largest layers: one alone meets caches that the other variants have filled.
_FULL_SAMPLE_NS = 4_000_000
#: Operators without multiply-adds have no place among the layers, which are compared with the peak.
_OTHER = "other_layers"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark, print its tables and write its figures."""
    options = _parse(arguments)
    start = time.monotonic()
    result = measure(options)
    print(f"\n{time.monotonic() - start:.0f} s in all")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Time what `options` (see `--help`) ask for; the content of the figures file."""
    runtimes = {} if options.no_baselines else _baselines()
    timer = LayerTimer(
        peak=PeakLoop(),
        baselines={name: runtime for name, (runtime, _) in runtimes.items()},
        rounds=options.rounds or (_QUICK_ROUNDS if options.quick else _FULL_ROUNDS)[0],
        min_sample_ns=options.min_sample_ns or (MIN_SAMPLE_NS if options.quick else _FULL_SAMPLE_NS),
        isa=options.isa,
    )
    library = load_library()
    isa = library.backend(options.isa).name
    print(f"{isa}, {platform.machine()}, {library.compiler}; baselines: {', '.join(runtimes) or 'none'}")
    rows, other, peaks = _time_layers(timer, _layers(options), _densities(options))
    networks: list[NetworkRow] = []
    names = _network_names(options)
    if names:
        print(f"\n{whole_networks.TABLE_HEADER}")
        for name in names:
            found = network_rows(
                name, options.network_densities, runtimes,
                rounds=options.rounds or (_QUICK_ROUNDS if options.quick else _FULL_ROUNDS)[1],
                with_memory=not options.no_memory and not options.quick, isa=options.isa,
            )  # fmt: skip
            print("\n".join(whole_networks.table_lines(found)), flush=True)
            networks += found
    shared: list[ThreadRow] = []
    if threads.NETWORK in names:
        shared = thread_rows(
            _QUICK_THREAD_DENSITIES if options.quick else options.network_densities,
            rounds=options.rounds or (_QUICK_ROUNDS if options.quick else _FULL_ROUNDS)[2], isa=options.isa,
        )  # fmt: skip
        print(f"\n{threads.TABLE_HEADER}")
        print("\n".join(threads.table_lines(shared)), flush=True)
    return {
        "peak_gflops": max(peaks) if peaks else peak_gflops(timer.peak, timer.min_sample_ns),
        "layers": [dataclasses.asdict(row) for row in rows],
        "networks": [dataclasses.asdict(row) for row in networks],
        _OTHER: other,
        "threads": [dataclasses.asdict(row) for row in shared],
        "isa": isa,
        "machine": platform.machine(),
        "compiler": library.compiler,
        "library_sha256": library.sha256,
        "baselines": {name: runtime.info().version for name, (runtime, _) in runtimes.items()},
        "is_quick": options.quick,
    }


def peak_gflops(peak: PeakLoop, min_sample_ns: int) -> float:
    """The fastest of a few samples of the peak loop."""
    return peak.flops / time_interleaved([Variant(PEAK, peak.repeat)], 5, min_sample_ns=min_sample_ns).minimum_ns(PEAK)


def _time_layers(
    timer: LayerTimer, layers: Sequence[Layer], densities: Mapping[PruningScheme, Sequence[float]]
) -> tuple[list[LayerRow], list[dict[str, Any]], list[float]]:
    """The rows, the operators without multiply-adds, and the peak of each layer's fastest round in GFLOP/s."""
    rows: list[LayerRow] = []
    other: list[dict[str, Any]] = []
    peaks: list[float] = []
    if layers:
        print(single_layers.TABLE_HEADER)
    for layer in layers:
        wanted = prunings(layer, densities)
        if not wanted:
            continue
        found, times = timer.rows(layer, wanted)
        peaks.append(timer.peak.flops / times.minimum_ns(PEAK))
        print("\n".join(single_layers.table_lines(found)), flush=True)
        if layer.kernel.op.has_weights:
            rows += found
            continue
        kept = ("layer", "speedup_vs_xnnpack", "speedup_vs_ncnn", "median_us", "minimum_us")
        other += [{key: getattr(row, key) for key in kept} for row in found]
    return rows, other, peaks


def _baselines() -> dict[str, tuple[Runtime, Loader]]:
    """The dense baselines that this machine has."""
    found: dict[str, tuple[Runtime, Loader]] = {}
    for name, runtime, loader in (("xnnpack", "tflite", _load_tflite), ("ncnn", "ncnn", _load_ncnn)):
        try:
            found[name] = (make_runtime(runtime), loader)
        except RuntimeUnavailable as error:
            print(f"no {name}: {error}", file=sys.stderr)
    return found


def _load_tflite(runtime: Runtime, plan: NetworkPlan, tensors: Mapping[str, NDArray[np.float32]]) -> Executable:
    return runtime.load_network(plan_to_tflite(plan, tensors), NetworkFormat.TFLITE, plan.input_shape, 1)


def _load_ncnn(runtime: Runtime, plan: NetworkPlan, tensors: Mapping[str, NDArray[np.float32]]) -> Executable:
    assert isinstance(runtime, NcnnRuntime)
    return runtime.load_plan(plan, dict(tensors), 1)


def _layers(options: argparse.Namespace) -> tuple[Layer, ...]:
    if options.no_layers:
        return ()
    layers = zoo_layers(options.networks or tuple(NETWORKS))
    if options.layers is not None:
        pattern = re.compile(options.layers)
        chosen = tuple(layer for layer in layers if pattern.search(layer.name))
        if not chosen:
            raise SystemExit(f"no layer matches {options.layers!r}: there are {', '.join(x.name for x in layers)}")
        return chosen
    if options.quick:
        return tuple(layer for layer in layers if layer.name in _QUICK_LAYERS)
    return layers


def _network_names(options: argparse.Namespace) -> tuple[str, ...]:
    """The networks to time whole: all, or those named, or none where only some layers were asked for."""
    if options.no_networks or (options.layers is not None and options.networks is None):
        return ()
    return tuple(options.networks or NETWORKS)


def _densities(options: argparse.Namespace) -> dict[PruningScheme, tuple[float, ...]]:
    densities = _QUICK_DENSITIES if options.quick else _FULL_DENSITIES
    if options.schemes is not None:
        densities = {scheme: _FULL_DENSITIES[scheme] for scheme in options.schemes}
    if options.densities is None:
        return dict(densities)
    fixed = (PruningScheme.DENSE, PruningScheme.PATTERN)
    return {
        scheme: own if scheme in fixed else tuple(d for d in options.densities if d < 1.0)
        for scheme, own in densities.items()
    }


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick",
        action="store_true",
        help="a choice of layers and few rounds, no child processes that tell memory: under 50 s",
    )
    parser.add_argument("--layers", metavar="REGEX", help="only layers whose names match, such as '^128@28$'")
    parser.add_argument("--schemes", nargs="+", type=PruningScheme, choices=list(_FULL_DENSITIES), metavar="SCHEME")
    parser.add_argument("--densities", nargs="+", type=float, help="of group and unstructured pruning")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), help="default: all")
    parser.add_argument("--network-densities", nargs="+", type=float, default=list(_NETWORK_DENSITIES))
    parser.add_argument("--no-networks", action="store_true", help="only single layers")
    parser.add_argument("--no-layers", action="store_true", help="only whole networks")
    parser.add_argument("--no-baselines", action="store_true", help="only the native kernels and the peak")
    parser.add_argument("--no-memory", action="store_true", help="leave out the child processes that tell memory")
    parser.add_argument("--rounds", type=int, help="instead of the usual number")
    parser.add_argument("--min-sample-ns", type=int, help="a sample repeats a layer for at least this long")
    parser.add_argument("--isa", help="native backend, instead of the fastest")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here")
    options = parser.parse_args(arguments)
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds} must be at least 1")
    if any(not 0 < d <= 1 for d in (*(options.densities or ()), *options.network_densities)):
        parser.error("densities are in (0, 1]")
    return options


if __name__ == "__main__":
    main()
