"""When a request is repeated, and after how long."""

from __future__ import annotations

import random

import httpx

#: Attempts of a repeatable request; with the delays below they span about 15 s, longer than a server restart.
MAX_ATTEMPTS = 8
FIRST_DELAY_S = 0.2
MAX_DELAY_S = 5.0
#: A server that asks for more patience than this is as good as away.
MAX_RETRY_AFTER_S = 60.0

#: The connection did not come about, so that the server has seen nothing of the request.
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_TOO_MANY_REQUESTS = 429
_MAYBE_DONE = (502, 503, 504)


def next_delay_s(
    outcome: httpx.Response | httpx.TransportError, attempt: int, *, is_repeatable: bool, max_attempts: int
) -> float | None:
    """Seconds to wait before attempt `attempt` + 1, or None where `outcome` stands.

    A request that is not repeatable is sent again only where the server surely did nothing: it was not reached, or it
    said that it got too many requests.
    """
    if attempt >= max_attempts:
        return None
    if isinstance(outcome, httpx.TransportError):
        return backoff_s(attempt) if is_repeatable or isinstance(outcome, _NEVER_SENT) else None
    status = outcome.status_code
    if status == _TOO_MANY_REQUESTS or (status in _MAYBE_DONE and is_repeatable):
        asked = _retry_after_s(outcome)
        return backoff_s(attempt) if asked is None else asked if asked <= MAX_RETRY_AFTER_S else None
    return None


def backoff_s(attempt: int) -> float:
    """Full jitter below an exponential bound: 0.2, 0.4, 0.8 ... 5 s."""
    return random.uniform(0.0, min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** (attempt - 1)))


def _retry_after_s(response: httpx.Response) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, section 10.2.3); None where there is none, or a date."""
    text = response.headers.get("Retry-After", "")
    return float(text) if text.isdecimal() else None
