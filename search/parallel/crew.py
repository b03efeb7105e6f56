"""Processes that do pieces of work for one search, and what every kind of them offers.

    with InlineCrew(prepare) as crew:                   # or ProcessCrew, or RayCrew
        work_through(crew, pieces, on_result=store)

A crew is given `prepare`, which each process calls once and which returns the function that does a piece. Whatever the
kind of crew, the same pieces give the same results, in whatever order they come: so a result must follow from its piece
alone. Work must be safe to repeat, as a process may die behind its last step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

#: How often a running piece gives the search an opportunity to stop.
CHECK_INTERVAL_S = 0.2
#: A piece is given up when so many processes died of it.
MAX_DEATHS = 3


def nothing() -> None:
    """A `check` that lets everything go on."""


def nobody(note: Any) -> None:
    """A `tell` that nobody hears."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contact:
    """What a piece of work can reach of its search.

    Attributes:
        check: To be called between steps; raises where the work is to stop.
        tell: Progress, as far as the kind of crew can carry it; it may be lost.
    """

    check: Callable[[], None] = nothing
    tell: Callable[[Any], None] = nobody


Do = Callable[[Any, Contact], Any]
#: Is sent to other processes, so it and all pieces and results must be picklable.
Prepare = Callable[[], Do]


@dataclass(frozen=True, slots=True)
class Done:
    """A piece was done, or raised `error`."""

    ticket: int
    result: Any = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Died:
    """The process that was at a piece is gone. Another one is there, or will be, for the next."""

    ticket: int
    reason: str


@dataclass(frozen=True, slots=True)
class Told:
    """A note about a piece that is being done."""

    ticket: int
    note: Any


Outcome = Done | Died | Told


@dataclass(frozen=True, slots=True)
class Lost:
    """In place of a result: every process that tried this piece died."""

    reason: str


class CrewUnavailable(Exception):
    """The processes cannot be had at the moment. Nothing is wrong with the search: it can go on later."""


class Crew(Protocol):
    """Up to `size` pieces at a time, each in a process of its own."""

    @property
    def size(self) -> int: ...

    def submit(self, ticket: int, piece: Any) -> None:
        """Begin a piece. No more than `size` are under way."""
        ...

    def wait(self, timeout_s: float, contact: Contact) -> Sequence[Outcome]:
        """What happened to pieces under way, as soon as anything did; nothing after `timeout_s`.

        Work in this very process uses `contact`; other kinds pass notes on as `Told`. Raises `CrewUnavailable`.
        """
        ...

    def close(self) -> None:
        """End all processes, also those at work."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def work_through(
    crew: Crew,
    pieces: Sequence[Any],
    *,
    on_result: Callable[[int, Any], None],
    on_note: Callable[[int, Any], None] = lambda index, note: None,
    check: Callable[[], None] = nothing,
    max_deaths: int = MAX_DEATHS,
) -> None:
    """Have all `pieces` done.

    A piece whose process dies is given to another, and after `max_deaths` of them its result is `Lost`. What a piece
    raises, `check` or a callback raises, ends the whole; the crew must then be closed.

    Args:
        crew: Has nothing under way.
        pieces: In the order in which they are begun.
        on_result: Called with a piece's index and its result, as soon as it is there, in any order.
        on_note: Called with a piece's index and what it told.
        check: Called at least every `CHECK_INTERVAL_S`, and before each piece where these are done in this process.
        max_deaths: Of processes, for one piece.
    """
    waiting = deque(range(len(pieces)))
    under_way: set[int] = set()
    deaths = [0] * len(pieces)
    while waiting or under_way:
        check()
        while waiting and len(under_way) < crew.size:
            ticket = waiting.popleft()
            crew.submit(ticket, pieces[ticket])
            under_way.add(ticket)
        contact = Contact(check=check, tell=lambda note: on_note(min(under_way), note))
        for outcome in crew.wait(CHECK_INTERVAL_S, contact):
            if isinstance(outcome, Told):
                on_note(outcome.ticket, outcome.note)
                continue
            under_way.discard(outcome.ticket)
            if isinstance(outcome, Died):
                deaths[outcome.ticket] += 1
                if deaths[outcome.ticket] < max_deaths:
                    waiting.appendleft(outcome.ticket)
                else:
                    on_result(outcome.ticket, Lost(f"{max_deaths} processes died at it: {outcome.reason}"))
            elif outcome.error is not None:
                raise outcome.error
            else:
                on_result(outcome.ticket, outcome.result)


@dataclass(slots=True)
class InlineCrew:
    """This process itself: one piece at a time, and no process besides."""

    prepare: Prepare
    _do: Do | None = None
    _pieces: deque[tuple[int, Any]] = field(default_factory=deque)

    @property
    def size(self) -> int:
        return 1

    def submit(self, ticket: int, piece: Any) -> None:
        self._pieces.append((ticket, piece))

    def wait(self, timeout_s: float, contact: Contact) -> Sequence[Outcome]:
        """Do the piece, however long that takes."""
        ticket, piece = self._pieces.popleft()
        if self._do is None:
            self._do = self.prepare()
        return [Done(ticket, self._do(piece, contact))]

    def close(self) -> None:
        self._do = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
