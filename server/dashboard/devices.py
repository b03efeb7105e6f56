"""Devices as the pages show them: state, runtimes, hardware and conditions."""

from __future__ import annotations

from dataclasses import dataclass

from device_agent.contracts import Conditions, CpuCluster, DeviceProfile, RuntimeInfo, decode
from server.dashboard.formats import byte_count
from server.dashboard.pages import DeviceView, Fact, RuntimeView
from server.dashboard.wording import StateLabel
from server.fleet.devices import DeviceState, device_state
from server.fleet.repository import DeviceStatus
from server.models import DeviceRow

_STATE_LABELS = {
    DeviceState.ONLINE: StateLabel(text="online", tone="good"),
    DeviceState.OFFLINE: StateLabel(text="offline", tone="idle"),
    DeviceState.DISABLED: StateLabel(text="disabled", tone="warn"),
    DeviceState.IMPORTED: StateLabel(text="imported", tone="warn"),
}

_MEASURING = StateLabel(text="measuring", tone="busy")
_READY = StateLabel(text="ready", tone="good")
_UNAVAILABLE = StateLabel(text="not available", tone="idle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """What a device says of itself: its hardware, and its conditions at the last heartbeat, if any."""

    profile: DeviceProfile
    conditions: Conditions | None


def described(row: DeviceRow) -> Described:
    return Described(
        profile=decode(DeviceProfile, row.profile),
        conditions=None if row.conditions is None else decode(Conditions, row.conditions),
    )


def device_view(
    status: DeviceStatus, said: Described, heartbeat_interval_s: float, judged: tuple[int, int] = (0, 0)
) -> DeviceView:
    """A device, with its state as REST tells it; "measuring" says that it has work in hand.

    `judged` is how many of its latest measurements are trusted, and how many these are.
    """
    row = status.row
    profile, conditions = said.profile, said.conditions
    state = device_state(status, heartbeat_interval_s)
    is_measuring = state is DeviceState.ONLINE and status.num_leased > 0
    return DeviceView(
        device_id=row.id,
        name=row.name,
        state=_MEASURING if is_measuring else _STATE_LABELS[state],
        machine=profile.machine,
        cpu_model=profile.cpu_model,
        num_cores=sum(len(cluster.core_ids) for cluster in profile.clusters),
        memory_bytes=profile.memory_bytes,
        source=profile.source.value,
        runtimes=tuple(_runtime_view(decode(RuntimeInfo, data)) for data in row.runtimes),
        agent_version=row.agent_version,
        seen_s=None if state is DeviceState.IMPORTED else status.silent_s,
        open_tasks=status.num_pending + status.num_leased,
        drifted_series=status.drifted_series,
        temperature_celsius=None if conditions is None else conditions.temperature_celsius,
        num_trusted=judged[0],
        num_judged=judged[1],
    )


def hardware_facts(profile: DeviceProfile) -> tuple[Fact, ...]:
    """What stays the same while the device is in service."""
    facts = [
        ("Machine", profile.machine),
        ("System", profile.system),
        ("OS build", profile.os_build),
        ("Processor", profile.cpu_model),
        *(("Cores", _cluster_words(cluster)) for cluster in profile.clusters),
        ("Instruction sets", ", ".join(profile.isa_features)),
        ("Memory", byte_count(profile.memory_bytes) if profile.memory_bytes else ""),
        ("Governors", ", ".join(profile.governors)),
    ]
    return tuple(Fact(label=label, value=value) for label, value in facts if value)


def condition_facts(now: Conditions | None, spooled_reports: int) -> tuple[Fact, ...]:
    """The state at the last heartbeat, as far as the device can tell."""
    if now is None:
        return ()
    facts = (
        ("Clock frequency", None if now.frequency_hz is None else f"{now.frequency_hz / 1e9:.2f} GHz"),
        ("Governor", now.governor),
        ("Temperature", None if now.temperature_celsius is None else f"{now.temperature_celsius:.1f} °C"),
        ("Load over 1 min", None if now.load_1min is None else f"{now.load_1min:.2f}"),
        ("Battery", None if now.battery_percent is None else f"{now.battery_percent:.0f} %"),
        ("Reports not sent yet", str(spooled_reports) if spooled_reports else None),
    )
    return tuple(Fact(label=label, value=value) for label, value in facts if value is not None)


def _cluster_words(cluster: CpuCluster) -> str:
    words = f"{len(cluster.core_ids)} × {cluster.model or 'unnamed'}"
    if cluster.max_frequency_hz is not None:
        words += f" up to {cluster.max_frequency_hz / 1e9:.2f} GHz"
    return words


def _runtime_view(info: RuntimeInfo) -> RuntimeView:
    return RuntimeView(
        name=info.name,
        version=info.version,
        isa=info.isa,
        binary_sha256=info.binary_sha256,
        unavailable=info.unavailable,
        state=_READY if info.unavailable is None else _UNAVAILABLE,
    )
