"""The small rules: identities, settings, states, retries."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest

from device_agent.contracts import ContractError, FailureReason, Verdict, VerdictReason
from server.fleet import retry
from server.ids import new_id, uuid7
from server.settings import Settings
from server.states import JOB_TRANSITIONS, TASK_TRANSITIONS, JobState, TaskState, sources
from tests.unit.server.server_lab import measurement


class TestIds:
    def test_they_are_of_version_7_and_in_order(self) -> None:
        with ThreadPoolExecutor(4) as pool:
            made = [u for part in pool.map(lambda _: [uuid7() for _ in range(2000)], range(4)) for u in part]
        assert len(set(made)) == 8000
        assert {(u.version, u.variant) for u in made} == {(7, "specified in RFC 4122")}
        mine = [uuid7() for _ in range(2000)]
        assert mine == sorted(mine)

    def test_the_prefix_tells_what_it_is_of(self) -> None:
        assert re.fullmatch(r"task_[0-9a-f]{32}", new_id("task"))


class TestSettings:
    def test_every_field_is_documented(self) -> None:
        assert Settings.__doc__ is not None
        documented = set(re.findall(r"^        (\w+): ", Settings.__doc__, re.MULTILINE))
        assert documented == {f.name for f in fields(Settings)}

    def test_from_the_environment(self) -> None:
        settings = Settings.from_env(
            {"KERF_PORT": "9000", "KERF_LOG_JSON": "yes", "KERF_DATA_DIR": "/x", "KERF_LEASE_WAIT_S": "", "OTHER": "1"},
            host="::1",
        )
        assert (settings.port, settings.log_json, settings.data_dir, settings.host) == (9000, True, Path("/x"), "::1")

    @pytest.mark.parametrize(
        ("name", "value"), [("KERF_PORT", "http"), ("KERF_LOG_JSON", "maybe"), ("KERF_LEASE_DURATION_S", "soon")]
    )
    def test_a_bad_variable_is_named(self, name: str, value: str) -> None:
        with pytest.raises(ContractError, match=f"{name}='{value}'"):
            Settings.from_env({name: value})

    @pytest.mark.parametrize(
        "change",
        [{"port": 70000}, {"max_attempts": 0}, {"lease_wait_s": 61.0}, {"job_stale_s": 0}, {"max_takeovers": -1}],
    )
    def test_bad_values(self, change: dict[str, float]) -> None:
        with pytest.raises(ContractError, match=next(iter(change))):
            Settings(**change)  # type: ignore[arg-type]

    @pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg"])
    def test_urls(self, scheme: str) -> None:
        assert Settings(database_url=f"{scheme}://h/kerf").url == "postgresql+psycopg://h/kerf"
        assert Settings(data_dir=Path("/x")).url == "sqlite:////x/kerf.db"


class TestStates:
    @pytest.mark.parametrize(("states", "transitions"), [(JobState, JOB_TRANSITIONS), (TaskState, TASK_TRANSITIONS)])
    def test_every_state_is_listed_and_can_be_reached(self, states: type, transitions: dict) -> None:  # type: ignore[type-arg]
        assert set(transitions) == set(states)
        assert set().union(*transitions.values()) == set(states) - {JobState.PENDING, TaskState.PENDING} | (
            {s for s in states if s.value == "pending"}
        )

    def test_what_is_over_stays_over(self) -> None:
        for state in JobState:
            assert state.is_terminal is (not JOB_TRANSITIONS[state])

    def test_sources(self) -> None:
        assert set(sources(JOB_TRANSITIONS, JobState.PAUSED)) == {JobState.PENDING, JobState.PAUSING}


class TestRetry:
    @pytest.mark.parametrize("reason", list(FailureReason))
    def test_every_reason_ends(self, reason: FailureReason) -> None:
        """No task can go round for ever, but for agents that are shut down on purpose."""
        failures = deferrals = attempts = 0
        while attempts < 100:
            attempts += 1
            decision = retry.after_failure(reason, failures=failures, deferrals=deferrals, max_attempts=3)
            if not decision.retry:
                break
            failures += decision.counts
            deferrals += decision.defers
        expected = {
            FailureReason.UNSUPPORTED: 1,
            FailureReason.INVALID_TASK: 1,
            FailureReason.AGENT_OUTDATED: 1,
            FailureReason.QUARANTINED: 1,
            FailureReason.AGENT_SHUTDOWN: 100,
            FailureReason.DEVICE_NOT_READY: retry.MAX_DEFERRALS,
        }
        assert attempts == expected.get(reason, 3)

    def test_deferrals_grow(self) -> None:
        delays = [
            retry.after_failure(FailureReason.DEVICE_NOT_READY, failures=0, deferrals=d, max_attempts=3).delay_s
            for d in range(7)
        ]
        assert delays == [30, 60, 120, 240, 480, 600, 600]

    @pytest.mark.parametrize(
        ("verdict", "reasons", "again"),
        [
            (Verdict.TRUSTED, (), False),
            (Verdict.NOISY, (VerdictReason.CI_TOO_WIDE,), False),
            (Verdict.REJECTED, (VerdictReason.THROTTLED, VerdictReason.CONTENTION), True),
            (Verdict.REJECTED, (VerdictReason.THROTTLED, VerdictReason.WRONG_OUTPUT), False),
            (Verdict.REJECTED, (), False),
        ],
    )
    def test_measurements(self, verdict: Verdict, reasons: tuple[VerdictReason, ...], again: bool) -> None:
        result = measurement(verdict=verdict, reasons=reasons)
        assert retry.after_measurement(result, failures=0, max_attempts=3).retry is again
        assert not retry.after_measurement(result, failures=2, max_attempts=3).retry
