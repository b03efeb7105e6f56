from __future__ import annotations

import random

import httpx
import pytest

from device_agent.errors import CredentialsRefused, RequestRefused, TryAgainLater
from device_agent.retry import MAX_RETRY_AFTER_S, Backoff, BackoffPolicy, error_of


class HighestDraw(random.Random):
    """Draws the upper end of every interval."""

    def uniform(self, a: float, b: float) -> float:
        return b


def answer(status: int, body: bytes = b"{}", kind: str = "application/problem+json", **headers: str) -> httpx.Response:
    return httpx.Response(
        status,
        content=body,
        headers={"content-type": kind, **{k.replace("_", "-"): v for k, v in headers.items()}},
        request=httpx.Request("POST", "http://server/v1/leases"),
    )


def test_success_is_no_error() -> None:
    assert error_of(answer(200)) is None
    assert error_of(answer(204)) is None


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_passing_troubles_are_retried(status: int) -> None:
    assert isinstance(error_of(answer(status)), TryAgainLater)


@pytest.mark.parametrize("status", [400, 404, 409, 410, 413, 422])
def test_refusals_are_final(status: int) -> None:
    error = error_of(answer(status, b'{"title": "no", "detail": "because", "code": "x"}'))
    assert isinstance(error, RequestRefused)
    assert (error.status, error.code) == (status, "x")
    assert "because" in str(error)


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_told_apart(status: int) -> None:
    assert isinstance(error_of(answer(status)), CredentialsRefused)


def test_the_server_may_call_a_refusal_retryable() -> None:
    assert isinstance(error_of(answer(409, b'{"retryable": true}')), TryAgainLater)


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (302, b"", "text/html"),
        (403, b"<html>blocked by the office</html>", "text/html"),
        (404, b"not json", "application/problem+json"),
        (401, b"[]", "application/problem+json"),
    ],
)
def test_what_no_kerf_server_says_is_a_proxy_speaking(status: int, body: bytes, kind: str) -> None:
    error = error_of(answer(status, body, kind))
    assert isinstance(error, TryAgainLater)
    assert str(status) in str(error)


@pytest.mark.parametrize(
    ("headers", "expected_s"),
    [
        ({"retry_after": "7"}, 7.0),
        ({"retry_after": "999999999"}, MAX_RETRY_AFTER_S),
        ({"retry_after": "Sat, 21 Nov 2026 10:00:30 GMT", "date": "Sat, 21 Nov 2026 10:00:00 GMT"}, 30.0),
        ({"retry_after": "Sat, 21 Nov 2026 09:00:00 GMT", "date": "Sat, 21 Nov 2026 10:00:00 GMT"}, 0.0),
        ({"retry_after": "Sat, 21 Nov 2026 10:00:30 GMT"}, None),
        ({"retry_after": "soon"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_read_without_a_clock_of_our_own(headers: dict[str, str], expected_s: float | None) -> None:
    error = error_of(answer(503, **headers))
    assert isinstance(error, TryAgainLater)
    assert error.retry_after_s == expected_s


def test_pauses_double_up_to_the_cap() -> None:
    backoff = Backoff(HighestDraw(), BackoffPolicy(base_s=0.5, cap_s=60.0))
    assert [backoff.next_pause_s() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60]
    backoff.reset()
    assert backoff.next_pause_s() == 0.5


def test_pauses_stay_bounded_for_ever() -> None:
    backoff = Backoff(HighestDraw())
    for _ in range(5000):
        assert backoff.next_pause_s() <= 60.0


def test_pauses_are_spread_over_the_whole_interval() -> None:
    backoff = Backoff(random.Random(3), BackoffPolicy(base_s=10.0, cap_s=10.0))
    pauses = [backoff.next_pause_s() for _ in range(200)]
    assert min(pauses) < 1
    assert max(pauses) > 9


def test_retry_after_is_a_lower_bound() -> None:
    backoff = Backoff(random.Random(3))
    assert 20.0 <= backoff.next_pause_s(TryAgainLater("busy", retry_after_s=20.0)) <= 20.5
