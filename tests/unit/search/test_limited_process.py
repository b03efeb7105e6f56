"""A child process with limits answers, or what it broke off at is told."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from search import limited_process
from search.limited_process import BrokenOff, Limits, run_limited

MODULE = """
import os, sys, time
from search.limited_process import answer_request

def answer(request):
    what = request["what"]
    if what == "answer":
        return {"contents": request["path"], "folder": os.getcwd()}
    if what == "secrets":
        return {"contents": sorted(name for name in os.environ if os.environ[name] == "secret")}
    if what == "refuse":
        return {"error": f"{request['path']} is damaged"}
    if what == "fill":
        return {"contents": len(bytearray(1 << 30))}
    if what == "wait":
        time.sleep(60)
    os.abort()

answer_request(answer)
"""
LIMITS = Limits(memory_bytes=256 << 20, timeout_s=60)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "reads_files.py").write_text(textwrap.dedent(MODULE))
    repository = Path(limited_process.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{repository}")
    return "reads_files"


def ask(module: str, what: str, limits: Limits = LIMITS) -> object:
    path = Path("/some/where/file.bin")
    return run_limited(module, {"what": what, "path": str(path)}, path, limits)


def test_a_child_answers_and_names_no_folders(module: str) -> None:
    answer = ask(module, "answer")

    assert isinstance(answer, dict)
    assert answer["contents"] == "/some/where/file.bin"
    assert ask(module, "refuse") == {"error": "file.bin is damaged"}


def test_a_child_has_none_of_the_server_s_secrets(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KERF_TOKEN_KEY", "KERF_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "HARMLESS"):
        monkeypatch.setenv(name, "secret")
    assert ask(module, "secrets") == {"contents": ["HARMLESS"]}


@pytest.mark.parametrize(
    ("what", "said"),
    [("fill", r"file\.bin takes more than 0 GiB to read"), ("crash", r"file\.bin broke the check off \(exit -6\)")],
)
def test_a_child_that_breaks_off_takes_nothing_with_it(module: str, what: str, said: str) -> None:
    with pytest.raises(BrokenOff, match=said):
        ask(module, what)


def test_a_child_ends_with_its_time_and_others_wait_for_a_place(module: str) -> None:
    places = limited_process._free_places
    with pytest.raises(BrokenOff, match=r"could not be checked within 1 s: make it smaller"):
        ask(module, "wait", Limits(memory_bytes=256 << 20, timeout_s=1))
    held = [places.acquire(blocking=False) for _ in range(limited_process.MAX_AT_ONCE)]
    assert held == [True] * limited_process.MAX_AT_ONCE
    with pytest.raises(BrokenOff, match="others are being checked: try again later"):
        ask(module, "answer", Limits(memory_bytes=256 << 20, timeout_s=0))
    for _ in held:
        places.release()
