from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from device_agent import files
from device_agent.contracts import Measurement
from device_agent.outbox import Outbox
from tests.unit.device_agent.agent.agent_samples import report


def test_reports_survive_the_process(tmp_path: Path) -> None:
    Outbox(tmp_path).add(report("r1"))
    reopened = Outbox(tmp_path)
    assert len(reopened) == 1
    assert reopened.holds("l1", 1)
    assert not reopened.holds("l1", 2)
    assert reopened.next_batch(max_reports=8, max_bytes=1 << 20) == (report("r1"),)


def test_a_removed_report_is_gone(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.add(report("r1"))
    outbox.remove("r1")
    assert len(outbox) == 0
    assert len(Outbox(tmp_path)) == 0


def test_the_oldest_go_first_within_the_limits(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    for key in ("r3", "r1", "r2"):
        outbox.add(report(key))
    size_bytes = (tmp_path / "r1.json").stat().st_size

    def keys(max_reports: int, max_bytes: int) -> list[str]:
        return [r.result_key for r in outbox.next_batch(max_reports=max_reports, max_bytes=max_bytes)]

    assert keys(2, 1 << 20) == ["r1", "r2"]
    assert keys(8, 2 * size_bytes) == ["r1", "r2"]
    assert keys(8, 1) == ["r1"], "a report larger than the limit still has to go"


def test_a_crash_while_writing_leaves_no_report_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(source: object, target: object) -> None:
        raise KeyboardInterrupt

    outbox = Outbox(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", crash)
        with pytest.raises(KeyboardInterrupt):
            outbox.add(report("r1"))
    assert len(outbox) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["refused"]


def test_the_report_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(files.os, "fsync", lambda fd: (steps.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr(files.os, "replace", lambda a, b: (steps.append("replace"), replace(a, b))[1])
    Outbox(tmp_path).add(report("r1"))
    assert steps == ["fsync", "replace", "fsync"]


def test_what_a_killed_process_was_writing_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / "r1.json.17.partial").write_bytes(b'{"result_')
    assert len(Outbox(tmp_path)) == 0
    assert not list(tmp_path.glob("*.partial"))


def test_an_unreadable_report_is_kept_apart_not_dropped(tmp_path: Path) -> None:
    (tmp_path / "r1.json").write_bytes(b"\x00\x00")
    outbox = Outbox(tmp_path)
    assert len(outbox) == 0
    assert (tmp_path / "refused/r1.json").read_bytes() == b"\x00\x00"


def test_a_report_set_aside_is_never_sent_again(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    outbox.add(report("r1"))
    kept_in = outbox.set_aside("r1")
    assert kept_in.exists()
    assert len(outbox) == len(Outbox(tmp_path)) == 0


def test_reports_keep_every_digit(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path)
    original = report("r1")
    assert isinstance(original.result, Measurement)
    statistics = dataclasses.replace(original.result.statistics, median_ns=0.1 + 0.2)
    original = dataclasses.replace(original, result=dataclasses.replace(original.result, statistics=statistics))
    outbox.add(original)
    assert Outbox(tmp_path).next_batch(max_reports=1, max_bytes=1) == (original,)


def test_only_this_user_can_read_the_spool(tmp_path: Path) -> None:
    Outbox(tmp_path / "spool").add(report("r1"))
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "spool/r1.json").stat().st_mode & 0o777 == 0o600
