"""What measuring for the front is worth: hypervolume of the chosen networks against device minutes.

The measured held-out networks are the designs of a search that knows their errors but not their latencies. Errors are
made up, as the networks were never trained: less work errs more, with luck for each network, by its name. With a budget
of device minutes three searches choose designs:

- `all_measured` measures whole networks in a random order, and keeps the front of those;
- `all_predicted` measures kernels drawn by chance, and keeps the front that their model predicts, unseen;
- `active` measures kernels that make the candidates near the front most certain, in rounds, and with a part of the
  budget measures the most likely candidates whole; it keeps the front of measured and predicted ones together.

What each keeps is judged by the measured latencies, as a part of the hypervolume of the front of all networks. All is
replayed from the stored measurements. Kernels come from those too, so the networks' own kernels are seldom among them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bench.latency.model import fit, held_out_networks
from bench.latency.pruned_networks import Split
from bench.latency.stored import Dataset
from search.latency.model.front import front_belief, front_probability, kernels_for_front
from search.latency.model.kernel_model import KernelLatencyModel
from search.latency.model.whole import MIN_NETWORKS, fit_whole_networks
from search.latency.table import KernelLatency, NetworkLatency
from search.pareto import FloatArray, hypervolume, non_dominated_mask

BUDGETS_MINUTES = (1.0, 1.5, 2.0, 3.0, 4.0)
#: Kernels before the first choice, and the part of those measured that is added in a round.
_FIRST_KERNELS = 25
_ROUND = 0.5
#: The part of what a search may spend that `active` keeps for whole networks.
_WHOLE_PART = 0.4
#: Errors: a floor, and what less work costs, in logarithms of multiply-accumulates; the luck of a design.
_LUCK = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One search: its designs with errors and measured latencies, and what measuring costs, in minutes. `profiles` are
    the times of operators in the networks of `calibration`; None where not all were kept.
    """

    designs: tuple[NetworkLatency, ...]
    errors: FloatArray
    kernels: tuple[KernelLatency, ...]
    calibration: tuple[NetworkLatency, ...]
    profiles: tuple[tuple[float, ...], ...] | None
    minutes_per_kernel: float
    minutes_per_network: float
    minutes_of_calibration: float

    @property
    def points(self) -> FloatArray:
        """Error and logarithm of the measured latency of each design (n, 2)."""
        return np.column_stack((self.errors, np.log([network.latency_ns for network in self.designs])))

    def quality(self, kept: Sequence[int]) -> float:
        """The hypervolume of the designs `kept`, as a part of that of all."""
        reference = self.points.max(axis=0) + 1e-9
        return hypervolume(self.points[list(kept)], reference) / hypervolume(self.points, reference)


def replay_of(dataset: Dataset, num_designs: int | None = None) -> Replay:
    """The search that a dataset's held-out networks allow. Calibration networks: the first of each architecture."""
    held_out = held_out_networks(dataset, num_designs)
    calibration = dataset.of_split(Split.CALIBRATION)
    first = [name for name in sorted(calibration) if name.endswith("/0")]
    first += [name for name in calibration if name not in first][: max(0, MIN_NETWORKS - len(first))]
    profiles = [dataset.op_ns.get(name) for name in first]
    work = np.log([sum(kernel.macs for kernel in network.kernels) for network in held_out.values()])
    span = max(float(np.ptp(work)), 1e-9)
    luck = np.array([_draw(name) for name in held_out])
    return Replay(
        designs=tuple(held_out.values()),
        errors=0.1 + 0.4 * (work.max() - work) / span + _LUCK * luck,
        kernels=dataset.kernels,
        calibration=tuple(calibration[name] for name in first),
        profiles=tuple(ns for ns in profiles if ns is not None) if None not in profiles else None,
        minutes_per_kernel=dataset.minutes["kernels"] / len(dataset.kernels),
        minutes_per_network=dataset.minutes["held_out"] / len(dataset.of_split(Split.HELD_OUT)),
        minutes_of_calibration=dataset.minutes["calibration"] * len(first) / len(calibration),
    )


def _draw(name: str) -> float:
    seed = int.from_bytes(hashlib.sha256(f"error of {name}".encode()).digest()[:8], "big")
    return float(np.random.default_rng(seed).normal())


def all_measured(replay: Replay, minutes: float, seed: int) -> list[int]:
    """The designs kept with `minutes` of device time, of which whole networks in a random order take all."""
    order = np.random.default_rng(seed).permutation(len(replay.designs))
    return [int(i) for i in order[: math.floor(minutes / replay.minutes_per_network)]]


def all_predicted(replay: Replay, minutes: float, seed: int) -> list[int]:
    """The designs on the front that kernels drawn by chance predict; none where the budget pays for too few."""
    order = np.random.default_rng(seed).permutation(len(replay.kernels))
    count = _affordable(replay, minutes - replay.minutes_of_calibration)
    if count < _FIRST_KERNELS:
        return []
    model = fit([replay.kernels[i] for i in order[:count]], seed)
    return _front(replay.errors, _predicted(replay, model))


def active(replay: Replay, minutes: float, seed: int) -> list[int]:
    """The designs kept with kernels, and then networks, measured where uncertainty meets the front."""
    order = np.random.default_rng(seed).permutation(len(replay.kernels))
    left = minutes - replay.minutes_of_calibration
    if _affordable(replay, left) < _FIRST_KERNELS:
        return []
    count = max(_FIRST_KERNELS, _affordable(replay, (1.0 - _WHOLE_PART) * left))
    entry_of = {entry.kernel: entry for entry in replay.kernels}
    pool = [entry.kernel for entry in replay.kernels]
    networks = [design.kernels for design in replay.designs]
    entries = [replay.kernels[i] for i in order[:_FIRST_KERNELS]]
    model = fit(entries, seed)
    while len(entries) < count:
        wanted = min(count - len(entries), max(_FIRST_KERNELS, int(_ROUND * len(entries))))
        chosen = kernels_for_front(model, networks, replay.errors.tolist(), wanted, pool=pool)
        if not chosen:
            break
        entries += [entry_of[kernel] for kernel in chosen]
        model = fit(entries, seed)
    # What is left goes to whole networks, the most likely first; each one that is known changes what is likely.
    log_latency = np.log(_predicted(replay, model))
    log_std = front_belief(model, networks, replay.errors.tolist()).log_std
    spare = left - replay.minutes_per_kernel * len(entries)
    measured: set[int] = set()
    for _ in range(math.floor(spare / replay.minutes_per_network)):
        value = front_probability(replay.errors, log_latency, log_std) * log_std
        best = int(np.argmax(value))
        if value[best] <= 0:
            break
        measured.add(best)
        log_latency[best], log_std[best] = math.log(replay.designs[best].latency_ns), 0.0
    return _front(replay.errors, np.exp(log_latency))


POLICIES: dict[str, Callable[[Replay, float, int], list[int]]] = {
    "all_measured": all_measured,
    "all_predicted": all_predicted,
    "active": active,
}


def active_part(
    dataset: Dataset,
    budgets_minutes: Sequence[float] = BUDGETS_MINUTES,
    num_designs: int | None = None,
    num_seeds: int = 3,
) -> dict[str, Any]:
    """The part `active`: for each way and budget the part of the hypervolume that it reaches, a mean over seeds, and
    that per device minute.
    """
    replay = replay_of(dataset, num_designs)
    rows: dict[str, list[dict[str, float]]] = {}
    for name, policy in POLICIES.items():
        rows[name] = []
        for minutes in budgets_minutes:
            found = [replay.quality(policy(replay, minutes, seed)) for seed in range(num_seeds)]
            mean = float(np.mean(found))
            rows[name].append(
                {"device_minutes": minutes, "hypervolume": mean, "hypervolume_per_minute": mean / minutes}
            )
    return {
        "designs": len(replay.designs),
        "seeds": num_seeds,
        "minutes_to_measure_all": replay.minutes_per_network * len(replay.designs),
        "minutes_of_calibration": replay.minutes_of_calibration,
        "errors": "made up from the work that is left, as the networks were never trained",
        **rows,
    }


def _affordable(replay: Replay, minutes: float) -> int:
    return min(len(replay.kernels), math.floor(max(0.0, minutes) / replay.minutes_per_kernel))


def _predicted(replay: Replay, model: KernelLatencyModel) -> FloatArray:
    """Latencies in ns of all designs (n,), as whole networks."""
    whole = fit_whole_networks(model, replay.calibration, replay.profiles)
    return whole.predict_all([d.kernels for d in replay.designs])[0]


def _front(errors: FloatArray, latency_ns: FloatArray) -> list[int]:
    return [int(i) for i in np.flatnonzero(non_dominated_mask(np.column_stack((errors, latency_ns))))]
