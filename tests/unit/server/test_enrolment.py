"""Enrolment, heartbeats, devices."""

from __future__ import annotations

from dataclasses import replace

import pytest
from sqlalchemy import update

from device_agent.contracts import Conditions, HeartbeatRequest, LeaseRequest, RuntimeInfo
from server.fleet.devices import EnrolmentCodeRequest
from server.models import DeviceRow, EnrolmentCodeRow
from tests.unit.server.server_lab import PROFILE, RUNTIMES, ServerLab, new_key

HEARTBEAT = HeartbeatRequest(
    conditions=Conditions(temperature_celsius=51.0), runtimes=RUNTIMES, profile=PROFILE, agent_version="0.1.0"
)


class TestCodes:
    def test_a_code_is_made_by_an_admin_only(self, lab: ServerLab) -> None:
        body = EnrolmentCodeRequest(max_uses=2)
        assert lab.post("/v1/enrolment-codes", body).status_code == 403
        response = lab.post("/v1/enrolment-codes", body, lab.admin)
        assert response.status_code == 201
        code = response.json()["code"]
        assert code.startswith("kerf_e_")
        names = [lab.post("/v1/agents:enrol", lab.enrolment(code)).status_code for _ in range(3)]
        assert names == [200, 200, 403]

    def test_an_empty_object_takes_the_defaults(self, lab: ServerLab) -> None:
        assert lab.request("POST", "/v1/enrolment-codes", lab.admin, json={}).json()["max_uses"] == 1

    def test_an_unknown_or_expired_code(self, lab: ServerLab) -> None:
        response = lab.post("/v1/agents:enrol", lab.enrolment("kerf_e_nonsense"))
        assert (response.status_code, response.json()["code"]) == (403, "enrolment_code")
        code = lab.code()
        with lab.database.write() as session:
            session.execute(update(EnrolmentCodeRow).values(expires_at=1.0))
        assert lab.post("/v1/agents:enrol", lab.enrolment(code)).status_code == 403


class TestEnrol:
    def test_repeating_gives_the_same_device_and_a_new_token(self, lab: ServerLab) -> None:
        request = lab.enrolment(lab.code())
        first = lab.post("/v1/agents:enrol", request).json()
        second = lab.post("/v1/agents:enrol", request).json()
        assert first["device_id"] == second["device_id"]
        assert lab.post("/v1/leases", LeaseRequest(), first["token"]).status_code == 401
        assert lab.post("/v1/leases", LeaseRequest(), second["token"]).status_code == 200

    def test_a_taken_name_gets_a_number(self, lab: ServerLab) -> None:
        for _ in range(3):
            lab.agent(device_name="pi")
        names = [d["name"] for d in lab.get("/v1/devices").json()["items"]]
        assert names == ["pi", "pi-2", "pi-3"]

    @pytest.mark.parametrize(
        "changes",
        [{"wire_version": 99}, {"agent_key": "short"}, {"device_name": "x" * 151}],
        ids=lambda c: next(iter(c)),
    )
    def test_what_cannot_be_accepted(self, lab: ServerLab, changes: dict[str, object]) -> None:
        code = lab.code()
        assert lab.post("/v1/agents:enrol", lab.enrolment(code, **changes)).status_code == 422
        # The code was not used up by it.
        assert lab.post("/v1/agents:enrol", lab.enrolment(code)).status_code == 200


class TestHeartbeat:
    def test_it_keeps_the_device_online_and_its_facts_fresh(self, lab: ServerLab) -> None:
        agent = lab.agent()
        with lab.database.write() as session:
            session.execute(update(DeviceRow).values(last_seen_at=1.0))
        url = f"/v1/devices/{agent.device_id}"
        assert lab.get(url).json()["state"] == "offline"
        upgraded = replace(HEARTBEAT, runtimes=(RuntimeInfo(name="native", version="2.0", binary_sha256="cd" * 32),))
        answer = lab.post("/v1/agents:heartbeat", upgraded, agent.token).json()
        assert answer == {"interval_s": lab.settings.heartbeat_interval_s, "drain": False}
        device = lab.get(url).json()
        assert device["state"] == "online"
        assert device["runtimes"][0]["version"] == "2.0"
        assert device["conditions"]["temperature_celsius"] == 51.0

    def test_a_disabled_device_drains(self, lab: ServerLab) -> None:
        agent = lab.agent()
        assert lab.post(f"/v1/devices/{agent.device_id}:disable", token=lab.admin).json()["state"] == "disabled"
        assert lab.post("/v1/agents:heartbeat", HEARTBEAT, agent.token).json()["drain"] is True


class TestDevices:
    def test_pages(self, lab: ServerLab) -> None:
        ids = [lab.agent(agent_key=new_key()).device_id for _ in range(5)]
        seen, cursor = [], None
        while True:
            page = lab.get("/v1/devices", params={"limit": 2} | ({"cursor": cursor} if cursor else {})).json()
            seen += [d["id"] for d in page["items"]]
            cursor = page["next"]
            if cursor is None:
                break
        assert seen == ids

    def test_unknown(self, lab: ServerLab) -> None:
        assert lab.get("/v1/devices/device_0").status_code == 404
        assert lab.post("/v1/devices/device_0:enable", token=lab.admin).status_code == 404
