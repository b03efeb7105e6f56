"""What to do after a failed request: decided once, here.

429, 408, 425, 5xx, network errors and answers that are not the API's own (a proxy or captive portal spoke) are worth a
repetition, and so is a problem document that says `retryable`. Every other refusal is final.
"""

from __future__ import annotations

import email.utils
import random
from dataclasses import dataclass

import httpx

from device_agent.errors import CredentialsRefused, RequestRefused, ServerError, TryAgainLater

_RETRYABLE_STATUS = frozenset({408, 425, 429})
#: A longer Retry-After is taken for this: nobody wants a board to sleep for a day over one header.
MAX_RETRY_AFTER_S = 900.0
#: Enough of a text to see who spoke.
_EXCERPT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class BackoffPolicy:
    """The n-th pause is drawn evenly from 0 to min(cap, base * 2^n): "full jitter".

    Base 0.5 s and cap 60 s give at most 0.5, 1, 2, 4, 8, 16, 32, 60, 60 ... seconds. Spreading the whole pause keeps a
    thousand agents from coming back in one moment after the server was down.
    """

    base_s: float = 0.5
    cap_s: float = 60.0


#: On this machine's own server no crowd has to be spread out, and a restart takes seconds.
LOOPBACK_POLICY = BackoffPolicy(cap_s=5.0)


class Backoff:
    """The pauses of one series of failures. Not thread-safe: each loop has its own."""

    def __init__(self, rng: random.Random, policy: BackoffPolicy | None = None) -> None:
        self._rng = rng
        self._policy = policy or BackoffPolicy()
        self._failures = 0

    @property
    def failures(self) -> int:
        """Failures since the last success."""
        return self._failures

    def next_pause_s(self, error: TryAgainLater | None = None) -> float:
        """The pause after one more failure; never shorter than the server's Retry-After."""
        # 2^20 is far above any cap; without the bound the power overflows after a thousand failures.
        ceiling = min(self._policy.cap_s, self._policy.base_s * 2 ** min(self._failures, 20))
        self._failures += 1
        pause_s = self._rng.uniform(0.0, ceiling)
        asked_s = error.retry_after_s if error is not None else None
        return pause_s if asked_s is None else asked_s + self._rng.uniform(0.0, self._policy.base_s)

    def reset(self) -> None:
        """The last request succeeded."""
        self._failures = 0


def error_of(response: httpx.Response) -> ServerError | None:
    """The error that `response` stands for; None for 2xx."""
    if response.is_success:
        return None
    problem = _problem(response)
    request = f"{response.request.method} {response.request.url.path}"
    retry_after_s = _retry_after_s(response)
    if problem is None:
        excerpt = " ".join(response.text.split())[:_EXCERPT]
        return TryAgainLater(
            f"{request}: HTTP {response.status_code} without a problem document, so from a proxy: {excerpt!r}",
            retry_after_s=retry_after_s,
        )
    message = f"{request}: HTTP {response.status_code} {problem.get('title', '')}: {problem.get('detail', '')}"
    status = response.status_code
    if status in _RETRYABLE_STATUS or status >= 500 or problem.get("retryable") is True:
        return TryAgainLater(message, retry_after_s=retry_after_s)
    kind = CredentialsRefused if status in (401, 403) else RequestRefused
    return kind(message, status=status, code=str(problem.get("code", "")))


def _problem(response: httpx.Response) -> dict[str, object] | None:
    """The problem document (RFC 9457) in `response`, if it is one."""
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return None
    try:
        data = response.json()
    except ValueError:
        return None
    return data if isinstance(data, dict) else None


def _retry_after_s(response: httpx.Response) -> float | None:
    """Retry-After in seconds: given as such, or as a date, which is read against the answer's own Date header."""
    text = response.headers.get("retry-after", "").strip()
    if not text:
        return None
    if text.isdigit():
        return min(float(text), MAX_RETRY_AFTER_S)
    try:
        moment = email.utils.parsedate_to_datetime(text)
        now = email.utils.parsedate_to_datetime(response.headers.get("date", ""))
        pause_s = (moment - now).total_seconds()
    except (TypeError, ValueError):
        return None
    return min(max(0.0, pause_s), MAX_RETRY_AFTER_S)
