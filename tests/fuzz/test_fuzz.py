"""A few seeded cases of each fuzzer; `make fuzz` runs tens of thousands."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import files
from tests.fuzz.api import ApiFuzzer, stocked_lab

#: Some of the operations with sound and unsound requests, and all hostile bodies.
NUM_OPERATIONS = 12
API_CASES = 72
FILE_CASES = 25


def test_no_request_is_answered_otherwise_than_documented(tmp_path: Path) -> None:
    with stocked_lab(tmp_path) as (lab, agent, stored):
        findings = ApiFuzzer(lab, agent, stored).run(API_CASES, 1, num_operations=NUM_OPERATIONS)
    assert findings.wrong == {}
    assert findings.cases > API_CASES
    # Some requests were sound, and some were not.
    assert {200, 400, 404, 422} <= set(findings.statuses)


@pytest.fixture
def alarmed() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, files._on_alarm)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("alarmed")
def test_no_damaged_file_does_more_than_be_refused(tmp_path: Path) -> None:
    for target in files.targets(tmp_path):
        found = files.fuzz(target, FILE_CASES, 1, tmp_path)
        assert found.wrong == {}, target.name
        assert 0 < found.taken < found.cases, target.name


def test_the_fuzzer_sees_what_is_wrong(tmp_path: Path) -> None:
    def read(path: Path) -> object:
        return path.read_bytes()[7]

    target = files.Target(name="broken", seeds=(b"12345678",), read=read, refusals=(ValueError,))
    found = files.fuzz(target, 100, 0, tmp_path)
    assert found.wrong is not None
    assert any("IndexError" in what for what in found.wrong)
