"""What a worker reads and writes of a search job. Every function runs in the caller's transaction.

    with database.write() as session:
        claim = claim_runnable_job(session, worker="host:pid", stale_s=60)
    ...
    with database.write() as session:          # one generation: results, checkpoint and events together
        save_candidates(session, claim, records)
        save_checkpoint(session, claim, stage=JobStage.SEARCHING, step=7, data=text)
        add_events(session, claim, [SearchEvent(kind="generation", data={"generation": 7})])

All writes are fenced: they raise `ClaimLost` when another worker has taken the job over, and the worker must then
stop without writing anything more. Each write also counts as a heartbeat. JSON values must be finite: `ContractError`
otherwise, because neither PostgreSQL nor a browser takes NaN.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, case, delete, false, func, insert, or_, select, update
from sqlalchemy.orm import Session

from device_agent.contracts import encode
from search.domain.config import SearchConfig, parse_config
from server.columns import database_time_s, now_s
from server.models import CandidateRow, CheckpointPartRow, CheckpointRow, DeviceRow, DocumentRow, EventRow, SearchRow
from server.searches.tasks import cancel_unwanted_tasks
from server.states import JOB_TRANSITIONS, JobStage, JobState, sources
from server.upsert import upsert

#: Checkpoints of a stage that are kept: the latest, and one more in case it is found unreadable.
KEPT_CHECKPOINTS = 2

#: Documents that the API serves.
RESOLVED_CONFIG = "config"
#: Of the first device of a search; see `device_document` for those of the others.
LATENCY_TABLE = "latency-table"
#: With the held-out errors of the latency model; of each device, too.
LATENCY_CARD = "latency-card"
RESULT = "result"
#: The front as the search found it, before training: equal seeds and latency tables give equal text.
SEARCHED_FRONT = "searched-front"
#: The operators of each candidate of that front, with their part of the predicted latency (`search.layers`).
FRONT_LAYERS = "front-layers"
#: The estimated errors of pruned layers (`search.reconstruction`), for methods that use them.
LAYER_ERRORS = "layer-errors"
#: Figures of the best candidates on all held-out images.
REEVALUATED = "reevaluated"
#: How many choices do not pay and are left out (`search.unprofitable`).
EXCLUDED_CHOICES = "excluded-choices"


def device_document(name: str, device_id: str, device_ids: Sequence[str]) -> str:
    """The name of a document that a search has for each of its devices `device_ids`: bare for the first."""
    return name if device_id == device_ids[0] else f"{name}.{device_id}"


class ClaimLost(Exception):
    """The job belongs to another worker, or is over: stop, and write nothing more."""


class JobSignal(StrEnum):
    """What the user wants of a running job."""

    CONTINUE = "continue"
    PAUSE = "pause"
    CANCEL = "cancel"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobClaim:
    """A job in the hands of one worker. `epoch` is its fence; `stage` is where an earlier worker left off.

    `device_id` is the only device, or the first of several. `takeovers` is how many workers in a row ended with the job
    in their hands and had finished nothing of it.
    """

    search_id: str
    epoch: int
    device_id: str
    stage: JobStage
    config: SearchConfig
    takeovers: int = 0

    @property
    def device_ids(self) -> tuple[str, ...]:
        """All devices of the search, in the order of its config."""
        return self.config.devices or (self.device_id,)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    stage: JobStage
    step: int
    data: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchEvent:
    """Something worth telling a watcher. `data` is JSON."""

    kind: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class CandidateRecord:
    """A candidate as stored. `results` maps a stage ("training", "exporting", "verifying") to its JSON."""

    candidate_id: str
    genome: tuple[int, ...]
    metrics: Mapping[str, float]
    generation: int
    violation: float = 0.0
    on_front: bool = False
    selected: bool = False
    results: Mapping[str, Any] = field(default_factory=dict)


def claim_runnable_job(
    session: Session,
    *,
    worker: str,
    stale_s: float,
    take_over_own: bool = False,
    held: JobClaim | None = None,
    max_takeovers: int = 0,
) -> JobClaim | None:
    """Take the oldest job that waits, or whose worker has been silent for `stale_s`, in one statement.

    `take_over_own` also takes running jobs of a worker of the same name: for the start of a process whose name
    nobody else can have. `held` is what this process had claimed when something else than the search got in its way: it
    is taken up again at once. Jobs that were asked to pause or to stop, but lost their worker in one of these ways, are
    settled on the way, and those that lost `max_takeovers` workers without getting any further fail; 0 is no limit.
    """
    is_lost = or_(_is_lost(worker, stale_s, take_over_own), _is_held(held))
    _settle_abandoned(session, is_lost)
    while (row := _take_oldest(session, worker, is_lost, held)) is not None:
        claim = JobClaim(
            search_id=row.id,
            epoch=row.epoch,
            device_id=row.device_id,
            stage=row.stage,
            config=parse_config(row.config),
            takeovers=row.takeovers,
        )
        if max_takeovers == 0 or claim.takeovers < max_takeovers:
            if claim.takeovers > 1:
                add_events(session, claim, [_lost_again(claim.takeovers, max_takeovers)])
            return claim
        fail_job(session, claim, _ends_its_workers(claim, str(row.progress.get("note", ""))))
    return None


def _is_held(held: JobClaim | None) -> ColumnElement[bool]:
    return false() if held is None else and_(SearchRow.id == held.search_id, SearchRow.epoch == held.epoch)


def _is_lost(worker: str, stale_s: float, take_over_own: bool) -> ColumnElement[bool]:
    silent = SearchRow.heartbeat_at < now_s() - stale_s
    return or_(silent, SearchRow.worker == worker) if take_over_own else silent


def _take_oldest(session: Session, worker: str, is_lost: ColumnElement[bool], held: JobClaim | None) -> Row[Any] | None:
    is_held = _is_held(held)
    order = () if held is None else (case((is_held, 0), else_=1),)
    picked = (
        select(SearchRow.id)
        .where(
            or_(
                and_(SearchRow.state == JobState.PENDING, SearchRow.not_before <= now_s()),
                and_(SearchRow.state == JobState.RUNNING, is_lost),
            )
        )
        .order_by(*order, SearchRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .cte("picked")
    )
    is_taken_over = and_(SearchRow.state == JobState.RUNNING, ~is_held)
    return session.execute(
        update(SearchRow)
        .where(SearchRow.id.in_(select(picked.c.id)))
        .values(
            state=JobState.RUNNING,
            epoch=SearchRow.epoch + 1,
            takeovers=SearchRow.takeovers + case((is_taken_over, 1), else_=0),
            worker=worker,
            heartbeat_at=now_s(),
            started_at=func.coalesce(SearchRow.started_at, now_s()),
        )
        .returning(
            SearchRow.id,
            SearchRow.epoch,
            SearchRow.takeovers,
            SearchRow.device_id,
            SearchRow.stage,
            SearchRow.progress,
            SearchRow.config,
        )
        .execution_options(synchronize_session=False)
    ).one_or_none()


def _lost_again(takeovers: int, max_takeovers: int) -> SearchEvent:
    end = f"; after {max_takeovers} the search fails" if max_takeovers else ""
    text = f"{takeovers} workers in a row ended without a word while they had this search, none got further{end}"
    return SearchEvent(kind="message", data={"text": text})


def _ends_its_workers(claim: JobClaim, note: str) -> str:
    where = f"{claim.stage.value} ({note})" if note else claim.stage.value
    return (
        f"{claim.takeovers} workers in a row ended without a word while they had this search in stage {where}, and "
        "none got further than the one before: mostly they lack memory. See what ended them (their log, `dmesg`), make "
        "images, network or batches (training.batch_size) smaller or give the worker more memory, and submit the "
        "search again; what was measured is used again. KERF_MAX_TAKEOVERS sets how many workers a search may end"
    )


def device_names(session: Session, device_ids: Sequence[str]) -> dict[str, str]:
    """The names of devices by their ids, in the order of `device_ids`."""
    query = select(DeviceRow.id, DeviceRow.name).where(DeviceRow.id.in_(device_ids))
    names = {row.id: row.name for row in session.execute(query)}
    return {device_id: names[device_id] for device_id in device_ids}


def heartbeat(session: Session, claim: JobClaim) -> JobSignal:
    """Say that the worker is alive, and learn what the user wants. Raises `ClaimLost`."""
    state = fence(session, claim)
    return {JobState.PAUSING: JobSignal.PAUSE, JobState.CANCELLING: JobSignal.CANCEL}.get(state, JobSignal.CONTINUE)


def set_stage(session: Session, claim: JobClaim, stage: JobStage, progress: Mapping[str, Any] | None = None) -> None:
    """Enter a stage; tells watchers with a "stage" event."""
    fence(session, claim, stage=stage, progress=encode(progress or {}))
    add_events(session, claim, [SearchEvent(kind="stage", data={"stage": stage.value})])


def set_progress(session: Session, claim: JobClaim, progress: Mapping[str, Any]) -> None:
    """Replace the figures that a progress display shows, such as {"done": 12, "total": 40}."""
    fence(session, claim, progress=encode(progress))


def got_further(session: Session, claim: JobClaim) -> None:
    """Something is finished that no later worker has to do again: the workers that the job lost before do not count."""
    fence(session, claim, takeovers=0)


def save_checkpoint(session: Session, claim: JobClaim, *, stage: JobStage, step: int, data: str) -> None:
    """Store the state after `step`; saving a step again replaces it. Old steps of the stage are removed."""
    got_further(session, claim)
    key = {"search_id": claim.search_id, "stage": stage, "step": step}
    upsert(session, CheckpointRow, [{**key, "data": data}], key=tuple(key))
    session.execute(
        delete(CheckpointRow).where(
            CheckpointRow.search_id == claim.search_id,
            CheckpointRow.stage == stage,
            CheckpointRow.step <= step - KEPT_CHECKPOINTS,
        )
    )


def load_checkpoint(session: Session, search_id: str, stage: JobStage) -> Checkpoint | None:
    """The latest checkpoint of a stage."""
    row = session.scalars(
        select(CheckpointRow)
        .where(CheckpointRow.search_id == search_id, CheckpointRow.stage == stage)
        .order_by(CheckpointRow.step.desc())
        .limit(1)
    ).one_or_none()
    return None if row is None else Checkpoint(stage=row.stage, step=row.step, data=row.data)


def save_part(session: Session, claim: JobClaim, *, stage: JobStage, part: int, data: str) -> None:
    """Store a part that the checkpoints of a stage from now on share; those behind it are removed."""
    fence(session, claim)
    key = {"search_id": claim.search_id, "stage": stage, "part": part}
    upsert(session, CheckpointPartRow, [{**key, "data": data}], key=tuple(key))
    session.execute(
        delete(CheckpointPartRow).where(
            CheckpointPartRow.search_id == claim.search_id,
            CheckpointPartRow.stage == stage,
            CheckpointPartRow.part > part,
        )
    )


def load_parts(session: Session, search_id: str, stage: JobStage, count: int) -> Sequence[str]:
    """The first `count` parts in their order, or as many as there are."""
    return session.scalars(
        select(CheckpointPartRow.data)
        .where(
            CheckpointPartRow.search_id == search_id,
            CheckpointPartRow.stage == stage,
            CheckpointPartRow.part < count,
        )
        .order_by(CheckpointPartRow.part)
    ).all()


def add_events(session: Session, claim: JobClaim, events: Sequence[SearchEvent]) -> int:
    """Append events and return the number of the last one."""
    fence(session, claim)
    return append_events(session, claim.search_id, events)


def last_message(session: Session, search_id: str) -> str | None:
    """The latest line for the user."""
    query = (
        select(EventRow.data)
        .where(EventRow.search_id == search_id, EventRow.kind == "message")
        .order_by(EventRow.seq.desc())
        .limit(1)
    )
    data = session.scalar(query)
    return None if data is None else str(data["text"])


def append_events(session: Session, search_id: str, events: Sequence[SearchEvent]) -> int:
    """Append events without a claim: for what users do to a job."""
    last = session.execute(
        update(SearchRow)
        .where(SearchRow.id == search_id)
        .values(last_event_seq=SearchRow.last_event_seq + len(events))
        .returning(SearchRow.last_event_seq)
        .execution_options(synchronize_session=False)
    ).scalar_one()
    rows = [
        {"search_id": search_id, "seq": last - len(events) + i, "kind": e.kind, "data": encode(e.data)}
        for i, e in enumerate(events, start=1)
    ]
    if rows:
        session.execute(insert(EventRow), rows)
    return int(last)


def save_candidates(session: Session, claim: JobClaim, records: Sequence[CandidateRecord]) -> None:
    """Insert candidates. One that is stored gets the new metrics and generation, and what its evaluation told; it keeps
    its marks and what later stages found.
    """
    got_further(session, claim)
    later = _results_of_later_stages(session, claim, [r.candidate_id for r in records])
    rows = [
        {
            "search_id": claim.search_id,
            "candidate_id": r.candidate_id,
            "genome": list(r.genome),
            "metrics": encode(r.metrics),
            "violation": r.violation,
            "generation": r.generation,
            "on_front": r.on_front,
            "selected": r.selected,
            "results": {**later.get(r.candidate_id, {}), **encode(r.results)},
        }
        for r in records
    ]
    replaced = ("metrics", "violation", "generation", "results")
    upsert(session, CandidateRow, rows, key=("search_id", "candidate_id"), replace=replaced)


def _results_of_later_stages(
    session: Session, claim: JobClaim, candidate_ids: Sequence[str]
) -> dict[str, dict[str, Any]]:
    query = select(CandidateRow.candidate_id, CandidateRow.results).where(
        CandidateRow.search_id == claim.search_id, CandidateRow.candidate_id.in_(candidate_ids)
    )
    return {
        candidate_id: {stage: found for stage, found in results.items() if stage != JobStage.SEARCHING.value}
        for candidate_id, results in session.execute(query)
    }


def mark_front(session: Session, claim: JobClaim, candidate_ids: Sequence[str]) -> None:
    """Make exactly these candidates the front."""
    fence(session, claim)
    _mark(session, claim, "on_front", candidate_ids)


def mark_selected(session: Session, claim: JobClaim, candidate_ids: Sequence[str]) -> None:
    """Make exactly these candidates the ones that go through training, export and verification."""
    fence(session, claim)
    _mark(session, claim, "selected", candidate_ids)


def set_candidate_result(
    session: Session, claim: JobClaim, candidate_id: str, stage: str, result: Mapping[str, Any]
) -> None:
    """Store what a stage found out about a candidate; doing so again replaces it."""
    got_further(session, claim)
    where = (CandidateRow.search_id == claim.search_id, CandidateRow.candidate_id == candidate_id)
    results = session.execute(select(CandidateRow.results).where(*where)).scalar_one()
    session.execute(
        update(CandidateRow)
        .where(*where)
        .values(results={**results, stage: encode(result)})
        .execution_options(synchronize_session=False)
    )


def load_candidates(
    session: Session, search_id: str, *, on_front: bool | None = None, selected: bool | None = None
) -> list[CandidateRecord]:
    """Candidates of a search in the order of generation and identity."""
    query = select(CandidateRow).where(CandidateRow.search_id == search_id)
    if on_front is not None:
        query = query.where(CandidateRow.on_front == on_front)
    if selected is not None:
        query = query.where(CandidateRow.selected == selected)
    rows = session.scalars(query.order_by(CandidateRow.generation, CandidateRow.candidate_id))
    return [candidate_record(row) for row in rows]


def count_candidates(session: Session, search_id: str) -> int:
    """How many designs a search has evaluated."""
    query = select(func.count()).select_from(CandidateRow).where(CandidateRow.search_id == search_id)
    return int(session.execute(query).scalar_one())


def candidate_record(row: CandidateRow) -> CandidateRecord:
    return CandidateRecord(
        candidate_id=row.candidate_id,
        genome=tuple(row.genome),
        metrics=row.metrics,
        generation=row.generation,
        violation=row.violation,
        on_front=row.on_front,
        selected=row.selected,
        results=row.results,
    )


def put_document(session: Session, claim: JobClaim, name: str, text: str) -> None:
    """Keep a text with the search, byte for byte: RESOLVED_CONFIG, LATENCY_TABLE, RESULT or any other name."""
    fence(session, claim)
    digest = hashlib.sha256(text.encode()).hexdigest()
    row = {"search_id": claim.search_id, "name": name, "sha256": digest, "text": text}
    upsert(session, DocumentRow, [row], key=("search_id", "name"))


def get_document(session: Session, search_id: str, name: str) -> str | None:
    return session.execute(
        select(DocumentRow.text).where(DocumentRow.search_id == search_id, DocumentRow.name == name)
    ).scalar_one_or_none()


def stage_seconds(session: Session, search_id: str) -> dict[str, float]:
    """Seconds between entering each stage and the next, up to now for the last; a stage entered again adds up."""
    query = (
        select(EventRow.data, EventRow.created_at)
        .where(EventRow.search_id == search_id, EventRow.kind == "stage")
        .order_by(EventRow.seq)
    )
    entered = [(str(data["stage"]), at) for data, at in session.execute(query)]
    ends = [at for _, at in entered[1:]] + [database_time_s(session)]
    seconds: dict[str, float] = {}
    for (stage, at), end in zip(entered, ends, strict=True):
        seconds[stage] = seconds.get(stage, 0.0) + max(0.0, end - at)
    return seconds


def complete_job(session: Session, claim: JobClaim) -> None:
    """The job is done. A pause or cancellation that came too late is moot."""
    _finish(session, claim, JobState.COMPLETED, stage=JobStage.DONE)


def fail_job(session: Session, claim: JobClaim, error: str) -> None:
    """The job cannot be done; `error` tells the user why and what to do. A cancellation under way is completed."""
    _finish(session, claim, JobState.FAILED, error=error)


def release_job(session: Session, claim: JobClaim, *, delay_s: float = 0.0) -> None:
    """Put the job back, to be claimed again after `delay_s`: while it waits for measurements, or when the worker stops.

    A pause or cancellation under way is completed instead.
    """
    state = fence(session, claim)
    if state is not JobState.RUNNING:
        settle_job(session, claim)
        return
    _move(session, claim, JobState.PENDING, not_before=now_s() + delay_s, worker=None)


def settle_job(session: Session, claim: JobClaim) -> JobState:
    """Answer a PAUSE or CANCEL signal: the job becomes PAUSED or CANCELLED, and the claim ends."""
    state = fence(session, claim)
    if state is JobState.PAUSING:
        _move(session, claim, JobState.PAUSED, worker=None)
        return JobState.PAUSED
    if state is JobState.CANCELLING:
        _finish(session, claim, JobState.CANCELLED)
        return JobState.CANCELLED
    return state


def fence(session: Session, claim: JobClaim, **values: Any) -> JobState:
    """Write under the claim's epoch, lock the row, and return the job's state. Raises `ClaimLost`."""
    state = session.execute(
        update(SearchRow)
        .where(
            SearchRow.id == claim.search_id,
            SearchRow.epoch == claim.epoch,
            SearchRow.state.in_([s for s in JobState if s.has_worker]),
        )
        .values(heartbeat_at=now_s(), **values)
        .returning(SearchRow.state)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if state is None:
        raise ClaimLost(f"search {claim.search_id} is no longer run under epoch {claim.epoch}")
    return state


def _move(session: Session, claim: JobClaim, target: JobState, **values: Any) -> None:
    moved = session.execute(
        update(SearchRow)
        .where(
            SearchRow.id == claim.search_id,
            SearchRow.epoch == claim.epoch,
            SearchRow.state.in_(sources(JOB_TRANSITIONS, target)),
        )
        .values(state=target, **values)
        .returning(SearchRow.id)
        .execution_options(synchronize_session=False)
    ).scalar_one_or_none()
    if moved is None:
        raise ClaimLost(f"search {claim.search_id} cannot become {target} under epoch {claim.epoch}")
    append_events(session, claim.search_id, [SearchEvent(kind="state", data={"state": target.value})])


def _finish(session: Session, claim: JobClaim, target: JobState, **values: Any) -> None:
    state = fence(session, claim)
    if state is JobState.CANCELLING:
        target, values = JobState.CANCELLED, {}
    _move(session, claim, target, finished_at=now_s(), worker=None, **values)
    cancel_unwanted_tasks(session, claim.search_id)


def _settle_abandoned(session: Session, is_lost: ColumnElement[bool]) -> None:
    """Complete pauses and cancellations whose worker is gone."""
    abandoned = session.execute(
        select(SearchRow.id, SearchRow.epoch, SearchRow.state)
        .where(
            SearchRow.state.in_((JobState.PAUSING, JobState.CANCELLING)),
            is_lost,
        )
        .with_for_update(skip_locked=True)
    ).all()
    for row in abandoned:
        target = JobState.PAUSED if row.state is JobState.PAUSING else JobState.CANCELLED
        values: dict[str, Any] = {"finished_at": now_s()} if target.is_terminal else {}
        session.execute(
            update(SearchRow)
            .where(SearchRow.id == row.id)
            .values(state=target, worker=None, epoch=SearchRow.epoch + 1, **values)
            .execution_options(synchronize_session=False)
        )
        append_events(session, row.id, [SearchEvent(kind="state", data={"state": target.value})])
        if target.is_terminal:
            cancel_unwanted_tasks(session, row.id)


def _mark(session: Session, claim: JobClaim, column: str, candidate_ids: Sequence[str]) -> None:
    mine = CandidateRow.search_id == claim.search_id
    is_marked = getattr(CandidateRow, column)
    session.execute(
        update(CandidateRow)
        .where(mine, is_marked, CandidateRow.candidate_id.not_in(candidate_ids))
        .values({column: False})
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(CandidateRow)
        .where(mine, CandidateRow.candidate_id.in_(candidate_ids))
        .values({column: True})
        .execution_options(synchronize_session=False)
    )
