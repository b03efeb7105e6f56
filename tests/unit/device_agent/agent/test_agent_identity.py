from __future__ import annotations

import io
import logging
import uuid
from pathlib import Path

import pytest

from device_agent.errors import StateError
from device_agent.identity import (
    Credentials,
    agent_key,
    load_credentials,
    locked_state,
    new_result_key,
    store_credentials,
)
from device_agent.log import configure_logging, log_event

CREDENTIALS = Credentials(
    server_url="http://x", device_id="d1", token="kerf_a_secret123", heartbeat_interval_s=30.0, lease_wait_s=25.0
)


def test_result_keys_are_uuid_version_7() -> None:
    key = uuid.UUID(new_result_key())
    assert key.version == 7
    assert key.variant == uuid.RFC_4122


def test_result_keys_differ_and_follow_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for milliseconds in (1, 2, 1 << 40, (1 << 48) - 1):
        monkeypatch.setattr("device_agent.identity.time.time_ns", lambda now=milliseconds: now * 1_000_000)
        keys.append(new_result_key())
        assert uuid.UUID(keys[-1]).int >> 80 == milliseconds
    assert keys == sorted(keys)
    assert len({new_result_key() for _ in range(1000)}) == 1000


def test_the_key_of_an_agent_is_made_once(tmp_path: Path) -> None:
    assert agent_key(tmp_path) == agent_key(tmp_path)
    assert (tmp_path / "agent.key").stat().st_mode & 0o777 == 0o600


def test_an_empty_key_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "agent.key").write_text("")
    with pytest.raises(StateError, match="enrol again"):
        agent_key(tmp_path)


def test_credentials_are_kept_private(tmp_path: Path) -> None:
    assert load_credentials(tmp_path) is None
    store_credentials(tmp_path, CREDENTIALS)
    assert load_credentials(tmp_path) == CREDENTIALS
    assert (tmp_path / "credentials.json").stat().st_mode & 0o777 == 0o600


def test_damaged_credentials_name_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "credentials.json").write_text("{")
    with pytest.raises(StateError, match="delete it and enrol again"):
        load_credentials(tmp_path)


def test_a_token_is_in_no_repr_and_no_log_line() -> None:
    assert "kerf_a_secret123" not in repr(CREDENTIALS)
    stream = io.StringIO()
    configure_logging("info", stream)
    log_event(logging.getLogger("t"), logging.INFO, "said", text="Bearer kerf_a_secret123", ratio=0.1234567, none=None)
    line = stream.getvalue()
    assert 'text="Bearer [secret]"' in line
    assert "event=said" in line
    assert "ratio=0.123457" in line
    assert "none" not in line
    assert line.count("\n") == 1


def test_the_state_directory_has_one_owner(tmp_path: Path) -> None:
    with locked_state(tmp_path), pytest.raises(StateError, match="another kerf-agent"), locked_state(tmp_path):
        pass
    with locked_state(tmp_path):
        pass


def test_an_impossible_state_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match="file/state"), locked_state(tmp_path / "file/state"):
        pass
