"""Who this agent is: the key it made itself, and the credentials that a server gave it.

<state_dir>/lock               held while an agent process runs
<state_dir>/agent.key          made once; enrolling again with it finds the same device
<state_dir>/credentials.json   server, device and token; readable by this user only
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from device_agent.contracts import ContractError, dumps, loads
from device_agent.errors import StateError
from device_agent.files import private_directory, write_atomically


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What enrolment gave. `token` never leaves this file except in the Authorization header."""

    server_url: str
    device_id: str
    token: str
    heartbeat_interval_s: float
    lease_wait_s: float

    def __repr__(self) -> str:
        return f"Credentials(server_url={self.server_url!r}, device_id={self.device_id!r}, token=...)"


def agent_key(state_dir: Path) -> str:
    """This agent's own key, made on first use."""
    path = state_dir / "agent.key"
    try:
        key = path.read_text().strip()
    except FileNotFoundError:
        key = secrets.token_hex(16)
        write_atomically(path, key.encode())
    if not key:
        raise StateError(f"{path} is empty: delete it and enrol again (the server will see a new device)")
    return key


def load_credentials(state_dir: Path) -> Credentials | None:
    """The stored credentials; None before the first enrolment. Raises `StateError` on a damaged file."""
    path = state_dir / "credentials.json"
    try:
        text = path.read_text()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"cannot read {path}: {error.strerror}") from error
    try:
        return loads(Credentials, text)
    except ContractError as error:
        raise StateError(f"{path} is damaged ({error}): delete it and enrol again") from None


def store_credentials(state_dir: Path, credentials: Credentials) -> None:
    """Keep `credentials` for the next start, for this user's eyes only (mode 0600)."""
    write_atomically(state_dir / "credentials.json", dumps(credentials).encode(), mode=0o600)


@contextmanager
def locked_state(state_dir: Path) -> Iterator[None]:
    """Hold the state directory for this process alone. The lock dies with the process, also under kill -9.

    Raises `StateError` where another agent holds it, or the directory cannot be made.
    """
    try:
        private_directory(state_dir)
        descriptor = os.open(state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateError(f"cannot use the state directory {state_dir}: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateError(
                f"another kerf-agent uses {state_dir}: stop it, or name another directory with --state-dir"
            ) from None
        yield
    finally:
        os.close(descriptor)


def new_result_key() -> str:
    """A UUID version 7 (RFC 9562, section 5.7): 48 bits of milliseconds, then 74 random bits.

    Ordered by time, which keeps the index of a database small and fast; unique even if the clock is wrong.
    """
    milliseconds = time.time_ns() // 1_000_000
    value = (milliseconds & (1 << 48) - 1) << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    digits = f"{value:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
