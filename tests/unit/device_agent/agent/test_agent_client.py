from __future__ import annotations

import json
import socket
import threading

import pytest

from device_agent import client as client_module
from device_agent.client import ServerClient
from device_agent.contracts import LeaseRequest, ReportBatch, ReportStatus, encode
from device_agent.errors import CredentialsRefused, LeaseLost, RequestRefused, TryAgainLater
from tests.unit.device_agent.agent.agent_samples import kernel_task, report
from tests.unit.device_agent.agent.fake_kerf_server import FakeServer


def test_lease_renew_report_and_release(server: FakeServer, client: ServerClient) -> None:
    server.add_task(kernel_task(0))
    server.add_task(kernel_task(1))
    first, second = client.lease(LeaseRequest(max_leases=2)).leases
    assert first.task == kernel_task(0)
    assert client.renew(first.lease_id, first.attempt).duration_s == 120.0
    client.release(second.lease_id, second.attempt)
    batch = ReportBatch(reports=(report("r1", lease_id=first.lease_id, attempt=1),))
    assert client.report(batch).receipts[0].status is ReportStatus.ACCEPTED
    assert client.report(batch).receipts[0].status is ReportStatus.DUPLICATE


def test_asking_again_returns_what_is_held(server: FakeServer, client: ServerClient) -> None:
    server.add_task(kernel_task())
    assert client.lease(LeaseRequest()) == client.lease(LeaseRequest())


def test_an_older_attempt_has_lost_its_lease(server: FakeServer, client: ServerClient) -> None:
    server.add_task(kernel_task())
    (lease,) = client.lease(LeaseRequest()).leases
    with pytest.raises(LeaseLost):
        client.renew(lease.lease_id, lease.attempt - 1)
    with pytest.raises(LeaseLost):
        client.release("unknown", 1)


def test_no_content_is_an_empty_answer(server: FakeServer, client: ServerClient) -> None:
    server.fault("/v1/leases", status=204, body=b"")
    assert client.lease(LeaseRequest()).leases == ()


def test_a_wrong_token_is_refused_and_never_shown(server: FakeServer) -> None:
    with ServerClient(server.url, "kerf_a_wrong") as client, pytest.raises(CredentialsRefused) as caught:
        client.lease(LeaseRequest())
    assert "kerf_a_wrong" not in str(caught.value)


def answered(server: FakeServer, path: str, answer: object) -> None:
    server.fault(path, status=200, body=json.dumps(answer).encode(), content_type="application/json")


def test_what_a_newer_server_adds_to_its_answers_is_passed_over(server: FakeServer, client: ServerClient) -> None:
    """Servers are upgraded first: an agent that stopped at each new field would have to be upgraded with them."""
    answered(server, "/v1/leases", {"leases": [], "more": 1})
    assert client.lease(LeaseRequest()).leases == ()
    answered(server, ":renew", {"duration_s": 7.0, "more": {"a": []}})
    assert client.renew("lease", 1).duration_s == 7.0
    receipt = {"result_key": "r1", "status": "accepted", "more": None}
    answered(server, "/v1/reports", {"receipts": [receipt], "more": 1})
    (taken,) = client.report(ReportBatch(reports=(report("r1", lease_id="lease", attempt=1),))).receipts
    assert (taken.result_key, taken.status) == ("r1", ReportStatus.ACCEPTED)


def test_a_task_is_never_half_understood(server: FakeServer, client: ServerClient) -> None:
    server.add_task(kernel_task())
    (lease,) = client.lease(LeaseRequest()).leases
    told = encode(lease)
    told["task"]["kernel"]["sparsity"] = "new"
    answered(server, "/v1/leases", {"leases": [told]})
    received = client.lease(LeaseRequest())
    assert received.leases == ()
    assert "unknown field 'sparsity'" in received.unreadable[0].problem


def test_an_answer_without_what_belongs_to_it_is_none_of_ours(server: FakeServer, client: ServerClient) -> None:
    answered(server, ":renew", {"more": 1})
    with pytest.raises(TryAgainLater, match="'duration_s' is missing"):
        client.renew("lease", 1)


def test_a_server_that_is_not_there_is_tried_again() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
    with ServerClient(url) as client, pytest.raises(TryAgainLater, match="cannot be reached"):
        client.lease(LeaseRequest())


def test_a_server_that_accepts_and_says_nothing_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "LONG_POLL_GRACE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with ServerClient(url) as client, pytest.raises(TryAgainLater, match="Timeout"):
            client.lease(LeaseRequest(wait_s=0.0))


def test_loopback_ignores_a_proxy(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://192.0.2.1:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with ServerClient(server.url, server.token) as client:
        assert client.lease(LeaseRequest()).leases == ()


def test_one_client_serves_two_threads(server: FakeServer, client: ServerClient) -> None:
    """A heartbeat must go through while the lease loop waits in its long poll."""
    poll = threading.Thread(target=client.lease, args=(LeaseRequest(wait_s=60.0),))
    poll.start()
    server.wait_until(lambda: "/v1/leases" in server.requests)
    with pytest.raises(LeaseLost):
        client.renew("l1", 1)
    assert poll.is_alive()
    server.add_task(kernel_task())
    poll.join()


def test_artifacts_come_whole_or_from_an_offset(server: FakeServer, client: ServerClient) -> None:
    digest = server.add_artifact(b"0123456789")
    with client.artifact(digest) as (first, chunks):
        assert (first, b"".join(chunks)) == (0, b"0123456789")
    with client.artifact(digest, 4) as (first, chunks):
        assert (first, b"".join(chunks)) == (4, b"456789")


def test_an_unknown_artifact_is_refused(server: FakeServer, client: ServerClient) -> None:
    with pytest.raises(RequestRefused), client.artifact("0" * 64):
        pass


def test_an_artifact_that_breaks_off_is_tried_again(server: FakeServer, client: ServerClient) -> None:
    digest = server.add_artifact(b"0123456789" * 1000)
    server.fault(digest, drop="half")
    with pytest.raises(TryAgainLater), client.artifact(digest) as (_, chunks):
        list(chunks)
