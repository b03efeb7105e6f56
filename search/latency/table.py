"""The latency table of one search: what was measured, on one device with one setup, frozen and stored with the search.

The form as JSON is canonical: equal tables are equal text. Version history:
    1  first version
"""

from __future__ import annotations

from dataclasses import dataclass

from device_agent.contracts import (
    ContractError,
    KernelSpec,
    NetworkPlan,
    Source,
    Statistics,
    canonical_json,
    content_id,
    kernel_id,
    loads,
)
from search.latency.families import without_seed
from search.normal import SIGMA_PER_MAD, SIGMAS_OF_95_PERCENT

TABLE_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelLatency:
    """The measured latency of one kernel. `std_ns` is the uncertainty of `latency_ns`, not the spread of samples."""

    kernel: KernelSpec
    latency_ns: float
    std_ns: float = 0.0

    def __post_init__(self) -> None:
        _check_latency(f"kernel {kernel_id(self.kernel)}", self.latency_ns, self.std_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkLatency:
    """The measured latency of one whole network, with the kernels that it runs, in order."""

    kernels: tuple[KernelSpec, ...]
    latency_ns: float
    std_ns: float = 0.0

    def __post_init__(self) -> None:
        if not self.kernels:
            raise ContractError("a measured network has no kernels")
        _check_latency("a network", self.latency_ns, self.std_ns)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """Measured latencies of one device, one measuring setup, one runtime binary and one source.

    Kernels are kept in the order of their ids, so that equal content is an equal table. Raises `ContractError` where a
    kernel is there twice: which of two figures counts is the caller's decision.
    """

    device_id: str
    setup_id: str
    runtime: str
    runtime_version: str
    source: Source
    kernels: tuple[KernelLatency, ...]
    networks: tuple[NetworkLatency, ...] = ()
    version: int = TABLE_VERSION

    def __post_init__(self) -> None:
        if self.version != TABLE_VERSION:
            raise ContractError(f"latency table version {self.version!r} is not {TABLE_VERSION}: export the table anew")
        by_id: dict[str, KernelLatency] = {}
        for entry in self.kernels:
            bare = without_seed(entry.kernel)
            identity = kernel_id(bare)
            if identity in by_id:
                raise ContractError(f"kernel {identity} is in the table twice (seeds do not tell kernels apart)")
            by_id[identity] = KernelLatency(kernel=bare, latency_ns=entry.latency_ns, std_ns=entry.std_ns)
        object.__setattr__(self, "kernels", tuple(by_id[identity] for identity in sorted(by_id)))

    def by_kernel(self) -> dict[KernelSpec, KernelLatency]:
        """The entries by kernel (with seed 0)."""
        return {entry.kernel: entry for entry in self.kernels}


def kernel_latency(kernel: KernelSpec, statistics: Statistics) -> KernelLatency:
    """The table entry of a measured kernel: its median, and how far the median can be trusted."""
    return KernelLatency(kernel=kernel, latency_ns=statistics.median_ns, std_ns=median_std_ns(statistics))


def network_latency(plan: NetworkPlan, statistics: Statistics) -> NetworkLatency:
    """The table entry of a whole network that was measured."""
    return NetworkLatency(kernels=plan.kernels, latency_ns=statistics.median_ns, std_ns=median_std_ns(statistics))


def median_std_ns(statistics: Statistics) -> float:
    """The standard error of the median: from its 95 % interval, or, without one, from the deviation over blocks."""
    if statistics.ci95_low_ns is not None and statistics.ci95_high_ns is not None:
        return (statistics.ci95_high_ns - statistics.ci95_low_ns) / (2 * SIGMAS_OF_95_PERCENT)
    return float(SIGMA_PER_MAD * statistics.mad_ns / max(1, statistics.num_blocks) ** 0.5)


def table_id(table: LatencyTable) -> str:
    """The identity of a table: equal measurements of one device and setup are one table."""
    return content_id("t", table)


def dump_table(table: LatencyTable) -> str:
    """The table as canonical JSON text."""
    return canonical_json(table)


def load_table(text: str | bytes) -> LatencyTable:
    """Read what `dump_table` wrote. Raises `ContractError` where it is no valid table."""
    return loads(LatencyTable, text)


def _check_latency(what: str, latency_ns: float, std_ns: float) -> None:
    if not 0 < latency_ns < float("inf"):
        raise ContractError(f"the latency {latency_ns!r} ns of {what} must be positive and finite")
    if not 0 <= std_ns < float("inf"):
        raise ContractError(f"the uncertainty {std_ns!r} ns of {what} must be finite and not negative")
