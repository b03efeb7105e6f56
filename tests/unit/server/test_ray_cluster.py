"""Searches on a real Ray cluster of two nodes: fronts as on one process, though actors, nodes and workers die."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from device_agent.contracts import ContractError
from search.accuracy.crewed import estimate_key
from search.parallel.crew import CrewUnavailable, Lost
from search.parallel.ray_cluster import Member, RayCrew
from server.worker.estimates import store_estimate
from tests.unit.search.parallel.arithmetic import Squares, Unlucky
from tests.unit.search.parallel.test_crews import results_of
from tests.unit.search.training.stopping import Stopped
from tests.unit.server.server_lab import ServerLab
from tests.unit.server.test_parallel_search import num_estimates, several
from tests.unit.server.worker_lab import Kill, WorkerLab

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

#: One actor fits on each node.
NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray", reason="needs ray: pip install '.[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    found.add_node(**NODE)
    yield found
    ray.shutdown()
    found.shutdown()


class TestCrew:
    def test_pieces_of_both_nodes_through_deaths(self, cluster: Any, tmp_path: Path) -> None:
        with RayCrew(Squares(tmp_path, deadly=(2,)), 0, address=cluster.address) as crew:
            assert crew.size == 2
            found = results_of(crew, [*range(6), "pid", "pid"])
            assert found[:6] == [n * n for n in range(6)]
            assert os.getpid() not in found[6:]
            assert len(list(tmp_path.glob("died-2-*"))) == 1
            # Once in each process, not for each piece.
            assert 2 <= len(list(tmp_path.glob("prepared-*"))) <= 3
            with pytest.raises(Unlucky, match="no square of 'raise'"):
                results_of(crew, ["raise"])

    def test_a_deadly_piece_is_given_up(self, cluster: Any, tmp_path: Path) -> None:
        with RayCrew(Squares(tmp_path, deadly=(2,), lives=9), 1, address=cluster.address) as crew:
            lost, nine = results_of(crew, [2, 3], max_deaths=2)
            assert isinstance(lost, Lost)
            assert nine == 9

    def test_a_node_that_goes_and_one_that_comes(self, cluster: Any, tmp_path: Path) -> None:
        node = cluster.add_node(**NODE)
        with RayCrew(Squares(tmp_path), 3, address=cluster.address) as crew:
            assert results_of(crew, range(9)) == [n * n for n in range(9)]
            cluster.remove_node(node)
            # Its actor had nothing to do: nobody notices but by its silence.
            assert results_of(crew, range(9)) == [n * n for n in range(9)]
            node = cluster.add_node(**NODE)
            assert results_of(crew, range(9)) == [n * n for n in range(9)]
        cluster.remove_node(node)

    def test_a_cluster_without_room(self, cluster: Any, tmp_path: Path) -> None:
        with (
            RayCrew(Squares(tmp_path), 0, address=cluster.address, cpus=8) as crew,
            pytest.raises(CrewUnavailable, match="no room for"),
        ):
            results_of(crew, [1])
        with (
            RayCrew(Squares(tmp_path), 1, address=cluster.address, cpus=8, start_timeout_s=1.0) as crew,
            pytest.raises(CrewUnavailable, match="gave no process"),
        ):
            results_of(crew, [1])

    def test_gpus_are_set_aside_and_shared(self, cluster: Any, tmp_path: Path) -> None:
        with (
            RayCrew(Squares(tmp_path), 0, address=cluster.address, gpus=1.0) as crew,
            pytest.raises(CrewUnavailable, match="no room for 1 CPUs and 1 GPUs"),
        ):
            results_of(crew, [1])
        # Ray believes what a host says it has.
        node = cluster.add_node(num_cpus=4, num_gpus=1, object_store_memory=100 << 20)
        try:
            with RayCrew(Squares(tmp_path), 0, address=cluster.address, gpus=0.5) as crew:
                assert crew.size == 2
                assert results_of(crew, ["gpus", 3, "gpus", 4]) == ["0", 9, "0", 16]
        finally:
            cluster.remove_node(node)

    def test_another_release_on_a_host(self, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("search.parallel.ray_cluster._release", lambda: "9.9")
        with (
            RayCrew(Squares(tmp_path), 1, address=cluster.address) as crew,
            pytest.raises(CrewUnavailable, match=r"this one 9\.9"),
        ):
            results_of(crew, [1])

    def test_sigterm_stays_ours(self, cluster: Any, tmp_path: Path) -> None:
        earlier = signal.getsignal(signal.SIGTERM)
        with RayCrew(Squares(tmp_path), 1, address=cluster.address) as crew:
            assert results_of(crew, [3]) == [9]
            assert signal.getsignal(signal.SIGTERM) is earlier


def test_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("search.parallel.ray_cluster.find_spec", lambda name: None)
    with pytest.raises(ContractError, match=r"pip install 'kerf\[ray\]'"):
        RayCrew(Squares(tmp_path), 1, address="auto")


def set_evaluators(lab: ServerLab, address: str) -> None:
    lab.settings = dataclasses.replace(lab.settings, evaluators=2, evaluator_threads=1, ray_address=address)


def test_the_same_front_and_weights_as_on_one_process_through_every_death(
    cluster: Any,
    sqlite_lab: ServerLab,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sqlite_lab.settings = dataclasses.replace(sqlite_lab.settings, evaluators=1, evaluator_threads=1)
    worker = WorkerLab(sqlite_lab)
    whole = worker.outcome(worker.done(several("ray")))

    set_evaluators(sqlite_lab, cluster.address)
    answered = RayCrew._answered
    deaths: list[str] = []

    def deadly(crew: RayCrew, hand: Any) -> Any:
        """The process of an actor is killed once among estimates, and once among trainings."""
        import ray

        busy = [other for other in crew._hands if other is not hand and other.ticket is not None]
        stage = type(crew._prepare).__name__
        if busy and stage not in deaths:
            deaths.append(stage)
            ray.kill(busy[0].actor)
        return answered(crew, hand)

    monkeypatch.setattr(RayCrew, "_answered", deadly)
    search_id = worker.submit(several("ray"))
    with monkeypatch.context() as dying:
        finished: set[str] = set()

        def store(session: Any, claim: Any, key: str, estimate: Any) -> None:
            if len(finished) == 3:
                raise Stopped
            store_estimate(session, claim, key, estimate)
            finished.add(key)

        # The worker dies within the first generation, and its actors with it.
        dying.setattr("server.worker.evaluating.store_estimate", store)
        worker.run(search_id, Kill(steps=1_000_000))
    assert num_estimates(sqlite_lab, search_id) == 3

    asked: set[str] = set()
    submit = RayCrew.submit

    def remember(crew: RayCrew, ticket: int, piece: Any) -> None:
        if isinstance(piece, tuple):
            asked.add(estimate_key(*piece))
        submit(crew, ticket, piece)

    monkeypatch.setattr(RayCrew, "submit", remember)
    worker.run(search_id)
    assert worker.outcome(search_id) == whole
    assert deaths == ["OneShotWork", "TrainingWork"]
    assert asked
    assert not finished & asked


def test_a_cluster_that_is_away_is_waited_for(sqlite_lab: ServerLab, tmp_path: Path) -> None:
    import ray

    ray.shutdown()
    with (
        RayCrew(Squares(tmp_path), 1, address="127.0.0.1:9") as crew,
        pytest.raises(CrewUnavailable, match="Ray cluster"),
    ):
        results_of(crew, [1])


def test_what_an_actor_does(tmp_path: Path) -> None:
    import pickle

    member = Member(pickle.dumps(Squares(tmp_path)))
    assert pickle.loads(member.do(pickle.dumps(5))) == 25
