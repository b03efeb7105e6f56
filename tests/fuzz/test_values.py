"""Contracts and configs with any JSON put anywhere: taken and told again the same, or refused by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_agent.contracts import (
    Conditions,
    ContractError,
    EnrolmentRequest,
    FailureReason,
    HeartbeatRequest,
    LeaseAnswer,
    ReportBatch,
    TaskReport,
    decode,
    dumps,
    encode,
    loads,
)
from search.domain.config import SearchConfig, parse_config
from server.cli.demo import demo_config
from tests.unit.device_agent.agent.agent_samples import PROFILE, RUNTIMES, lease, report
from tests.unit.server.server_lab import failure

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["", "dense", "1e9"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)

SOUND: dict[type, Any] = {
    EnrolmentRequest: EnrolmentRequest(
        code="kerf_e_x", agent_key="k" * 20, device_name="board", profile=PROFILE, runtimes=RUNTIMES, agent_version="1"
    ),
    HeartbeatRequest: HeartbeatRequest(
        conditions=Conditions(), runtimes=RUNTIMES, profile=PROFILE, agent_version="1", held_lease_ids=("l",)
    ),
    LeaseAnswer: LeaseAnswer(leases=(lease("l1"), lease("l2"))),
    ReportBatch: ReportBatch(
        reports=(
            report("r1"),
            TaskReport(
                result_key="r2", lease_id="l", task_id="t", attempt=1, result=failure(FailureReason.CRASHED, "died")
            ),
        )
    ),
    SearchConfig: demo_config(quick=True),
}


def changed(data: st.DataObject, value: Any) -> Any:
    """`value` with one place, at any depth, replaced, left out or added."""
    value = copy.deepcopy(value)
    place = value
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return value
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and data.draw(st.booleans()):
            place = place[key]
            continue
        what = data.draw(st.integers(0, 4))
        if what == 0:
            del place[key]
        elif what == 1 and isinstance(place, dict):
            place[data.draw(st.text(max_size=6))] = data.draw(JSON)
        else:
            place[key] = data.draw(JSON)
        return value


@pytest.mark.parametrize("cls", SOUND, ids=lambda cls: cls.__name__)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_value_is_taken_or_refused_by_name(cls: type, data: st.DataObject) -> None:
    given_value = changed(data, encode(SOUND[cls]))
    try:
        value = decode(cls, given_value)
    except ContractError:
        return
    assert decode(cls, encode(value)) == value
    assert loads(cls, dumps(value)) == value


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_config_is_resolved_or_refused_by_name(data: st.DataObject) -> None:
    given_value = changed(data, encode(SOUND[SearchConfig]))
    try:
        config = parse_config(given_value)
    except ContractError:
        return
    assert parse_config(encode(config)) == config


@settings(max_examples=40, deadline=None)
@given(value=JSON)
def test_what_is_no_config_at_all_is_refused(value: Any) -> None:
    with pytest.raises(ContractError):
        parse_config(value)
