"""Submitting and steering searches over HTTP. Whatever is wrong is named, with the remedy, and nothing is stored."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, select, update

from device_agent.contracts import RuntimeInfo
from server.accounts.service import Scope
from server.models import SearchRow
from server.searches import repository
from server.searches.repository import CandidateRecord
from server.states import JobState
from tests.unit.server.server_lab import PROFILE, ServerLab, search_config, statuses

DIGEST = "0" * 64


def submit(lab: ServerLab, config: object, **headers: str) -> Any:
    return lab.request("POST", "/v1/searches", json=config, headers=headers)


def num_searches(lab: ServerLab) -> int:
    with lab.database.read() as session:
        return int(session.scalar(select(func.count()).select_from(SearchRow)) or 0)


class TestSubmit:
    def test_stored_and_pending(self, lab: ServerLab) -> None:
        agent = lab.agent()
        response = submit(lab, search_config())
        assert response.status_code == 201
        search = response.json()
        assert (search["state"], search["stage"], search["device_id"]) == ("pending", "preparing", agent.device_id)
        # The stored config names the device, so that it cannot become another one when more are enrolled.
        assert search["config"]["device"] == agent.device_id
        assert lab.get(response.headers["location"]).json() == search
        assert [s["id"] for s in lab.get("/v1/searches").json()["items"]] == [search["id"]]

    @pytest.mark.parametrize(
        ("config", "field", "words"),
        [
            ([], "", "mapping"),
            ({"name": "x"}, "config", "'model' is missing"),
            (search_config(modle={}), "config", "did you mean 'model'"),
            (search_config(method={"populaton": 9}), "config.method", "did you mean 'population'"),
            (search_config(objectives=[{"metrc": "error"}]), "config.objectives[0]", "did you mean 'metric'"),
            (search_config(model={"architecture": "resnet21"}), "config.model", "did you mean 'resnet32'"),
            (search_config(method={"population": "many"}), "config.method.population", "expected int"),
            (search_config(method={"population": 1}), "config.method", "at least 4"),
            (search_config(constraints=[{"metric": "macs", "max": -1}]), "config.constraints[0]", "must be positive"),
            (search_config(constraints=[{"metric": "speed", "max": 1}]), "config.constraints[0].metric", "latency_ms"),
            (search_config(dataset={"name": "custom"}), "config.dataset", "needs 'train'"),
            (search_config(dataset={"name": "digts"}), "config.dataset.name", "no data set 'digts' was uploaded"),
            (search_config(dataset={"train": "worker:../x"}), "config.dataset", "without '..'"),
            (
                search_config(dataset={"train": DIGEST, "test": DIGEST, "test_fraction": 0.2}),
                "config.dataset",
                "beside",
            ),
            (search_config(dataset={"name": "digits", "train": DIGEST}), "config.dataset", "keep one of the two"),
            (search_config(dataset={"name": "digits", "mean": [0.1]}), "config.dataset", "belong together"),
            (
                search_config(dataset={"train": "a.zip", "test": DIGEST}),
                "config.dataset.train",
                "'a.zip' is no SHA-256",
            ),
            (
                search_config(model={"architecture": "resnet20", "checkpoint": DIGEST}),
                "config.model.checkpoint",
                "upload",
            ),
            (search_config(device="phone"), "config.device", "there is no device 'phone'; enrolled are: board"),
            (search_config(latency_from="search_0"), "config.latency_from", "there is no search 'search_0'"),
            (
                search_config(
                    measuring={"kernels": {"runtime": "tflite"}, "networks": {"runtime": "tflite"}}, device="board"
                ),
                "config.measuring.networks.runtime",
                "cannot use its runtime 'tflite' (no wheel for this platform); it has: native",
            ),
        ],
    )
    def test_bad_configs(self, sqlite_lab: ServerLab, config: object, field: str, words: str) -> None:
        sqlite_lab.agent()
        response = submit(sqlite_lab, config)
        assert response.status_code == 422, response.text
        problem = response.json()
        assert problem["errors"][0]["field"] == field
        assert words in problem["detail"]
        assert num_searches(sqlite_lab) == 0

    @pytest.mark.parametrize(
        ("seen", "unavailable", "words"),
        [
            (False, "zeros are multiplied here: use aarch64", "zeros are multiplied here: use aarch64"),
            (None, None, "was not seen to take XNNPACK's sparse path"),
            (True, None, "times sparse 1x1 convolutions"),
        ],
    )
    def test_a_search_on_the_sparse_path(
        self, sqlite_lab: ServerLab, seen: bool | None, unavailable: str | None, words: str
    ) -> None:
        sparse = RuntimeInfo(name="tflite-sparse", version="1", sparse_1x1=seen, unavailable=unavailable)
        sqlite_lab.agent(runtimes=(sparse,))
        measuring = {"kernels": {"runtime": "tflite-sparse"}, "networks": {"runtime": "tflite-sparse"}}
        for named in ({}, {"device": "board"}):
            response = submit(sqlite_lab, search_config(measuring=measuring, **named))
            assert response.status_code == 422, response.text
            assert words in response.json()["detail"]
        assert num_searches(sqlite_lab) == 0

    def test_which_device(self, lab: ServerLab) -> None:
        assert "enrol one" in submit(lab, search_config()).json()["detail"]
        first = lab.agent(device_name="one")
        lab.agent(device_name="two")
        assert "name one in 'device'" in submit(lab, search_config()).json()["detail"]
        assert submit(lab, search_config(device="one")).json()["device_id"] == first.device_id
        assert submit(lab, search_config(device=first.device_id)).json()["device_id"] == first.device_id
        lab.post(f"/v1/devices/{first.device_id}:disable", token=lab.admin)
        assert "disabled" in submit(lab, search_config(device="one")).json()["detail"]
        assert submit(lab, search_config()).status_code == 201

    def test_several_devices_are_stored_by_their_ids(self, lab: ServerLab) -> None:
        phone, board = (lab.agent(device_name=name) for name in ("phone", "pi4"))
        bound = {"metric": "latency_ms", "max": 4.0, "device": "pi4"}
        config = search_config(devices=["phone", board.device_id], constraints=[{**bound, "device": board.device_id}])
        response = submit(lab, config)
        assert response.status_code == 201, response.text
        search = response.json()
        assert search["device_id"] == phone.device_id
        assert search["device_ids"] == search["config"]["devices"] == [phone.device_id, board.device_id]
        assert search["config"]["device"] is None
        named = submit(lab, search_config(devices=["phone", "pi4"], constraints=[bound])).json()
        assert named["config"]["constraints"][0]["device"] == board.device_id
        with lab.database.write() as session:
            claim = repository.claim_runnable_job(session, worker="w", stale_s=60.0)
        assert claim is not None
        assert claim.device_ids == (phone.device_id, board.device_id)
        assert claim.config.constraints[0].device == board.device_id

    def test_one_of_devices_is_that_device(self, lab: ServerLab) -> None:
        board = lab.agent(device_name="pi4")
        lab.agent(device_name="phone")
        bound = {"metric": "latency_ms", "max": 4.0, "device": "pi4"}
        search = submit(lab, search_config(devices=["pi4"], constraints=[bound])).json()
        assert search["config"]["constraints"] == [{**bound, "device": None}]
        assert search["device_ids"] == [board.device_id]
        assert (search["config"]["device"], search["config"]["devices"]) == (board.device_id, [])

    def test_devices_that_cannot_serve_one_search(self, lab: ServerLab) -> None:
        phone, board = (lab.agent(device_name=name) for name in ("phone", "pi4"))
        lab.agent(device_name="emulator", profile=replace(PROFILE, emulated=True))
        lab.agent(device_name="other", runtimes=(RuntimeInfo(name="tflite", version="1"),))
        lab.post(f"/v1/devices/{lab.agent(device_name='retired').device_id}:disable", token=lab.admin)
        for devices, words in (
            (["phone", "toaster"], "there is no device 'toaster'"),
            (["phone", "retired"], "'retired' is disabled"),
            (["phone", "other"], "'other' has no runtime 'native'"),
            (["phone", "phone"], "devices has 'phone' twice"),
            (["phone", phone.device_id], f"'phone' and '{phone.device_id}' are one device"),
            (["phone", "emulator"], "'phone' is measured, 'emulator' is emulated: one search never joins them"),
        ):
            response = submit(lab, search_config(devices=devices))
            assert response.status_code == 422, response.text
            assert words in response.json()["detail"]
        assert num_searches(lab) == 0
        earlier = submit(lab, search_config(device="phone")).json()["id"]
        with lab.database.write() as session:
            claim = repository.claim_runnable_job(session, worker="w", stale_s=60.0)
            assert claim is not None
            repository.put_document(session, claim, repository.LATENCY_TABLE, "{}")
        both = submit(lab, search_config(devices=["pi4", "phone"], latency_from=earlier))
        assert f"not on 'pi4' ({board.device_id})" in both.json()["detail"]
        assert submit(lab, search_config(devices=["phone"], latency_from=earlier)).status_code == 201

    def test_the_latency_table_of_an_earlier_search(self, lab: ServerLab) -> None:
        lab.agent()
        first = submit(lab, search_config()).json()["id"]
        config = search_config(latency_from=first)
        assert "has no latency table yet" in submit(lab, config).json()["detail"]
        with lab.database.write() as session:
            claim = repository.claim_runnable_job(session, worker="w", stale_s=60)
            assert claim is not None
            repository.put_document(session, claim, repository.LATENCY_TABLE, "{}")
        assert submit(lab, config).status_code == 201


class TestIdempotency:
    def test_the_same_key_gives_the_same_search(self, lab: ServerLab) -> None:
        agent = lab.agent()
        key = {"Idempotency-Key": "k1"}
        responses = [submit(lab, search_config(), **key) for _ in range(2)]
        assert statuses(responses) == [201, 200]
        assert responses[0].json() == responses[1].json()
        # Also where a new request would be refused by now.
        lab.post(f"/v1/devices/{agent.device_id}:disable", token=lab.admin)
        assert submit(lab, search_config(), **key).status_code == 200
        assert num_searches(lab) == 1

    def test_another_request_under_the_same_key(self, lab: ServerLab) -> None:
        lab.agent()
        submit(lab, search_config(), **{"Idempotency-Key": "k1"})
        response = submit(lab, search_config(name="another"), **{"Idempotency-Key": "k1"})
        assert (response.status_code, response.json()["code"]) == (422, "idempotency_key_reused")

    def test_keys_belong_to_their_user(self, lab: ServerLab) -> None:
        lab.agent()
        other = lab.user_token(Scope.SEARCHES_WRITE)
        key = {"Idempotency-Key": "k1"}
        assert submit(lab, search_config(), **key).status_code == 201
        response = lab.request("POST", "/v1/searches", other, json=search_config(), headers=key)
        assert response.status_code == 201

    def test_at_the_same_time(self, lab: ServerLab) -> None:
        lab.agent()
        start = threading.Barrier(5)

        def send(_: int) -> str:
            start.wait()
            return str(submit(lab, search_config(), **{"Idempotency-Key": "k1"}).json()["id"])

        with ThreadPoolExecutor(5) as pool:
            assert len(set(pool.map(send, range(5)))) == 1
        assert num_searches(lab) == 1


class TestSteer:
    def test_a_waiting_search(self, lab: ServerLab) -> None:
        url = f"/v1/searches/{lab.search(lab.agent().device_id)}"
        for verb, state in (("pause", "paused"), ("pause", "paused"), ("resume", "pending"), ("cancel", "cancelled")):
            assert lab.post(f"{url}:{verb}").json()["state"] == state
        assert lab.get(url).json()["finished_at"] is not None
        response = lab.post(f"{url}:resume")
        assert (response.status_code, response.json()["code"]) == (409, "illegal_transition")

    def test_a_running_search(self, lab: ServerLab) -> None:
        url = f"/v1/searches/{lab.search(lab.agent().device_id)}"
        with lab.database.write() as session:
            assert repository.claim_runnable_job(session, worker="w", stale_s=60)
        for verb, state in (("pause", "pausing"), ("cancel", "cancelling"), ("cancel", "cancelling")):
            assert lab.post(f"{url}:{verb}").json()["state"] == state
        assert lab.post(f"{url}:pause").status_code == 409

    @pytest.mark.parametrize("state", [JobState.COMPLETED, JobState.FAILED])
    def test_a_finished_search(self, lab: ServerLab, state: JobState) -> None:
        search_id = lab.search(lab.agent().device_id)
        with lab.database.write() as session:
            session.execute(update(SearchRow).values(state=state))
        codes = [lab.post(f"/v1/searches/{search_id}:{verb}").status_code for verb in ("pause", "resume", "cancel")]
        assert codes == [409] * 3

    def test_unknown(self, lab: ServerLab) -> None:
        assert lab.post("/v1/searches/search_0:cancel").status_code == 404


class TestRead:
    def test_newest_first_in_pages_and_by_state(self, lab: ServerLab) -> None:
        device_id = lab.agent().device_id
        ids = [lab.search(device_id) for _ in range(5)]
        lab.post(f"/v1/searches/{ids[1]}:cancel")
        first = lab.get("/v1/searches", params={"limit": 3}).json()
        second = lab.get("/v1/searches", params={"limit": 3, "cursor": first["next"]}).json()
        assert [s["id"] for s in first["items"] + second["items"]] == ids[::-1]
        assert second["next"] is None
        cancelled = lab.get("/v1/searches", params={"state": "cancelled"}).json()["items"]
        assert [s["id"] for s in cancelled] == [ids[1]]

    def test_candidates_and_front(self, lab: ServerLab) -> None:
        lab.search(lab.agent().device_id)
        with lab.database.write() as session:
            claim = repository.claim_runnable_job(session, worker="w", stale_s=60)
            assert claim is not None
            records = [
                CandidateRecord(candidate_id=f"c_{i}", genome=(i,), metrics={"loss": i / 10}, generation=1)
                for i in range(5)
            ]
            repository.save_candidates(session, claim, records)
            repository.mark_front(session, claim, ["c_0", "c_4"])
        url = f"/v1/searches/{claim.search_id}"
        page = lab.get(f"{url}/candidates", params={"limit": 4}).json()
        assert [c["candidate_id"] for c in page["items"]] == ["c_0", "c_1", "c_2", "c_3"]
        assert [c["candidate_id"] for c in lab.get(f"{url}/front").json()["items"]] == ["c_0", "c_4"]
        assert lab.get(f"{url}/candidates/c_4").json()["metrics"] == {"loss": 0.4}
        assert lab.get(f"{url}/candidates/c_9").status_code == 404

    @pytest.mark.parametrize("part", ["result", "config", "latency-table"])
    def test_documents_that_are_not_there_yet(self, lab: ServerLab, part: str) -> None:
        search_id = lab.search(lab.agent().device_id)
        response = lab.get(f"/v1/searches/{search_id}/{part}")
        assert (response.status_code, response.json()["code"]) == (404, "not_ready")
        assert f"has no {part} yet: it is pending" in response.json()["detail"]
        lab.request("POST", f"/v1/searches/{search_id}:cancel")
        assert f"has no {part}: it is cancelled" in lab.get(f"/v1/searches/{search_id}/{part}").json()["detail"]
        assert lab.get(f"/v1/searches/search_0/{part}").json()["code"] == "not_found"


class TestEvents:
    def test_replay_resume_and_end(self, lab: ServerLab) -> None:
        search_id = lab.search(lab.agent().device_id)
        lab.post(f"/v1/searches/{search_id}:pause")
        lab.post(f"/v1/searches/{search_id}:cancel")
        whole = read_events(lab, search_id)
        assert [(e["id"], e["event"]) for e in whole] == [("1", "state"), ("2", "state"), ("3", "state"), (None, "end")]
        assert [json.loads(e["data"])["data"]["state"] for e in whole[:3]] == ["pending", "paused", "cancelled"]
        rest = read_events(lab, search_id, **{"Last-Event-ID": "2"})
        assert [e["id"] for e in rest] == ["3", None]

    def test_following(self, lab: ServerLab) -> None:
        search_id = lab.search(lab.agent().device_id)
        with ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read_events, lab, search_id)
            lab.post(f"/v1/searches/{search_id}:pause")
            lab.post(f"/v1/searches/{search_id}:cancel")
            assert [e["event"] for e in reading.result(timeout=30)] == ["state"] * 3 + ["end"]

    def test_errors_come_before_the_stream(self, lab: ServerLab) -> None:
        assert lab.get("/v1/searches/search_0/events").status_code == 404
        search_id = lab.search(lab.agent().device_id)
        response = lab.get(f"/v1/searches/{search_id}/events", headers={"Last-Event-ID": "x"})
        assert response.status_code == 400
        assert lab.client.get(f"/v1/searches/{search_id}/events").status_code == 401


def read_events(lab: ServerLab, search_id: str, **headers: str) -> list[dict[str, str | None]]:
    """All events of a search until the stream ends."""
    headers |= {"Authorization": f"Bearer {lab.user}"}
    events: list[dict[str, str | None]] = []
    with lab.client.stream("GET", f"/v1/searches/{search_id}/events", headers=headers) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        fields: dict[str, str | None] = {}
        for line in response.iter_lines():
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                events.append({"id": None, **fields})
                fields = {}
    return events
