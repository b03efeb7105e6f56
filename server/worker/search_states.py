"""The state of a search in the database, from which another worker goes on.

A state holds every candidate so far, and a generation adds a few. So what mostly grows is written in parts, one a
generation, and the checkpoint has the number of parts and what is left. A part also has the candidates before it whose
figures are others now, as where survivors are scored again in each generation. Where these are most of them, as after
new latencies, all is written anew as one part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sqlalchemy.orm import Session

from search.domain.candidate import EvaluatedCandidate
from search.loop import SearchState, state_from_json, state_to_json
from server.searches.repository import load_checkpoint, load_parts, save_checkpoint, save_part
from server.states import JobStage
from server.worker.run import SearchFailed, SearchRun

STAGE = JobStage.SEARCHING

#: What grows in the state of a searcher: the genomes that it has asked for, in order, and figures by genome.
_SEEN, _TOLD = "seen", "told"

#: Each of the two that a searcher has, as a sequence.
_Memory = Mapping[str, tuple[Any, ...]]

#: Where more than one in so many candidates has other figures than before, all are written anew.
_REWRITTEN_PART = 2


class SearchStates:
    """The states of one search, for one worker: what it has written or read is not written again."""

    def __init__(self, run: SearchRun) -> None:
        self._run = run
        self._parts = 0
        self._archive: tuple[EvaluatedCandidate, ...] = ()
        self._memory: _Memory = {}

    def load(self) -> tuple[SearchState, Mapping[str, Any]] | None:
        """The latest state, and what else its checkpoint has; None before the first generation.

        Raises `SearchFailed` where it is not whole any more.
        """
        run = self._run
        with run.database.read() as session:
            checkpoint = load_checkpoint(session, run.search_id, STAGE)
            if checkpoint is None:
                return None
            data = json.loads(checkpoint.data)
            parts = [json.loads(text) for text in load_parts(session, run.search_id, STAGE, data["parts"])]
        if len(parts) != data["parts"]:
            raise SearchFailed(
                f"{data['parts'] - len(parts)} of {data['parts']} parts of the search's state are gone from the "
                "database: submit the search again"
            )
        memory: dict[str, Any] = {key: [] for key in data["memory"]}
        archive: list[Any] = []
        for part in parts:
            for place, item in part["changed"]:
                archive[place] = item
            archive += part["archive"]
            for key, items in memory.items():
                if key in part["anew"]:
                    items.clear()
                items += part["memory"].get(key, ())
        if _TOLD in memory:
            memory[_TOLD] = dict(memory[_TOLD])
        state = state_from_json({**data, "searcher": {**data["searcher"], **memory}, "archive": archive})
        self._remember(state, len(parts))
        return state, data

    def save(self, session: Session, state: SearchState, more: Mapping[str, Any]) -> None:
        """Store a state, with `more` of JSON, in the caller's transaction. Where that fails, this is not used again."""
        memory, archive = _memory_of(state), state.archive
        changed = _changed(archive, self._archive)
        if changed is None:
            self._parts, self._archive, self._memory, changed = 0, (), {}, []
        # What a searcher forgets, it has little of: a generation's worth.
        before = self._memory
        anew = [key for key, items in memory.items() if key not in before or not _begins(items, before[key])]
        new = {key: items if key in anew else items[len(before[key]) :] for key, items in memory.items()}
        written = (*(archive[place] for place in changed), *archive[len(self._archive) :])
        data = state_to_json(replace(state, archive=written))
        items = data.pop("archive")
        part = {
            "archive": items[len(changed) :],
            "changed": list(zip(changed, items, strict=False)),
            "memory": new,
            "anew": anew,
        }
        data["searcher"] = {key: value for key, value in state.searcher.items() if key not in memory}
        claim = self._run.claim
        save_part(session, claim, stage=STAGE, part=self._parts, data=json.dumps(part))
        self._remember(state, self._parts + 1)
        text = json.dumps({**data, **more, "memory": list(memory), "parts": self._parts})
        save_checkpoint(session, claim, stage=STAGE, step=len(state.archive), data=text)

    def _remember(self, state: SearchState, parts: int) -> None:
        self._parts, self._archive, self._memory = parts, state.archive, _memory_of(state)


def _memory_of(state: SearchState) -> _Memory:
    memory = {key: state.searcher[key] for key in (_SEEN, _TOLD) if key in state.searcher}
    return {key: tuple(items.items() if isinstance(items, Mapping) else items) for key, items in memory.items()}


def _changed(archive: Sequence[object], start: Sequence[object]) -> list[int] | None:
    """The places of `start` at which `archive` differs; None where it does at most of them, or is shorter."""
    if len(archive) < len(start):
        return None
    found = [place for place, (a, b) in enumerate(zip(archive, start, strict=False)) if not (a is b or a == b)]
    return None if _REWRITTEN_PART * len(found) > len(start) else found


def _begins(longer: Sequence[object], start: Sequence[object]) -> bool:
    """Whether `longer` begins with `start`. What is undefined (NaN) equals itself only as the same object."""
    return len(longer) >= len(start) and all(a is b or a == b for a, b in zip(longer, start, strict=False))
