"""The state of a search as it is stored: what grows is written once, and what is read back is what was written."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from sqlalchemy import delete, select

from search.domain.candidate import Candidate, EvaluatedCandidate, Evaluation
from search.domain.objective import Metric
from search.loop import SearchState, state_to_json
from server.models import CheckpointPartRow
from server.worker.run import SearchFailed, SearchRun
from server.worker.search_states import SearchStates
from tests.unit.server.server_lab import ServerLab

#: Beside a state, as the rounds of active measuring are.
MORE = {"rounds": {"done": 1}}


@pytest.fixture
def run(lab: ServerLab) -> SearchRun:
    lab.search(lab.agent().device_id)
    return lab.claimed_run()


def candidate(number: int, latency_ms: float = 1.0) -> EvaluatedCandidate:
    # Every third failed, and has an error that is not defined.
    failure = "too large" if number % 3 == 0 else None
    metrics = {Metric.ERROR: math.nan if failure else number / 7, Metric.LATENCY_MS: latency_ms}
    return EvaluatedCandidate(
        candidate=Candidate(space_id="space_1", genome=(number, 0)),
        evaluation=Evaluation(metrics=metrics, failure=failure),
    )


def after(generation: int) -> SearchState:
    """Two candidates a generation, and a searcher that keeps the last one, all that it saw, and what it learnt."""
    archive = tuple(candidate(number) for number in range(2 * generation))
    codes = [f"{number}.0" for number in range(2 * generation)]
    told = {code: [0.5, float(place)] for place, code in enumerate(codes) if place != 1}
    searcher = {"generation": generation, "seen": codes, "told": told, "last": [generation]}
    return SearchState(generation=generation, searcher=searcher, archive=archive)


def grown(state: SearchState, generation: int) -> SearchState:
    """The same search, later: what it knew are the same objects."""
    later = after(generation)
    return replace(later, archive=state.archive + later.archive[len(state.archive) :])


def save(run: SearchRun, states: SearchStates, state: SearchState) -> None:
    with run.database.write() as session:
        states.save(session, state, MORE)


def parts(run: SearchRun) -> list[str]:
    with run.database.read() as session:
        return list(session.scalars(select(CheckpointPartRow.data).order_by(CheckpointPartRow.part)))


def loaded(run: SearchRun) -> SearchState:
    found = SearchStates(run).load()
    assert found is not None
    assert found[1]["rounds"] == MORE["rounds"]
    return found[0]


def test_a_generation_writes_what_is_new(run: SearchRun) -> None:
    states, state = SearchStates(run), after(1)
    assert states.load() is None
    save(run, states, state)
    for generation in (2, 3):
        before = parts(run)
        state = grown(state, generation)
        save(run, states, state)
        assert parts(run)[:-1] == before
        assert state_to_json(loaded(run)) == state_to_json(state)
    for first in ("[0, 0]", '"0.0"', '["0.0", [0.5, 0.0]]'):
        assert [first in text for text in parts(run)] == [True, False, False]
    # Another worker goes on behind what it has read.
    states = SearchStates(run)
    found = states.load()
    assert found is not None
    save(run, states, grown(found[0], 4))
    assert len(parts(run)) == 4
    assert state_to_json(loaded(run)) == state_to_json(after(4))


def test_what_changed_is_written_anew(run: SearchRun) -> None:
    states, state = SearchStates(run), after(2)
    save(run, states, after(1))
    save(run, states, state)
    told_anew = replace(state, archive=tuple(candidate(n, latency_ms=2.0) for n in range(4)))
    save(run, states, told_anew)
    assert len(parts(run)) == 1
    assert state_to_json(loaded(run)) == state_to_json(told_anew)
    later = grown(told_anew, 3)
    save(run, states, later)
    assert len(parts(run)) == 2
    assert state_to_json(loaded(run)) == state_to_json(later)
    # The searcher has learnt other figures of the same candidates.
    unlearnt = replace(later, searcher={**later.searcher, "told": {"4.0": [0.1, 0.2], "0.0": [0.5, 0.0]}})
    save(run, states, unlearnt)
    assert len(parts(run)) == 3
    assert state_to_json(loaded(run)) == state_to_json(unlearnt)
    assert list(loaded(run).searcher["told"]) == ["4.0", "0.0"]
    # What is told from then on comes behind it, and what is forgotten whole does not come back.
    learnt = replace(unlearnt, searcher={**unlearnt.searcher, "told": {**unlearnt.searcher["told"], "1.0": [0.2, 0.3]}})
    save(run, states, learnt)
    assert state_to_json(loaded(run)) == state_to_json(learnt)
    forgetful = replace(learnt, searcher={key: value for key, value in learnt.searcher.items() if key != "told"})
    for state in (forgetful, replace(learnt, searcher={**learnt.searcher, "told": {"2.0": [0.7, 0.8]}})):
        save(run, states, state)
        assert state_to_json(loaded(run)) == state_to_json(state)


def test_survivors_that_are_scored_again_are_written_alone(run: SearchRun) -> None:
    """As with the supernet: in each generation some candidates from anywhere have other scores."""
    states, state = SearchStates(run), after(5)
    save(run, states, state)
    for generation in range(6, 16):
        later = grown(state, generation)
        archive = list(later.archive)
        for place in (1, len(archive) // 2, len(archive) - 4):
            archive[place] = candidate(place, latency_ms=float(generation))
        state = replace(later, archive=tuple(archive), searcher={**later.searcher, "told": {str(generation): [0.5]}})
        before = parts(run)
        save(run, states, state)
        assert parts(run)[:-1] == before
        assert state_to_json(loaded(run)) == state_to_json(state)
        # Two that are new, and three; the codes of all that was seen are not said again.
        assert 5 * 50 < len(parts(run)[-1]) < 5 * 160
    states = SearchStates(run)
    found = states.load()
    assert found is not None
    save(run, states, grown(found[0], 16))
    assert state_to_json(loaded(run)) == state_to_json(grown(state, 16))


def test_a_searcher_without_a_memory(run: SearchRun) -> None:
    state = replace(after(2), searcher={"last": 3})
    save(run, SearchStates(run), state)
    assert state_to_json(loaded(run)) == state_to_json(state)


def test_a_part_that_is_gone_is_told(run: SearchRun) -> None:
    states, state = SearchStates(run), after(1)
    save(run, states, state)
    save(run, states, grown(state, 2))
    with run.database.write() as session:
        session.execute(delete(CheckpointPartRow).where(CheckpointPartRow.part == 0))
    with pytest.raises(SearchFailed, match="1 of 2 parts of the search's state are gone"):
        SearchStates(run).load()
