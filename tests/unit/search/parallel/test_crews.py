"""What all kinds of crews promise, on this process and on processes of this machine; Ray has a test of its own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from search.parallel.crew import Contact, Crew, Died, Done, InlineCrew, Lost, Outcome, Told, work_through
from search.parallel.processes import ProcessCrew
from tests.unit.search.parallel.arithmetic import Squares, Unlucky


def results_of(crew: Crew, pieces: Sequence[Any], **options: Any) -> list[Any]:
    found: dict[int, Any] = {}

    def keep(index: int, result: Any) -> None:
        assert index not in found
        found[index] = result

    work_through(crew, pieces, on_result=keep, **options)
    return [found[index] for index in range(len(pieces))]


class Stop(Exception):
    pass


class TestWorkThrough:
    """The rules, on a crew that does as it is told."""

    class Scripted(InlineCrew):
        """`script` says what becomes of each piece under way, at each wait."""

        def __init__(self, size: int, script: Sequence[Callable[[], Sequence[Outcome]]]) -> None:
            self.script = list(script)
            self.begun: list[int] = []
            self._limit = size

        @property
        def size(self) -> int:
            return self._limit

        def submit(self, ticket: int, piece: Any) -> None:
            self.begun.append(ticket)

        def wait(self, timeout_s: float, contact: Contact) -> Sequence[Outcome]:
            return self.script.pop(0)()

    def test_no_more_under_way_than_there_are_processes(self) -> None:
        crew = self.Scripted(2, [lambda: [Done(1, "b")], list, lambda: [Done(0, "a"), Done(2, "c")]])
        seen: list[int] = []
        work_through(crew, "abc", on_result=lambda index, result: seen.append(index))
        assert seen == [1, 0, 2]
        assert crew.begun == [0, 1, 2]

    def test_a_piece_whose_process_died_comes_first_again(self) -> None:
        crew = self.Scripted(1, [lambda: [Died(0, "gone")], lambda: [Done(0, "a")], lambda: [Done(1, "b")]])
        assert results_of(crew, "ab") == ["a", "b"]
        assert crew.begun == [0, 0, 1]

    def test_a_deadly_piece_is_given_up_and_no_other(self) -> None:
        crew = self.Scripted(1, [lambda: [Died(0, "gone")]] * 2 + [lambda: [Done(1, "b")]])
        assert results_of(crew, "ab", max_deaths=2) == [Lost("2 processes died at it: gone"), "b"]

    def test_notes_say_whose_they_are(self) -> None:
        crew = self.Scripted(2, [lambda: [Told(1, "half")], lambda: [Done(0), Done(1)]])
        notes: list[tuple[int, Any]] = []
        work_through(crew, "ab", on_result=lambda *_: None, on_note=lambda index, note: notes.append((index, note)))
        assert notes == [(1, "half")]

    def test_a_wish_to_stop_is_felt_between_two_looks(self) -> None:
        def check() -> None:
            if len(crew.script) < 3:
                raise Stop

        crew = self.Scripted(1, [list] * 5)
        with pytest.raises(Stop):
            work_through(crew, "a", on_result=lambda *_: None, check=check)

    def test_nothing_to_do(self) -> None:
        assert results_of(self.Scripted(1, []), []) == []


class TestInline:
    def test_one_piece_after_the_other_in_this_process(self, tmp_path: Path) -> None:
        notes: list[tuple[int, Any]] = []
        with InlineCrew(Squares(tmp_path)) as crew:
            found = results_of(crew, [3, "pid", 4], on_note=lambda index, note: notes.append((index, note)))
        assert found == [9, os.getpid(), 16]
        assert notes == [(0, "squaring 3"), (2, "squaring 4")]
        assert len(list(tmp_path.glob("prepared-*"))) == 1

    def test_a_piece_can_be_stopped_from_within(self, tmp_path: Path) -> None:
        checks = iter([None, Stop()])

        def check() -> None:
            if (error := next(checks)) is not None:
                raise error

        with InlineCrew(Squares(tmp_path)) as crew, pytest.raises(Stop):
            results_of(crew, [3], check=check)


class TestProcesses:
    def test_as_inline_through_deaths_and_with_each_process_prepared_once(self, tmp_path: Path) -> None:
        notes: list[Any] = []
        pieces = [*range(6), "pid", "pid"]
        with ProcessCrew(Squares(tmp_path, deadly=(2,)), 2) as crew:
            found = results_of(crew, pieces, on_note=lambda index, note: notes.append(note))
            members = crew.process_ids
            # The second time they are there already.
            assert results_of(crew, [7]) == [49]
            assert set(crew.process_ids) == set(members)
            # One that dies without work is replaced.
            os.kill(crew.process_ids[0], signal.SIGKILL)
            assert results_of(crew, [8, 9]) == [64, 81]
        assert found[:6] == [n * n for n in range(6)]
        assert os.getpid() not in found[6:]
        assert "squaring 5" in notes
        assert len(list(tmp_path.glob("died-2-*"))) == 1
        for pid in members:
            with pytest.raises(ProcessLookupError):
                os.kill(pid, 0)

    def test_errors_and_deadly_pieces_are_told_apart(self, tmp_path: Path) -> None:
        with ProcessCrew(Squares(tmp_path, deadly=(2,), lives=9), 1) as crew:
            (lost,) = results_of(crew, [2], max_deaths=1)
            assert lost == Lost("1 processes died at it: it was ended by SIGKILL, as it does where memory runs out")
            with pytest.raises(Unlucky, match="no square of 'raise'"):
                results_of(crew, ["raise"])

    def test_no_size(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="size 0"):
            ProcessCrew(Squares(tmp_path), 0)
