"""How long starting the local stack waits, and which stack clients find."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from device_agent.native.library import COMPILING_EVENT
from server.cli import local_stack
from server.cli.local_stack import LocalStack, StackError, _known_address


@pytest.fixture
def stack(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalStack:
    """One whose agent runs and is late at once."""
    monkeypatch.setattr(local_stack, "START_TIMEOUT_S", -1.0)
    (tmp_path / "logs").mkdir()
    stack = LocalStack(url="http://unused", token="unused", state_dir=tmp_path)
    stack.processes["agent"] = SimpleNamespace(poll=lambda: None)  # type: ignore[assignment]
    return stack


@pytest.fixture
def answers() -> Iterator[bool]:
    return iter([False, False, True])


def test_an_agent_that_compiles_has_more_time(stack: LocalStack, answers: Iterator[bool]) -> None:
    (stack.state_dir / "logs" / "agent.log").write_text(f"level=info event={COMPILING_EVENT} library=x\n")
    stack.wait_for("the agent", lambda: next(answers))
    assert next(answers, None) is None


def test_others_have_not(stack: LocalStack, answers: Iterator[bool]) -> None:
    with pytest.raises(StackError, match="for the agent; see the logs"):
        stack.wait_for("the agent", lambda: next(answers))


def test_clients_go_back_to_the_stack_that_ran_before(tmp_path: Path) -> None:
    path = tmp_path / "server.url"
    with _known_address(path, "http://127.0.0.1:8321"):
        with _known_address(path, "http://127.0.0.1:40000"):
            assert path.read_text() == "http://127.0.0.1:40000\n"
        assert path.read_text() == "http://127.0.0.1:8321\n"
    assert path.read_text() == "http://127.0.0.1:8321\n", "the local token still goes to no other"


def test_the_address_of_a_later_stack_stays(tmp_path: Path) -> None:
    path = tmp_path / "server.url"
    path.write_text("http://127.0.0.1:8321\n")
    with _known_address(path, "http://127.0.0.1:40000"):
        path.write_text("http://127.0.0.1:50000\n")
    assert path.read_text() == "http://127.0.0.1:50000\n"
