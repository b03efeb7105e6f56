"""Times whole networks on the native executor beside the same networks, dense, in the baselines."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.layers import GROUP_FILTERS
from bench.memory import MemoryUse, measure_memory
from bench.timing import Times, Variant, time_interleaved
from bench.zoo import NETWORKS, plan_tensors
from device_agent.contracts import DENSE, NetworkPlan, PruningScheme, WeightPruning
from device_agent.formats.packed import write_packed
from device_agent.formats.tflite import plan_to_tflite
from device_agent.native.executor import NativeNetwork
from device_agent.runtimes import Runtime
from device_agent.runtimes.base import Executable
from device_agent.synthesis import synthesize_input

FloatArray = NDArray[np.float32]

#: Runs of one network in a row, before another one has its turn in the caches.
_SAMPLE_NS = 20_000_000

#: Outputs of a runtime that differ more, relative to the largest value, are wrong.
_MAX_ERROR = 1e-3

#: Loads a network dense into a baseline: (runtime, plan, tensors) -> executable.
Loader = Callable[[Runtime, NetworkPlan, Mapping[str, FloatArray]], Executable]


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkRow:
    """Figures of one network at one density (GROUP of 4; the stem and the classifier dense). Ratios are medians over
    rounds. `memory_bytes` is what the executor says of itself; the resident bytes are growths of child processes
    (`bench.memory`).
    """

    network: str
    density: float
    speedup_vs_xnnpack: float | None
    speedup_vs_ncnn: float | None
    median_ms: float
    minimum_ms: float
    xnnpack_median_ms: float | None
    ncnn_median_ms: float | None
    #: The sum of the operators' own times over the time of the whole.
    sum_of_ops_over_whole: float
    #: The largest difference from TFLite's output of the same pruned network, over its largest value.
    relative_error: float | None
    #: Packing and tuning.
    prepare_s: float
    memory_bytes: int
    native_memory: MemoryUse | None
    xnnpack_memory: MemoryUse | None


def pruning_of(density: float) -> WeightPruning:
    """GROUP of 4 at `density`; dense at 1."""
    if density == 1.0:
        return DENSE
    return WeightPruning(scheme=PruningScheme.GROUP, density=density, block_filters=GROUP_FILTERS)


def network_rows(
    name: str,
    densities: Sequence[float],
    baselines: Mapping[str, tuple[Runtime, Loader]],
    *,
    rounds: int,
    with_memory: bool = True,
    isa: str | None = None,
) -> list[NetworkRow]:
    """Time network `name` of the zoo at each of `densities`, interleaved with the dense baselines.

    A sample repeats its network for about 20 ms: times are those of a steady state, which is what agents measure.
    Raises `RuntimeError` where an output differs from TFLite's.
    """
    dense = NETWORKS[name](DENSE)
    dense_tensors = plan_tensors(dense)
    x = synthesize_input(dense.input_shape, seed=0)
    variants, natives, errors, packed, prepare_s = [], [], [], [], []
    outputs: dict[str, FloatArray] = {}
    for baseline, (runtime, load) in baselines.items():
        executable = load(runtime, dense, dense_tensors)
        outputs[baseline] = executable.run(x)
        variants.append(Variant(baseline, executable.repeat))
    if len(outputs) > 1:
        _checked_error(name, "ncnn", outputs["ncnn"], outputs["xnnpack"])
    for density in densities:
        plan = NETWORKS[name](pruning_of(density))
        tensors = plan_tensors(plan)
        start = time.perf_counter()
        native = NativeNetwork(plan, tensors, isa=isa)
        prepare_s.append(time.perf_counter() - start)
        output = native.run(x).reshape(-1)
        errors.append(_relative_error(output, plan, tensors, x, baselines))
        packed.append(write_packed(plan, tensors) if with_memory else b"")
        natives.append(native)
        variants.append(Variant(_name(density), native.repeat))
    times = time_interleaved(variants, rounds, min_sample_ns=_SAMPLE_NS)
    with tempfile.TemporaryDirectory(prefix="kerf-bench-") as folder:
        xnnpack_memory = None
        if with_memory and "xnnpack" in baselines:
            path = Path(folder) / "dense.tflite"
            path.write_bytes(plan_to_tflite(dense, dense_tensors))
            xnnpack_memory = measure_memory("tflite", path, dense.input_shape)
        rows = []
        for density, native, error, data, seconds in zip(densities, natives, errors, packed, prepare_s, strict=True):
            native_memory = None
            if with_memory:
                path = Path(folder) / "network.kerf"
                path.write_bytes(data)
                native_memory = measure_memory("native", path, dense.input_shape)
            rows.append(
                network_row(
                    times, name, density,
                    sum_of_ops_ns=sum(native.op_ns(max(5, rounds))), relative_error=error,
                    prepare_s=seconds, memory_bytes=native.memory_bytes,
                    native_memory=native_memory, xnnpack_memory=xnnpack_memory,
                )
            )  # fmt: skip
    return rows


def network_row(
    times: Times,
    name: str,
    density: float,
    *,
    sum_of_ops_ns: float,
    relative_error: float | None,
    prepare_s: float,
    memory_bytes: int,
    native_memory: MemoryUse | None,
    xnnpack_memory: MemoryUse | None,
) -> NetworkRow:
    """The figures of one density among `times`."""
    native = _name(density)
    return NetworkRow(
        network=name,
        density=density,
        speedup_vs_xnnpack=times.ratio("xnnpack", native),
        speedup_vs_ncnn=times.ratio("ncnn", native),
        median_ms=times.median_ns(native) / 1e6,
        minimum_ms=times.minimum_ns(native) / 1e6,
        xnnpack_median_ms=times.median_ns("xnnpack") / 1e6 if "xnnpack" in times else None,
        ncnn_median_ms=times.median_ns("ncnn") / 1e6 if "ncnn" in times else None,
        sum_of_ops_over_whole=sum_of_ops_ns / times.median_ns(native),
        relative_error=relative_error,
        prepare_s=prepare_s,
        memory_bytes=memory_bytes,
        native_memory=native_memory,
        xnnpack_memory=xnnpack_memory,
    )


TABLE_HEADER = (
    f"{'network':14} {'density':>7} {'ms':>8} {'x XNNPACK':>9} {'x ncnn':>9} {'ops/whole':>9} {'rel. error':>10} "
    f"{'prep. s':>7} {'MiB':>6} {'RSS MiB':>8} {'XNN RSS':>8} {'peak MiB':>8} {'XNN peak':>8}"
)


def table_lines(rows: Sequence[NetworkRow]) -> Iterator[str]:
    """The rows as text, one line each."""
    for row in rows:
        native, xnnpack = row.native_memory, row.xnnpack_memory
        error = "-" if row.relative_error is None else f"{row.relative_error:.1e}"
        yield (
            f"{row.network:14} {row.density:7.2f} {row.median_ms:8.3f} {_number(row.speedup_vs_xnnpack)} "
            f"{_number(row.speedup_vs_ncnn)} {row.sum_of_ops_over_whole:9.2f} "
            f"{error:>10} {row.prepare_s:7.2f} {row.memory_bytes / 2**20:6.1f} "
            f"{_mib(native, 'rss_bytes')} {_mib(xnnpack, 'rss_bytes')} "
            f"{_mib(native, 'peak_bytes')} {_mib(xnnpack, 'peak_bytes')}"
        )


def _relative_error(
    output: FloatArray,
    plan: NetworkPlan,
    tensors: Mapping[str, FloatArray],
    x: FloatArray,
    baselines: Mapping[str, tuple[Runtime, Loader]],
) -> float | None:
    if "xnnpack" not in baselines:
        return None
    runtime, load = baselines["xnnpack"]
    expected = load(runtime, plan, tensors).run(x)
    return _checked_error(plan.name, "native", output, expected)


def _checked_error(network: str, runtime: str, output: FloatArray, expected: FloatArray) -> float:
    error = float(np.abs(output - expected).max() / np.abs(expected).max())
    if not error < _MAX_ERROR:
        raise RuntimeError(f"{network} in {runtime} differs from TFLite by {error:.1e}: its time would mean nothing")
    return error


def _name(density: float) -> str:
    return f"native {density:g}"


def _mib(use: MemoryUse | None, field: str) -> str:
    return f"{'-':>8}" if use is None else f"{getattr(use, field) / 2**20:8.1f}"


def _number(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:9.2f}"
