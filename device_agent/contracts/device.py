"""The fixed description of a piece of hardware, and what it can run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from device_agent.contracts.codec import content_id
from device_agent.contracts.measurement import Source

#: TFLite on XNNPACK's sparse path for 1x1 convolutions: a runtime of its own, so that its times mix with no others.
TFLITE_SPARSE_RUNTIME = "tflite-sparse"


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
    taken; None where it does not apply or could not be probed. A runtime that cannot run is listed with the reason in
    `unavailable`.
    """

    name: str
    version: str = ""
    binary_sha256: str = ""
    isa: str = ""
    sparse_1x1: bool | None = None
    unavailable: str | None = None


def why_unusable(runtimes: Iterable[RuntimeInfo], name: str) -> str | None:
    """Why a device with these runtimes cannot measure with the one called `name`; None when it can.

    The text continues "device X" and ends in the remedy.
    """
    runtimes = tuple(runtimes)
    found = next((info for info in runtimes if info.name == name), None)
    usable = ", ".join(info.name for info in runtimes if info.unavailable is None) or "none"
    if found is None:
        return f"has no runtime {name!r}; it has: {usable}. Install it there and restart the agent, or name another one"
    if found.unavailable is not None:
        return f"cannot use its runtime {name!r} ({found.unavailable}); it has: {usable}"
    if name == TFLITE_SPARSE_RUNTIME and found.sparse_1x1 is not True:
        return (
            f"was not seen to take XNNPACK's sparse path, which the runtime {name!r} is for: measure on an aarch64 "
            f"device that has it, or name another runtime; it has: {usable}"
        )
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceProfile:
    """What stays the same while a device is in service: the hardware side of every measurement's key.

    `imported` says that no agent is on the device: its figures came from a file. What the file does not tell is empty.
    """

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
    imported: bool = False

    @property
    def source(self) -> Source:
        """Where every number of this device comes from."""
        if self.imported:
            return Source.IMPORTED
        if self.simulated:
            return Source.SIMULATED
        return Source.EMULATED if self.emulated else Source.MEASURED


def profile_id(profile: DeviceProfile) -> str:
    """The identity of a hardware description."""
    return content_id("p", profile)
