"""How well latencies of pruned networks are predicted, on networks that no model has seen.

Everything is fitted to measured kernels and to the whole networks of the splits CALIBRATION and DEVELOPMENT; HELD_OUT
is for the figures. Baselines get the same kernels, and the same networks for their own affine correction.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.latency.baselines import (
    KernelPredictor,
    additive_table_baseline,
    forest_baseline,
    macs_baseline,
    trilinear_baseline,
)
from bench.latency.pruned_networks import Split
from bench.latency.stored import Dataset
from device_agent.contracts import KernelSpec
from search.latency.card import summarise_errors
from search.latency.families import distinct_kernels
from search.latency.model.choice import choose_kernels
from search.latency.model.kernel_model import KernelLatencyModel, fit_kernel_model
from search.latency.model.whole import fit_whole_networks
from search.latency.network import correction_of_sums
from search.latency.table import KernelLatency, NetworkLatency

FloatArray = NDArray[np.float64]

SIZES = (50, 100, 200, 500, 1000, 2000)
#: Numbers of whole networks, as many of each architecture.
NETWORK_COUNTS = (12, 30, 60, 150)
#: As many for each point of the curve of kernels.
_KNOWN_OF_CURVE = 60
_FEW_KERNELS = 50
#: Kernels chosen at once, relative to those measured: as a search would, in batches.
_BATCH = 0.3
_FIRST_BATCH = 25
_RUNTIME = "native"


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkErrors:
    """Errors of predicted whole networks; parts are of 1."""

    networks: int
    within_5_percent: float
    within_10_percent: float
    spearman: float | None
    rmspe: float


def errors_of(predicted_ns: FloatArray, networks: Sequence[NetworkLatency]) -> NetworkErrors:
    summary = summarise_errors([n.latency_ns for n in networks], [float(p) for p in predicted_ns])
    return NetworkErrors(
        networks=summary.count,
        within_5_percent=summary.within_5_percent,
        within_10_percent=summary.within_10_percent,
        spearman=summary.spearman,
        rmspe=summary.rmspe,
    )


def fit(entries: Sequence[KernelLatency], seed: int = 0) -> KernelLatencyModel:
    return fit_kernel_model(entries, _RUNTIME, rng=np.random.default_rng(seed))


def predicted_by_model(model: KernelLatencyModel, dataset: Dataset, networks: Sequence[NetworkLatency]) -> FloatArray:
    whole = fit_whole_networks(model, known_networks(dataset), known_profiles(dataset))
    return whole.predict_all([network.kernels for network in networks])[0]


def predicted_by_baseline(
    predict: KernelPredictor, known: Sequence[NetworkLatency], networks: Sequence[NetworkLatency]
) -> FloatArray:
    """Sums with the affine correction of a search, fitted to the same networks."""

    def sums(of: Sequence[NetworkLatency]) -> FloatArray:
        distinct = distinct_kernels(network.kernels for network in of)
        latency = dict(zip(distinct, predict(distinct).tolist(), strict=True))
        return np.array([sum(latency[kernel] for kernel in network.kernels) for network in of])

    none = np.zeros(len(known))
    correction = correction_of_sums(sums(known), none, np.array([network.latency_ns for network in known]))
    return correction.scale * sums(networks) + correction.offset_ns


def model_part(dataset: Dataset, num_kernels: int | None = None, num_held_out: int | None = None) -> dict[str, Any]:
    """The part `model`: the figures of the issue, by architecture too, and what fitting took."""
    entries = dataset.kernels[:num_kernels]
    known, held_out = known_networks(dataset), held_out_networks(dataset, num_held_out)
    started = time.thread_time()
    model = fit(entries)
    seconds = time.thread_time() - started
    names, networks = list(held_out), list(held_out.values())
    predicted = predicted_by_model(model, dataset, networks)
    part = len(entries) / max(len(dataset.kernels), 1)
    fitted = ("calibration", "development")
    minutes = part * dataset.minutes.get("kernels", 0.0) + sum(dataset.minutes.get(split, 0.0) for split in fitted)
    by_architecture = {}
    for architecture in sorted({name.split("/")[0] for name in names}):
        which = [index for index, name in enumerate(names) if name.startswith(f"{architecture}/")]
        by_architecture[architecture] = asdict(errors_of(predicted[which], [networks[index] for index in which]))
    noise = np.array([network.std_ns / network.latency_ns for network in networks])
    return {
        "measurements": len(entries),
        "device_minutes": round(minutes, 1),
        **asdict(errors_of(predicted, networks)),
        "calibration_networks": len(known),
        "fit_cpu_seconds": round(seconds, 1),
        "median_uncertainty_of_measured_networks": float(np.median(noise)),
        "between_passes": dataset.between_passes,
        "by_architecture": by_architecture,
        "about": dataset.about,
    }


def baselines_part(
    dataset: Dataset, num_kernels: int | None = None, num_held_out: int | None = None
) -> dict[str, dict[str, Any]]:
    """The part `baselines`: the same figures for each."""
    entries = dataset.kernels[:num_kernels]
    known, networks = known_networks(dataset), list(held_out_networks(dataset, num_held_out).values())
    made = {
        "macs": macs_baseline(entries),
        "additive_table": additive_table_baseline(entries),
        "trilinear": trilinear_baseline(entries),
        "random_forest_without_density": forest_baseline(entries, 0),
    }
    return {
        name: {"measurements": len(entries), **asdict(errors_of(predicted_by_baseline(b, known, networks), networks))}
        for name, b in made.items()
    }


def curve_part(
    dataset: Dataset, sizes: Sequence[int] = SIZES, num_held_out: int | None = None, num_seeds: int = 3
) -> dict[str, list[dict[str, Any]]]:
    """Accuracy against the number of measured kernels: chosen by the model, and drawn by chance (means over seeds).

    The choice is for the networks of the split DEVELOPMENT, whose kernels (not their latencies) it is told. Profiles
    are left out, as they tell of kernels too. `networks` is the accuracy with them, against the number of networks that
    were measured whole, with all kernels and (`of_few_kernels`) with 50 drawn by chance.
    """
    networks = list(held_out_networks(dataset, num_held_out).values())
    whole, dataset = dataset, replace(with_known(dataset, _KNOWN_OF_CURVE), op_ns={})
    pool = list(dataset.kernels)
    sizes = [size for size in sizes if size <= len(pool)]
    targets = [network.kernels for network in whole.of_split(Split.DEVELOPMENT).values()]
    curves: dict[str, list[dict[str, Any]]] = {"random": [], "active": []}
    runs: dict[str, list[list[NetworkErrors]]] = {"random": [], "active": []}
    for seed in range(num_seeds):
        order = np.random.default_rng(seed).permutation(len(pool)).tolist()
        by_chance = [fit([pool[i] for i in order[:size]], seed) for size in sizes]
        runs["random"].append([errors_of(predicted_by_model(m, dataset, networks), networks) for m in by_chance])
        by_choice = _active_models(pool, targets, order, sizes, seed)
        runs["active"].append([errors_of(predicted_by_model(m, dataset, networks), networks) for m in by_choice])
    for name, found in runs.items():
        for index, size in enumerate(sizes):
            at_size = [asdict(run[index]) for run in found]
            means = {key: float(np.mean([errors[key] for errors in at_size])) for key in at_size[0]}
            curves[name].append({"measurements": size, **means})
    return curves | {"networks": _by_known_networks(whole, networks)}


def _by_known_networks(dataset: Dataset, networks: Sequence[NetworkLatency]) -> list[dict[str, Any]]:
    model, of_few = fit(dataset.kernels), fit(dataset.kernels[:_FEW_KERNELS])
    found = []
    for count in sorted({min(count, len(known_networks(dataset))) for count in NETWORK_COUNTS}):
        known = with_known(dataset, count)
        errors, few = (errors_of(predicted_by_model(m, known, networks), networks) for m in (model, of_few))
        found.append({"known_networks": count, **asdict(errors), "of_few_kernels": asdict(few)})
    return found


def with_known(dataset: Dataset, count: int) -> Dataset:
    """`dataset` with `count` of the networks that corrections are fitted to: the first of each architecture, then the
    second, as they would have been measured.
    """
    known = sorted(_known_names(dataset), key=lambda name: (name.split("/")[1], int(name.split("/")[2]), name))
    dropped = set(known[count:])
    return replace(dataset, networks={name: n for name, n in dataset.networks.items() if name not in dropped})


def _active_models(
    pool: list[KernelLatency],
    targets: Sequence[Sequence[KernelSpec]],
    order: Sequence[int],
    sizes: Sequence[int],
    seed: int,
) -> list[KernelLatencyModel]:
    chosen = list(order[:_FIRST_BATCH])
    models = []
    for size in sizes:
        while len(chosen) < size:
            model = fit([pool[i] for i in chosen], seed)
            taken = set(chosen)
            left = [index for index in range(len(pool)) if index not in taken]
            count = min(size - len(chosen), max(_FIRST_BATCH, int(_BATCH * len(chosen))))
            picked = choose_kernels(model, [pool[i].kernel for i in left], targets, count)
            chosen += [left[i] for i in picked]
        models.append(fit([pool[i] for i in chosen], seed))
    return models


def known_networks(dataset: Dataset) -> list[NetworkLatency]:
    """The networks that corrections are fitted to."""
    return [dataset.networks[name] for name in _known_names(dataset)]


def _known_names(dataset: Dataset) -> list[str]:
    return [*dataset.of_split(Split.CALIBRATION), *dataset.of_split(Split.DEVELOPMENT)]


def known_profiles(dataset: Dataset) -> list[tuple[float, ...]] | None:
    """The times of operators in `known_networks`, in their order; None where not all were kept."""
    names = _known_names(dataset)
    return [dataset.op_ns[name] for name in names] if all(name in dataset.op_ns for name in names) else None


def held_out_networks(dataset: Dataset, count: int | None) -> dict[str, NetworkLatency]:
    """`count` held-out networks, as many of each architecture as can be; all by default."""
    networks = dataset.of_split(Split.HELD_OUT)
    names = sorted(networks, key=lambda name: (int(name.split("/")[2]), name.split("/")[0]))
    return {name: networks[name] for name in names[:count]}
