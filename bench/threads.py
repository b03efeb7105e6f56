"""How much faster a whole network runs on several threads.

Thread-CPU time cannot tell, so this is wall time, which other work on the machine lengthens: the figure is the ratio of
the fastest rounds, with the median over rounds beside it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from bench.timing import Times, Variant, time_interleaved
from bench.whole_networks import pruning_of
from bench.zoo import NETWORKS, plan_tensors
from device_agent.native.executor import NativeNetwork
from device_agent.synthesis import synthesize_input

NETWORK = "resnet18"
THREADS = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class ThreadRow:
    """One network on one and on several threads, wall times. `speedup` is the ratio of the minima."""

    network: str
    density: float
    threads: int
    speedup: float
    median_speedup: float
    minimum_ms: float
    one_thread_minimum_ms: float


def thread_rows(densities: Sequence[float], *, rounds: int, isa: str | None = None) -> list[ThreadRow]:
    """Time `NETWORK` at each density on one and on two threads, interleaved; none on a machine with one core."""
    if (os.cpu_count() or 1) < THREADS:
        return []
    rows = []
    for density in densities:
        plan = NETWORKS[NETWORK](pruning_of(density))
        tensors = plan_tensors(plan)
        x = synthesize_input(plan.input_shape, seed=0)
        networks = {threads: NativeNetwork(plan, tensors, isa=isa, threads=threads) for threads in (1, THREADS)}
        outputs = [network.run(x) for network in networks.values()]
        # Each is tuned by itself, so one may use Winograd's algorithm where the other does not.
        if not np.abs(outputs[1] - outputs[0]).max() <= 1e-3 * np.abs(outputs[0]).max():
            raise RuntimeError(f"{NETWORK} at {density}: {THREADS} threads give another output than one")
        variants = [Variant(_name(threads), network.repeat) for threads, network in networks.items()]
        times = time_interleaved(variants, rounds, min_sample_ns=1, clock_ns=time.perf_counter_ns)
        rows.append(thread_row(times, density))
        networks[THREADS].close()
    return rows


TABLE_HEADER = f"{'threads':>7} {'network':14} {'density':>7} {'ms':>8} {'one, ms':>8} {'speed-up':>8} {'median':>8}"


def table_lines(rows: Sequence[ThreadRow]) -> Iterator[str]:
    """The rows as text, one line each."""
    for row in rows:
        yield (
            f"{row.threads:7} {row.network:14} {row.density:7.2f} {row.minimum_ms:8.3f} "
            f"{row.one_thread_minimum_ms:8.3f} {row.speedup:8.2f} {row.median_speedup:8.2f}"
        )


def thread_row(times: Times, density: float) -> ThreadRow:
    """The figures of `THREADS` threads among `times`."""
    one, several = _name(1), _name(THREADS)
    return ThreadRow(
        network=NETWORK,
        density=density,
        threads=THREADS,
        speedup=times.minimum_ns(one) / times.minimum_ns(several),
        median_speedup=times.ratio_of(one, several),
        minimum_ms=times.minimum_ns(several) / 1e6,
        one_thread_minimum_ms=times.minimum_ns(one) / 1e6,
    )


def _name(threads: int) -> str:
    return f"{threads} threads"
