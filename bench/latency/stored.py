"""Measurements of kernels and whole networks as one small file: columns of numbers, compressed."""

from __future__ import annotations

import gzip
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median, variance
from typing import Any

from bench.latency.attempts import Record, by_key, is_at_usual_speed, used_records, usual_reference_ns
from bench.latency.pruned_networks import Split
from device_agent.contracts import Activation, KernelSpec, Op, PruningScheme, Statistics, WeightPruning
from device_agent.contracts.codec import decode
from search.latency.drift import at_usual_speed, response_to_reference, usual_references
from search.latency.table import KernelLatency, NetworkLatency, median_std_ns

FORMAT = 1

#: Measurements that came with the source: what machine they are of is in them.
STORED = Path(__file__).with_name("measurements.json.gz")
#: The same kernels and most of the networks on another machine, a newer one, and without profiles.
STORED_SAPPHIRE_RAPIDS = Path(__file__).with_name("measurements-sapphire-rapids.json.gz")

#: Where the machine was slower by a factor, kernels were so by this part of its logarithm more or less (seen on 800
#: kernels: quartiles at 1.40 and 1.60 where the reference kernel took 1.48 times as long).
_SPEED_DOUBT = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Measured kernels in the order in which they were drawn, and measured networks by name.

    `about` says what measured them; `minutes` how long kernels, and networks of each split, took. `between_passes` is
    by how much single measurements of one kernel, and of one network, differ between passes: the standard deviation
    of their logarithms, where there was more than one pass. `op_ns` are the times of a network's operators in it, of
    those networks that models are fitted to.
    """

    about: dict[str, str]
    kernels: tuple[KernelLatency, ...]
    networks: dict[str, NetworkLatency]
    op_ns: dict[str, tuple[float, ...]]
    minutes: dict[str, float]
    between_passes: dict[str, float] = field(default_factory=dict)

    def of_split(self, split: Split) -> dict[str, NetworkLatency]:
        return {name: network for name, network in self.networks.items() if f"/{split.value}/" in name}


def machine_name() -> str:
    """The cores and the processor of this machine."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {names[0] if names else platform.machine()}"


def from_records(records: Sequence[Record], machine: str, runtime: str = "native") -> Dataset:
    """What `bench.latency.dataset` wrote, brought to one speed of the machine by the reference kernel, as far as
    measurements of the same kernel follow it here.

    Of what was measured several times the median counts, and what such measurements differ by is part of the standard
    errors. `minutes` are those of all attempts.

    Raises `ValueError` where records are of different runtimes: they are no one series.
    """
    found = [record for record in records if "statistics" in record]
    builds = {record["runtime_sha256"] for record in found}
    if len(builds) != 1:
        raise ValueError(f"the measurements are of {len(builds)} builds of the runtime: measure anew in another folder")
    usual = usual_references(decode(Statistics, record["statistics"]) for record in found)
    usual_ns = usual_reference_ns(found)
    kernels: list[KernelLatency] = []
    networks: dict[str, NetworkLatency] = {}
    op_ns: dict[str, tuple[float, ...]] = {}
    minutes: dict[str, float] = {}
    times: dict[str, list[tuple[float, float]]] = {}
    attempts = by_key(records)
    used = {key: used_records(tried, usual_ns) for key, tried in attempts.items()}
    told = {key: [decode(Statistics, record["statistics"]) for record in of_key] for key, of_key in used.items()}
    # Of moments near the usual speed: what makes the machine much slower slows all alike.
    response = response_to_reference(told.values(), usual)
    for key, tried in attempts.items():
        kind = "kernels" if _is_kernel(tried[0]) else key.split("/")[1]
        minutes[kind] = minutes.get(kind, 0.0) + sum(record["seconds"] for record in tried) / 60
        times[key] = [
            _at_usual_speed(statistics, usual, response if is_at_usual_speed(record, usual_ns) else 1.0)
            for record, statistics in zip(used[key], told[key], strict=True)
        ]
    between = {
        kind: _spread([times[key] for key in times if _is_kernel(attempts[key][0]) is is_kernel])
        for kind, is_kernel in (("kernels", True), ("networks", False))
    }
    for key, measured in times.items():
        if not measured:
            continue
        first = attempts[key][0]
        latency_ns = median(latency for latency, _ in measured)
        apart_ns = latency_ns * between["kernels" if _is_kernel(first) else "networks"]
        std_ns = math.sqrt(sum(std**2 + apart_ns**2 for _, std in measured)) / len(measured)
        if _is_kernel(first):
            kernel = decode(KernelSpec, first["kernel"])
            kernels.append(KernelLatency(kernel=kernel, latency_ns=latency_ns, std_ns=std_ns))
        else:
            plan = tuple(decode(KernelSpec, op[3]) for op in first["ops"])
            networks[key] = NetworkLatency(kernels=plan, latency_ns=latency_ns, std_ns=std_ns)
            if key.split("/")[1] != Split.HELD_OUT:
                op_ns[key] = _op_ns(used[key])
    about = {
        "machine": machine,
        "runtime": runtime,
        "runtime_version": found[0]["runtime_version"],
        "isa": found[0]["isa"],
        "response_to_reference": f"{response:.2f}",
    }
    return Dataset(
        about=about,
        kernels=tuple(kernels),
        networks=networks,
        op_ns=op_ns,
        minutes=minutes,
        between_passes={kind: value for kind, value in between.items() if value > 0},
    )


def _is_kernel(record: Record) -> bool:
    return "kernel" in record


def _spread(measured: Sequence[Sequence[tuple[float, float]]]) -> float:
    """The standard deviation of logarithms within items, over all items; 0 where each was measured once."""
    several = [times for times in measured if len(times) > 1]
    if not several:
        return 0.0
    return math.sqrt(fmean(variance(math.log(ns) for ns, _ in times) for times in several))


def _op_ns(used: Sequence[Record]) -> tuple[float, ...]:
    """What each operator of a network took in it, the median of its profiles."""
    return tuple(median(times) for times in zip(*(record["op_ns"] for record in used), strict=True))


def _at_usual_speed(raw: Statistics, usual: Mapping[str, float], response: float) -> tuple[float, float]:
    """The median at the machine's usual speed and its standard error, in ns."""
    corrected = at_usual_speed(raw, usual, response)
    # What slows the reference kernel slows others by another factor.
    doubt = _SPEED_DOUBT * abs(math.log(corrected.median_ns / raw.median_ns))
    return corrected.median_ns, math.hypot(median_std_ns(corrected), doubt * corrected.median_ns)


def write_dataset(path: Path, dataset: Dataset) -> None:
    """Write `dataset`. Equal datasets are equal bytes."""
    distinct: dict[KernelSpec, int] = {}
    for entry in dataset.kernels:
        distinct.setdefault(entry.kernel, len(distinct))
    for network in dataset.networks.values():
        for kernel in network.kernels:
            distinct.setdefault(kernel, len(distinct))
    columns = list(zip(*(_row(kernel) for kernel in distinct), strict=True))
    document = {
        "format": FORMAT,
        "about": dataset.about,
        "minutes": {kind: round(value, 2) for kind, value in sorted(dataset.minutes.items())},
        "between_passes": {kind: round(value, 4) for kind, value in sorted(dataset.between_passes.items())},
        "columns": columns,
        "kernels": [
            [distinct[e.kernel] for e in dataset.kernels],
            [round(e.latency_ns, 1) for e in dataset.kernels],
            [round(e.std_ns, 1) for e in dataset.kernels],
        ],
        "networks": [
            [name, round(n.latency_ns, 1), round(n.std_ns, 1), [distinct[kernel] for kernel in n.kernels]]
            for name, n in sorted(dataset.networks.items())
        ],
        "op_ns": {name: [round(ns, 1) for ns in times] for name, times in sorted(dataset.op_ns.items())},
    }
    text = json.dumps(document, separators=(",", ":"))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode(), compresslevel=9, mtime=0))


def read_dataset(path: Path) -> Dataset:
    """Read what `write_dataset` wrote. Raises `ValueError` for another format."""
    document = json.loads(gzip.decompress(path.read_bytes()))
    if document.get("format") != FORMAT:
        raise ValueError(f"{path} has format {document.get('format')!r}, not {FORMAT}: write it anew from measurements")
    kernels = [_kernel(row) for row in zip(*document["columns"], strict=True)]
    return Dataset(
        about=document["about"],
        kernels=tuple(
            KernelLatency(kernel=kernels[index], latency_ns=latency_ns, std_ns=std_ns)
            for index, latency_ns, std_ns in zip(*document["kernels"], strict=True)
        ),
        networks={
            name: NetworkLatency(kernels=tuple(kernels[i] for i in plan), latency_ns=latency_ns, std_ns=std_ns)
            for name, latency_ns, std_ns, plan in document["networks"]
        },
        op_ns={name: tuple(times) for name, times in document.get("op_ns", {}).items()},
        minutes=document["minutes"],
        between_passes=document.get("between_passes", {}),
    )


def _row(kernel: KernelSpec) -> tuple[Any, ...]:
    pruning = kernel.pruning
    return (
        kernel.op.value,
        kernel.in_channels,
        kernel.out_channels,
        kernel.input_h,
        kernel.input_w,
        kernel.kernel_h,
        kernel.kernel_w,
        kernel.stride,
        kernel.padding,
        int(kernel.residual),
        kernel.activation.value,
        kernel.pad_channels_before,
        pruning.scheme.value,
        pruning.density,
        pruning.block_filters,
        pruning.block_channels,
        pruning.pattern_entries,
    )


def _kernel(row: tuple[Any, ...]) -> KernelSpec:
    op, inputs, outputs, input_h, input_w, kernel_h, kernel_w, stride, padding, residual, activation, before = row[:12]
    scheme, density, filters, channels, entries = row[12:]
    return KernelSpec(
        op=Op(op),
        in_channels=inputs,
        out_channels=outputs,
        input_h=input_h,
        input_w=input_w,
        kernel_h=kernel_h,
        kernel_w=kernel_w,
        stride=stride,
        padding=padding,
        residual=bool(residual),
        activation=Activation(activation),
        pad_channels_before=before,
        pruning=WeightPruning(
            scheme=PruningScheme(scheme),
            density=density,
            block_filters=filters,
            block_channels=channels,
            pattern_entries=entries,
        ),
    )
