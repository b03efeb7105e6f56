"""The fixed description of a piece of hardware, and what it can run."""

from __future__ import annotations

from dataclasses import dataclass

from device_agent.contracts.codec import content_id
from device_agent.contracts.measurement import Source


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuCluster:
    """Cores of one kind. `max_frequency_hz` is None where the kernel does not tell."""

    model: str
    core_ids: tuple[int, ...]
    max_frequency_hz: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeInfo:
    """A runtime as probed on the device: its version and the hash of the binary that does the work.

    `isa` is the instruction set it dispatches to. `sparse_1x1` tells whether XNNPACK's sparse path was seen
    taken; None where it does not apply. A runtime that cannot run is listed with the reason in `unavailable`.
    """

    name: str
    version: str = ""
    binary_sha256: str = ""
    isa: str = ""
    sparse_1x1: bool | None = None
    unavailable: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """What stays the same while a device is in service: the hardware side of every measurement's key."""

    machine: str
    system: str
    os_build: str
    cpu_model: str
    clusters: tuple[CpuCluster, ...]
    isa_features: tuple[str, ...]
    memory_bytes: int
    governors: tuple[str, ...] = ()
    emulated: bool = False
    simulated: bool = False

    @property
    def source(self) -> Source:
        """Where every number that this device reports comes from."""
        if self.simulated:
            return Source.SIMULATED
        return Source.EMULATED if self.emulated else Source.MEASURED


def profile_id(profile: DeviceProfile) -> str:
    """The identity of a hardware description."""
    return content_id("p", profile)
