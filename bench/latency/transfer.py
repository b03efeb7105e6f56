"""How many measurements a new device needs that starts from the model of a similar one.

The old device is this machine with all that it has (the stored measurements: native runtime, fastest instruction set,
one thread). New devices are the Cortex-A72 of the published table, another machine, and this one restricted
(`devices`). No kernel that is measured on the new device, or held out, is among those of the old one's model.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from bench.latency.devices import DEVICES, NUM_KERNELS, read_device
from bench.latency.imported_a72 import TABLE, dense_layers, imported_cells
from bench.latency.model import fit, held_out_networks
from bench.latency.stored import STORED_SAPPHIRE_RAPIDS, Dataset, read_dataset
from bench.search.a72 import shared_data
from device_agent.contracts import KernelSpec
from search.latency.card import ErrorSummary, summarise_errors
from search.latency.families import without_seed
from search.latency.model.features import as_computed
from search.latency.model.kernel_model import KernelLatencyModel, fit_kernel_model
from search.latency.table import KernelLatency, NetworkLatency

COUNTS = (0, 10, 20, 50, 100)
SPEARMAN_TARGET = 0.95
#: Kernels of the old device: what a search or two have measured.
_OLD_KERNELS = 1000
_MAX_HELD_OUT = 500
_NUM_NETWORKS = 100
_A72_SEED = 72


def transfer_part(dataset: Dataset, counts: Sequence[int] = COUNTS, num_seeds: int = 3) -> dict[str, Any]:
    """The part `transfer`: for each new device the errors after so many measurements, with and without transfer."""
    found: dict[str, Any] = {}
    for device in DEVICES:
        new = read_device(device)
        found[device.name] = {
            "about": new.about,
            **transferred(dataset.kernels, new.kernels, device.runtime, counts=counts, num_seeds=num_seeds),
        }
    other = read_dataset(STORED_SAPPHIRE_RAPIDS)
    found["sapphire_rapids"] = {
        "about": other.about,
        **transferred(
            dataset.kernels,
            other.kernels[:NUM_KERNELS],
            "native",
            counts=counts,
            num_seeds=num_seeds,
            networks=list(held_out_networks(other, None).values()),
        ),
    }
    try:
        entries, networks = a72_kernels(shared_data())
    except FileNotFoundError as error:
        found["jcw_a72"] = {"left_out": f"{error}: set KERF_SHARED_DATA to the folder with the published table"}
    else:
        found["jcw_a72"] = transferred(
            dataset.kernels, entries, "jcw", counts=counts, num_seeds=num_seeds, networks=networks
        )
    return {"old_device": dataset.about, "devices": found}


def transferred(
    old: Sequence[KernelLatency],
    new: Sequence[KernelLatency],
    runtime: str,
    *,
    counts: Sequence[int],
    num_seeds: int,
    networks: Sequence[NetworkLatency] = (),
) -> dict[str, Any]:
    """The figures of one new device, means over seeds, each of which draws the kernels to measure from `new` and those
    to hold out. Kernels of `networks` are left out of what is measured.
    """
    in_networks = {kernel for network in networks for kernel in network.kernels}
    seen = {without_seed(kernel) for kernel in (*(entry.kernel for entry in new), *in_networks)}
    others = [entry for entry in old if without_seed(entry.kernel) not in seen]
    prior = fit(others[:_OLD_KERNELS])
    runs: dict[str, dict[int, list[dict[str, ErrorSummary]]]] = {
        "with": defaultdict(list),
        "without": defaultdict(list),
    }
    for seed in range(num_seeds):
        drawn = [new[i] for i in np.random.default_rng(seed).permutation(len(new)).tolist()]
        pool = [entry for entry in drawn if entry.kernel not in in_networks][: max(counts)]
        taken = {entry.kernel for entry in pool}
        held_out = [entry for entry in drawn if entry.kernel not in taken][:_MAX_HELD_OUT]
        for count in counts:
            for name, start in (("with", prior), ("without", None)):
                errors = _errors(pool[:count], runtime, start, seed, held_out, networks)
                if errors is not None:
                    runs[name][count].append(errors)
    curves = {name: [_means(count, found) for count, found in by_count.items()] for name, by_count in runs.items()}
    return {
        "kernels_of_old_device": len(prior.entries),
        "held_out_kernels": len(held_out),
        "held_out_networks": len(networks),
        "with_transfer": curves["with"],
        "without_transfer": curves["without"],
        "needed_with_transfer": _needed(curves["with"]),
        "needed_without_transfer": _needed(curves["without"]),
    }


def _errors(
    measured: Sequence[KernelLatency],
    runtime: str,
    prior: KernelLatencyModel | None,
    seed: int,
    held_out: Sequence[KernelLatency],
    networks: Sequence[NetworkLatency],
) -> dict[str, ErrorSummary] | None:
    """None where there is nothing to predict with: no measurement and no other device."""
    if measured:
        model = fit_kernel_model(measured, runtime, rng=np.random.default_rng(seed), prior=prior)
    elif prior is not None:
        model = prior
    else:
        return None
    kernels = [entry.kernel for entry in held_out] + [kernel for network in networks for kernel in network.kernels]
    asked = kernels if measured else [as_computed(kernel, runtime) for kernel in kernels]
    predicted = model.predict_all(asked)[0].tolist()
    found = {"kernels": summarise_errors([e.latency_ns for e in held_out], predicted[: len(held_out)])}
    sums, place = [], len(held_out)
    for network in networks:
        sums.append(sum(predicted[place : place + len(network.kernels)]))
        place += len(network.kernels)
    if networks:
        found["networks"] = summarise_errors([network.latency_ns for network in networks], sums)
    return found


def _means(count: int, found: Sequence[dict[str, ErrorSummary]]) -> dict[str, Any]:
    """Means over seeds, with the worst Spearman of any."""
    figures: dict[str, Any] = {"measurements": count}
    for kind in found[0]:
        of_kind = [errors[kind] for errors in found]
        ranks = [errors.spearman for errors in of_kind if errors.spearman is not None]
        figures[kind] = {
            "spearman": fmean(ranks),
            "worst_spearman": min(ranks),
            "within_5_percent": fmean(errors.within_5_percent for errors in of_kind),
            "within_10_percent": fmean(errors.within_10_percent for errors in of_kind),
            "median_error": fmean(errors.median for errors in of_kind),
        }
    return figures


def _needed(curve: Sequence[dict[str, Any]]) -> dict[str, int | None]:
    """The fewest measurements with Spearman at the target, in the mean over seeds and in each; None where none are."""
    return {
        name: next((at["measurements"] for at in curve if at["kernels"][key] >= SPEARMAN_TARGET), None)
        for name, key in (("in_the_mean", "spearman"), ("in_each_seed", "worst_spearman"))
    }


def a72_kernels(folder: Path) -> tuple[list[KernelLatency], list[NetworkLatency]]:
    """The kernels of the published table, and random pruned versions of its ResNet-18.

    Layers of one shape are one kernel: the mean of their cells. A network takes the sum of its layers' cells, as the
    authors count. Raises `FileNotFoundError` without the table.
    """
    cells: dict[KernelSpec, list[float]] = defaultdict(list)
    for kernel, latency_ns in imported_cells(folder / TABLE):
        cells[kernel].append(latency_ns)
    mean = {kernel: fmean(values) for kernel, values in cells.items()}
    layers = dense_layers(folder)
    rng = np.random.default_rng(_A72_SEED)
    plans = [_pruned_resnet18(layers, rng) for _ in range(_NUM_NETWORKS)]
    networks = [NetworkLatency(kernels=plan, latency_ns=sum(mean[kernel] for kernel in plan)) for plan in plans]
    return [KernelLatency(kernel=kernel, latency_ns=value) for kernel, value in mean.items()], networks


def _pruned_resnet18(layers: Sequence[KernelSpec], rng: np.random.Generator) -> tuple[KernelSpec, ...]:
    """Each stage keeps some eighths of what its blocks add to, each block of what is inside; layers have densities."""
    stem, *rest = layers
    plan = [_pruned(stem, None, outputs := _eighths(rng), rng)]
    trunk = outputs
    left = list(rest)
    while left:
        first = left.pop(0)
        inside = _eighths(rng)
        second = left.pop(0)
        outputs = trunk if first.stride == 1 else _eighths(rng)
        plan += [_pruned(first, trunk, inside, rng), _pruned(second, inside, outputs, rng)]
        if first.stride > 1:
            plan.append(_pruned(left.pop(0), trunk, outputs, rng))
        trunk = outputs
    return tuple(plan)


def _eighths(rng: np.random.Generator) -> int:
    return int(rng.integers(2, 9))


def _pruned(layer: KernelSpec, inputs: int | None, outputs: int, rng: np.random.Generator) -> KernelSpec:
    return replace(
        layer,
        in_channels=layer.in_channels if inputs is None else layer.in_channels * inputs // 8,
        out_channels=layer.out_channels * outputs // 8,
        pruning=replace(layer.pruning, density=int(rng.integers(1, 11)) / 10),
    )
