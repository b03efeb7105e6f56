"""The agent's settings: from the command line, else the environment, else a default."""

from __future__ import annotations

import socket
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from device_agent.errors import SettingsError

#: Room for some hundred networks; the eldest go first.
DEFAULT_ARTIFACT_CACHE_BYTES = 2 << 30
#: A task takes a second or two: eight leases ask the server every ten seconds or so, well within their 120 s.
DEFAULT_MAX_LEASES = 8

ENVIRONMENT = {
    "KERF_AGENT_SERVER": "URL of the server",
    "KERF_AGENT_CODE": "enrolment code, used on the first start",
    "KERF_AGENT_NAME": "name of the device in the dashboard (default: the host name)",
    "KERF_AGENT_STATE_DIR": "where the agent keeps its token, spool and artifacts",
    "KERF_AGENT_SIMULATED": "1: be a simulated device",
    "KERF_SIMULATED_CORE": "phone (default) or board: what a simulated device computes its latencies for",
    "KERF_AGENT_EMULATED": "1: this device is emulated, where the agent cannot see it by itself",
    "KERF_AGENT_MAX_LEASES": "tasks taken at once (1..64)",
    "KERF_AGENT_ARTIFACT_CACHE_BYTES": "size limit of the artifact cache",
    "KERF_AGENT_LOG_LEVEL": "debug, info, warning or error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSettings:
    """How this agent runs. `server_url` and `code` may be None once the agent is enrolled."""

    state_dir: Path
    device_name: str
    server_url: str | None = None
    code: str | None = None
    simulated: bool = False
    #: False leaves it to the probe, which cannot be overruled: emulated times must never pass for measured ones.
    emulated: bool = False
    max_leases: int = DEFAULT_MAX_LEASES
    artifact_cache_bytes: int = DEFAULT_ARTIFACT_CACHE_BYTES
    log_level: str = "info"

    def __post_init__(self) -> None:
        if not 1 <= len(self.device_name.strip()) <= 100 or not self.device_name.isprintable():
            raise SettingsError(f"the device name {self.device_name!r} must be 1 to 100 printable characters")
        if not 1 <= self.max_leases <= 64:
            raise SettingsError(f"KERF_AGENT_MAX_LEASES {self.max_leases} is not in 1..64")
        if self.artifact_cache_bytes < 1:
            raise SettingsError(f"KERF_AGENT_ARTIFACT_CACHE_BYTES {self.artifact_cache_bytes} must be positive")
        if self.log_level.lower() not in ("debug", "info", "warning", "error"):
            raise SettingsError(f"log level {self.log_level!r} is not one of debug, info, warning, error")

    def __repr__(self) -> str:
        return f"AgentSettings(server_url={self.server_url!r}, state_dir={str(self.state_dir)!r})"


def load_settings(
    environment: Mapping[str, str],
    *,
    server: str | None = None,
    code: str | None = None,
    name: str | None = None,
    state_dir: Path | None = None,
    simulated: bool = False,
    max_leases: int | None = None,
    log_level: str | None = None,
) -> AgentSettings:
    """Settings from the flags given (not None), else from `environment`, else the defaults.

    Raises `SettingsError` naming the variable and its value.
    """
    server_url = server or environment.get("KERF_AGENT_SERVER")
    directory = state_dir or environment.get("KERF_AGENT_STATE_DIR") or _default_state_dir(environment)
    return AgentSettings(
        server_url=normalised_url(server_url) if server_url else None,
        code=code or environment.get("KERF_AGENT_CODE") or None,
        device_name=name or environment.get("KERF_AGENT_NAME") or socket.gethostname() or "device",
        state_dir=Path(directory).expanduser(),
        simulated=simulated or _flag(environment, "KERF_AGENT_SIMULATED"),
        emulated=_flag(environment, "KERF_AGENT_EMULATED"),
        max_leases=max_leases
        if max_leases is not None
        else _number(environment, "KERF_AGENT_MAX_LEASES", DEFAULT_MAX_LEASES),
        artifact_cache_bytes=_number(environment, "KERF_AGENT_ARTIFACT_CACHE_BYTES", DEFAULT_ARTIFACT_CACHE_BYTES),
        log_level=log_level or environment.get("KERF_AGENT_LOG_LEVEL") or "info",
    )


def normalised_url(url: str) -> str:
    """`url` without a trailing slash. Raises `SettingsError` where it is no http(s) address."""
    try:
        parts = urllib.parse.urlsplit(url.strip())
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    if not valid:
        raise SettingsError(f"{url!r} is not a server address: give one such as http://192.0.2.7:8080")
    if parts.username or parts.query or parts.fragment:
        raise SettingsError(f"the server address {url!r} must hold no user name, query or fragment")
    return url.strip().rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether `url` names this machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _default_state_dir(environment: Mapping[str, str]) -> str:
    data_home = environment.get("XDG_DATA_HOME") or "~/.local/share"
    return f"{data_home}/kerf-agent"


def _flag(environment: Mapping[str, str], name: str) -> bool:
    text = environment.get(name, "0").strip().lower()
    if text in ("1", "true", "yes"):
        return True
    if text in ("", "0", "false", "no"):
        return False
    raise SettingsError(f"{name}={text!r} is neither 0 nor 1")


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "").strip()
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise SettingsError(f"{name}={text!r} is not a whole number") from None
