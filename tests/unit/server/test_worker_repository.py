"""What a worker does to a job: claims, fencing, checkpoints, the end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.orm import Session

from device_agent.contracts import ContractError
from search.evaluation import AccuracyEstimate
from server.models import CheckpointRow, EventRow, SearchRow
from server.searches import repository
from server.searches.queries import CANCEL, PAUSE, RESUME, steer
from server.searches.repository import CandidateRecord, ClaimLost, JobClaim, JobSignal, SearchEvent
from server.states import JobStage, JobState, TaskState
from server.worker.estimates import store_estimate
from tests.unit.server.server_lab import ServerLab, kernel_task

CANDIDATE: dict[str, Any] = {"candidate_id": "c_0", "genome": (0, 1), "metrics": {"error": 0.5}, "generation": 1}


def claim(lab: ServerLab, worker: str = "w1", **kwargs: Any) -> JobClaim | None:
    with lab.database.write() as session:
        return repository.claim_runnable_job(session, worker=worker, stale_s=60.0, **kwargs)


def claimed(lab: ServerLab) -> JobClaim:
    lab.search(lab.agent().device_id)
    got = claim(lab)
    assert got is not None
    return got


def silence(lab: ServerLab) -> None:
    """Let the worker's last heartbeat be long ago by the database's clock."""
    with lab.database.write() as session:
        session.execute(update(SearchRow).values(heartbeat_at=1.0))


def state(lab: ServerLab, search_id: str) -> JobState:
    with lab.database.read() as session:
        return session.execute(select(SearchRow.state).where(SearchRow.id == search_id)).scalar_one()


def user(lab: ServerLab, search_id: str, what: str) -> None:
    targets = {"pause": PAUSE, "resume": RESUME, "cancel": CANCEL}[what]
    with lab.database.write() as session:
        steer(session, search_id, targets, what)


class TestClaim:
    def test_the_oldest_first_each_once(self, lab: ServerLab) -> None:
        agent = lab.agent()
        ids = [lab.search(agent.device_id) for _ in range(3)]
        got = [claim(lab) for _ in range(4)]
        assert [c.search_id if c else None for c in got] == [*ids, None]
        first = got[0]
        assert first is not None
        assert (first.epoch, first.stage, first.config.name) == (1, JobStage.PREPARING, "digits")

    def test_workers_at_once(self, postgres_lab: ServerLab) -> None:
        lab = postgres_lab
        agent = lab.agent()
        ids = [lab.search(agent.device_id) for _ in range(12)]
        start = threading.Barrier(6)

        def work(number: int) -> list[str]:
            start.wait()
            return [c.search_id for c in iter(lambda: claim(lab, f"w{number}"), None)]

        with ThreadPoolExecutor(6) as pool:
            got = [search_id for part in pool.map(work, range(6)) for search_id in part]
        assert sorted(got) == sorted(ids)

    def test_a_silent_workers_job_is_taken_over_and_the_old_one_is_fenced_off(self, lab: ServerLab) -> None:
        old = claimed(lab)
        assert claim(lab, "w2") is None
        silence(lab)
        new = claim(lab, "w2")
        assert new is not None
        assert (new.search_id, new.epoch) == (old.search_id, 2)
        for write in (
            lambda s: repository.heartbeat(s, old),
            lambda s: repository.save_checkpoint(s, old, stage=JobStage.SEARCHING, step=1, data="{}"),
            lambda s: repository.add_events(s, old, [SearchEvent(kind="x")]),
            lambda s: repository.put_document(s, old, repository.RESULT, "{}"),
            lambda s: repository.save_candidates(s, old, []),
            lambda s: repository.complete_job(s, old),
            lambda s: repository.fail_job(s, old, "why"),
            lambda s: repository.release_job(s, old),
        ):
            with pytest.raises(ClaimLost), lab.database.write() as session:
                write(session)
        assert state(lab, old.search_id) is JobState.RUNNING

    def test_a_restarted_worker_takes_its_own_jobs_at_once(self, lab: ServerLab) -> None:
        old = claimed(lab)
        assert claim(lab, "w2", take_over_own=True) is None
        again = claim(lab, "w1", take_over_own=True)
        assert again is not None
        assert again.epoch == old.epoch + 1

    def test_a_released_job_waits_for_its_delay(self, lab: ServerLab) -> None:
        got = claimed(lab)
        with lab.database.write() as session:
            repository.set_stage(session, got, JobStage.PROFILING)
            repository.release_job(session, got, delay_s=3600.0)
        assert claim(lab) is None
        with lab.database.write() as session:
            session.execute(update(SearchRow).values(not_before=0.0))
        again = claim(lab)
        assert again is not None
        assert again.stage is JobStage.PROFILING


LIMIT = 3


class TestSearchesThatEndTheirWorkers:
    """A search whose worker dies each time is not claimed without end."""

    @staticmethod
    def lost(lab: ServerLab) -> JobClaim | None:
        """What the next worker gets after one that died."""
        silence(lab)
        return claim(lab, max_takeovers=LIMIT)

    def test_it_fails_with_the_reason_and_the_next_one_is_served(self, lab: ServerLab) -> None:
        first = claimed(lab)
        next_id = lab.search(first.device_id)
        with lab.database.write() as session:
            repository.set_stage(session, first, JobStage.SEARCHING)
            repository.set_progress(
                session, first, {"stage": "searching", "done": 1, "total": 9, "note": "7 candidates"}
            )
        for takeovers in range(1, LIMIT):
            again = self.lost(lab)
            assert again is not None
            assert (again.search_id, again.takeovers) == (first.search_id, takeovers)
            with lab.database.write() as session:
                # Entering a stage once more is no progress.
                repository.set_stage(session, again, JobStage.SEARCHING, {"note": "7 candidates"})
        got = self.lost(lab)
        assert got is not None
        assert (got.search_id, got.takeovers) == (next_id, 0)
        shown = lab.get(f"/v1/searches/{first.search_id}").json()
        assert shown["state"] == "failed"
        assert shown["error"].startswith("3 workers in a row ended without a word while they had this search in stage")
        assert "searching (7 candidates)" in shown["error"]
        assert "KERF_MAX_TAKEOVERS" in shown["error"]
        with lab.database.read() as session:
            texts = session.scalars(select(EventRow.data).where(EventRow.kind == "message")).all()
        assert [data["text"] for data in texts] == [
            "2 workers in a row ended without a word while they had this search, none got further; "
            "after 3 the search fails"
        ]
        with pytest.raises(ClaimLost), lab.database.write() as session:
            repository.heartbeat(session, first)

    @pytest.mark.parametrize(
        "store",
        [
            lambda s, c: repository.save_checkpoint(s, c, stage=JobStage.SEARCHING, step=1, data="{}"),
            lambda s, c: repository.save_candidates(s, c, [CandidateRecord(**CANDIDATE)]),
            lambda s, c: repository.set_candidate_result(s, c, "c_0", "training", {}),
            lambda s, c: store_estimate(s, c, "key", AccuracyEstimate(accuracy=0.5, loss=1.0)),
            repository.got_further,
        ],
        ids=["checkpoint", "candidates", "result", "estimate", "elsewhere"],
    )
    def test_one_that_gets_further_goes_on(self, lab: ServerLab, store: Callable[[Session, JobClaim], None]) -> None:
        got: JobClaim | None = claimed(lab)
        assert got is not None
        with lab.database.write() as session:
            repository.save_candidates(session, got, [CandidateRecord(**CANDIDATE)])
        for _ in range(LIMIT - 1):
            got = self.lost(lab)
        assert got is not None
        assert got.takeovers == LIMIT - 1
        with lab.database.write() as session:
            store(session, got)
        for takeovers in range(1, LIMIT):
            got = self.lost(lab)
            assert got is not None
            assert got.takeovers == takeovers

    def test_stops_and_what_is_away_do_not_count(self, lab: ServerLab) -> None:
        got: JobClaim | None = claimed(lab)
        for _ in range(2 * LIMIT):
            assert got is not None
            with lab.database.write() as session:
                repository.release_job(session, got)
            got = claim(lab, max_takeovers=LIMIT)
        other = lab.search(lab.agent(device_name="other").device_id)
        for _ in range(2 * LIMIT):
            held = got
            assert held is not None
            got = claim(lab, held=held, max_takeovers=LIMIT)
            assert got is not None
            # Its own before what else waits.
            assert (got.search_id, got.epoch, got.takeovers) == (held.search_id, held.epoch + 1, 0)
        # Another worker was faster: what was held is lost.
        silence(lab)
        assert claim(lab, "w2") is not None
        last = claim(lab, held=got)
        assert last is not None
        assert last.search_id == other

    def test_without_a_limit(self, lab: ServerLab) -> None:
        claimed(lab)
        for takeovers in range(1, 13):
            silence(lab)
            got = claim(lab)
            assert got is not None
            assert got.takeovers == takeovers


class TestSteering:
    def test_pause_and_resume(self, lab: ServerLab) -> None:
        got = claimed(lab)
        user(lab, got.search_id, "pause")
        with lab.database.write() as session:
            assert repository.heartbeat(session, got) is JobSignal.PAUSE
            assert repository.settle_job(session, got) is JobState.PAUSED
        assert claim(lab) is None
        user(lab, got.search_id, "resume")
        again = claim(lab)
        assert again is not None
        assert again.epoch == 2

    def test_cancel(self, lab: ServerLab) -> None:
        got = claimed(lab)
        (task_id,) = lab.source.request(got.device_id, [kernel_task()], got.search_id)
        user(lab, got.search_id, "cancel")
        with lab.database.write() as session:
            assert repository.heartbeat(session, got) is JobSignal.CANCEL
            repository.settle_job(session, got)
        assert state(lab, got.search_id) is JobState.CANCELLED
        assert lab.task(task_id).state is TaskState.CANCELLED

    def test_a_cancellation_wins_over_a_failure_and_a_release(self, lab: ServerLab) -> None:
        for end in (lambda s, c: repository.fail_job(s, c, "why"), repository.release_job):
            got = claimed(lab)
            user(lab, got.search_id, "cancel")
            with lab.database.write() as session:
                end(session, got)
            assert state(lab, got.search_id) is JobState.CANCELLED

    @pytest.mark.parametrize(("what", "target"), [("pause", JobState.PAUSED), ("cancel", JobState.CANCELLED)])
    def test_without_its_worker_the_job_is_settled_by_the_next_one(
        self, lab: ServerLab, what: str, target: JobState
    ) -> None:
        got = claimed(lab)
        user(lab, got.search_id, what)
        silence(lab)
        assert claim(lab, "w2") is None
        assert state(lab, got.search_id) is target
        with pytest.raises(ClaimLost), lab.database.write() as session:
            repository.heartbeat(session, got)

    @pytest.mark.parametrize(("what", "target"), [("pause", JobState.PAUSED), ("cancel", JobState.CANCELLED)])
    @pytest.mark.parametrize("is_restarted", [True, False])
    def test_a_worker_that_was_interrupted_settles_its_own_at_once(
        self, lab: ServerLab, what: str, target: JobState, is_restarted: bool
    ) -> None:
        got = claimed(lab)
        user(lab, got.search_id, what)
        # Another worker cannot know yet that nobody is at it.
        assert claim(lab, "w2", take_over_own=True) is None
        assert state(lab, got.search_id).has_worker
        assert (claim(lab, take_over_own=True) if is_restarted else claim(lab, held=got)) is None
        assert state(lab, got.search_id) is target
        with pytest.raises(ClaimLost), lab.database.write() as session:
            repository.heartbeat(session, got)


class TestEnd:
    def test_complete(self, lab: ServerLab) -> None:
        got = claimed(lab)
        with lab.database.write() as session:
            repository.complete_job(session, got)
        assert state(lab, got.search_id) is JobState.COMPLETED
        with lab.database.read() as session:
            events = [(e.seq, e.kind, e.data) for e in session.scalars(select(EventRow).order_by(EventRow.seq))]
        assert events == [(1, "state", {"state": "pending"}), (2, "state", {"state": "completed"})]

    def test_fail_cancels_what_nobody_else_wants(self, lab: ServerLab) -> None:
        got = claimed(lab)
        mine, shared = lab.source.request(got.device_id, [kernel_task(1), kernel_task(2)], got.search_id)
        lab.source.request(got.device_id, [kernel_task(2)], lab.search(got.device_id))
        with lab.database.write() as session:
            repository.fail_job(session, got, "the checkpoint does not fit")
        assert (lab.task(mine).state, lab.task(shared).state) == (TaskState.CANCELLED, TaskState.PENDING)


class TestData:
    def test_checkpoints(self, lab: ServerLab) -> None:
        got = claimed(lab)
        for step in range(5):
            with lab.database.write() as session:
                repository.save_checkpoint(session, got, stage=JobStage.SEARCHING, step=step, data=f"{step}")
                repository.save_checkpoint(session, got, stage=JobStage.SEARCHING, step=step, data=f"{step}!")
        with lab.database.read() as session:
            latest = repository.load_checkpoint(session, got.search_id, JobStage.SEARCHING)
            assert repository.load_checkpoint(session, got.search_id, JobStage.TRAINING) is None
            kept = session.scalars(select(CheckpointRow.step).order_by(CheckpointRow.step)).all()
        assert latest == repository.Checkpoint(stage=JobStage.SEARCHING, step=4, data="4!")
        assert list(kept) == [3, 4]

    def test_a_transaction_that_fails_stores_nothing(self, lab: ServerLab) -> None:
        got = claimed(lab)

        def die(session: Session) -> None:
            repository.save_checkpoint(session, got, stage=JobStage.SEARCHING, step=1, data="1")
            repository.save_candidates(session, got, [_candidate("c_1")])
            raise RuntimeError("killed")

        with pytest.raises(RuntimeError), lab.database.write() as session:
            die(session)
        with lab.database.read() as session:
            assert repository.load_checkpoint(session, got.search_id, JobStage.SEARCHING) is None
            assert repository.load_candidates(session, got.search_id) == []

    def test_candidates(self, lab: ServerLab) -> None:
        got = claimed(lab)
        records = [_candidate(f"c_{i}") for i in range(300)]
        with lab.database.write() as session:
            repository.save_candidates(session, got, records)
            repository.mark_front(session, got, ["c_1", "c_2"])
            repository.mark_front(session, got, ["c_2", "c_3"])
            repository.mark_selected(session, got, ["c_3"])
            repository.set_candidate_result(session, got, "c_3", "training", {"accuracy": 0.9})
            repository.set_candidate_result(session, got, "c_3", "verifying", {"ok": True})
            # A worker that was killed evaluates a generation again: marks and results stay.
            repository.save_candidates(session, got, records)
        with lab.database.read() as session:
            assert len(repository.load_candidates(session, got.search_id)) == 300
            front = repository.load_candidates(session, got.search_id, on_front=True)
            (chosen,) = repository.load_candidates(session, got.search_id, selected=True)
        assert [c.candidate_id for c in front] == ["c_2", "c_3"]
        assert chosen.results == {"training": {"accuracy": 0.9}, "verifying": {"ok": True}}

    def test_numbers_that_are_none_are_refused(self, lab: ServerLab) -> None:
        got = claimed(lab)
        record = CandidateRecord(candidate_id="c", genome=(0,), metrics={"loss": float("nan")}, generation=1)
        with pytest.raises(ContractError, match="JSON"), lab.database.write() as session:
            repository.save_candidates(session, got, [record])

    def test_documents_are_kept_byte_for_byte(self, lab: ServerLab) -> None:
        got = claimed(lab)
        text = '{"b": 1.10, "a": "ä"}\n'
        with lab.database.write() as session:
            repository.put_document(session, got, repository.LATENCY_TABLE, "old")
            repository.put_document(session, got, repository.LATENCY_TABLE, text)
        with lab.database.read() as session:
            assert repository.get_document(session, got.search_id, repository.LATENCY_TABLE) == text
            assert repository.get_document(session, got.search_id, repository.RESULT) is None
        response = lab.get(f"/v1/searches/{got.search_id}/latency-table")
        assert response.content == text.encode()
        etag = {"If-None-Match": response.headers["etag"]}
        assert lab.get(f"/v1/searches/{got.search_id}/latency-table", headers=etag).status_code == 304

    def test_events_are_numbered_without_gaps(self, lab: ServerLab) -> None:
        got = claimed(lab)
        with lab.database.write() as session:
            assert repository.add_events(session, got, []) == 1
            assert repository.add_events(session, got, [SearchEvent(kind="a"), SearchEvent(kind="b")]) == 3
            assert repository.add_events(session, got, [SearchEvent(kind="c", data={"x": 1})]) == 4


def _candidate(candidate_id: str) -> CandidateRecord:
    return CandidateRecord(candidate_id=candidate_id, genome=(0, 1), metrics={"loss": 0.5}, generation=1)
