"""A small client of the REST interface: what the command line uses.

One method for each endpoint that it needs; retries only where repeating is harmless.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import urlencode

import httpx

#: Attempts of a repeatable request; with the delays below they span about 15 s, longer than a server restart.
MAX_ATTEMPTS = 8
FIRST_DELAY_S = 0.2
MAX_DELAY_S = 5.0
#: No single answer takes longer than this but the streams, which send a sign of life more often.
TIMEOUT_S = 30.0
#: An import of the largest file takes a slow server a while.
IMPORT_TIMEOUT_S = 300.0
#: Reading the largest data sets takes a server minutes.
CHECK_TIMEOUT_S = 1300.0
#: Items of one page of a list, as many as the server gives.
MAX_PAGE = 500


class ClientError(Exception):
    """The server refused a request. The text is its problem document's, with the remedy where it names one."""

    def __init__(self, status: int, title: str, detail: str, problem: Mapping[str, Any] | None = None) -> None:
        super().__init__(f"{title}: {detail}" if detail else title)
        self.status = status
        self.problem = dict(problem or {})


class ServerUnavailable(ClientError):
    """The server could not be reached. Check its address, and that it runs (`kerf up`)."""


class KerfClient:
    """Talks to one server as one user. Close it, or use it as a context manager."""

    def __init__(self, base_url: str, token: str | None) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(base_url=base_url.rstrip("/"), headers=headers, timeout=TIMEOUT_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # -- searches ---------------------------------------------------------------------------------------------------

    def submit_search(self, config: Mapping[str, Any], idempotency_key: str) -> dict[str, Any]:
        """Create a search. The key makes repeating the call harmless."""
        return self._json("POST", "/v1/searches", json=config, headers={"Idempotency-Key": idempotency_key})

    def searches(self, limit: int = 50) -> list[dict[str, Any]]:
        """The newest searches, newest first."""
        items: list[dict[str, Any]] = self._json("GET", "/v1/searches", params={"limit": limit})["items"]
        return items

    def search(self, search_id: str) -> dict[str, Any]:
        return self._json("GET", f"/v1/searches/{search_id}")

    def search_part(self, search_id: str, part: str) -> Any:
        """`part` is one of candidates, front, searched-front, result, config, latency-table."""
        return self._json("GET", f"/v1/searches/{search_id}/{part}")

    def latency_table(self, search_id: str, device_id: str) -> Any:
        """The latency table of one of a search's devices."""
        return self._json("GET", f"/v1/searches/{search_id}/latency-table?{urlencode({'device': device_id})}")

    def search_action(self, search_id: str, verb: str) -> dict[str, Any]:
        """`verb` is cancel, pause or resume."""
        return self._json("POST", f"/v1/searches/{search_id}:{verb}")

    def events(self, search_id: str) -> Iterator[dict[str, Any]]:
        """The events of a search from its beginning, until it ends. Reconnects, and misses none."""
        last_id: str | None = None
        failures = 0
        while True:
            headers = {"Accept": "text/event-stream"}
            if last_id is not None:
                headers["Last-Event-ID"] = last_id
            try:
                with self._http.stream("GET", f"/v1/searches/{search_id}/events", headers=headers) as response:
                    if response.status_code >= 400:
                        response.read()
                        raise _error(response)
                    for event in _server_sent_events(response.iter_lines()):
                        failures = 0
                        last_id = event.get("id", last_id)
                        if event.get("event") == "end":
                            return
                        yield json.loads(event["data"])
            except (httpx.TransportError, ServerUnavailable) as error:
                failures += 1
                if failures >= MAX_ATTEMPTS:
                    raise ServerUnavailable(0, "the server went away", str(error)) from error
                time.sleep(_delay_s(failures))

    # -- artifacts, models, data sets -------------------------------------------------------------------------------

    def upload_artifact(self, path: Path) -> str:
        """Store a file by content and return its SHA-256. What the server already has is not sent again."""
        digest = hashlib.sha256()
        with path.open("rb") as source:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
        name = digest.hexdigest()
        url = f"/v1/artifacts/sha256/{name}"
        if self._send("HEAD", url, accept_missing=True).status_code == 404:
            with path.open("rb") as source:
                response = self._http.put(url, content=source, timeout=600.0)
            if response.status_code >= 400:
                raise _error(response)
        return name

    def download_artifact(self, digest: str, target: Path) -> None:
        """Fetch an artifact into `target`, checking its hash. Raises `ClientError` where it does not match."""
        response = self._send("GET", f"/v1/artifacts/sha256/{digest}")
        if hashlib.sha256(response.content).hexdigest() != digest:
            raise ClientError(0, "the artifact arrived damaged", f"{digest} does not match its content")
        partial = target.with_suffix(target.suffix + ".part")
        partial.write_bytes(response.content)
        partial.replace(target)

    def register_dataset(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Have uploaded files checked and registered as a data set. Repeating it is harmless."""
        return self._json("POST", "/v1/datasets", json=body, timeout=CHECK_TIMEOUT_S)

    def datasets(self, limit: int = 500) -> list[dict[str, Any]]:
        """The registered data sets, oldest first."""
        return self._pages("/v1/datasets", {}, limit)[0]

    def register_model(self, body: Mapping[str, Any]) -> dict[str, Any]:
        return self._json("POST", "/v1/models", json=body)

    # -- devices ----------------------------------------------------------------------------------------------------

    def devices(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = self._json("GET", "/v1/devices")["items"]
        return items

    def create_enrolment_code(self, max_uses: int = 1) -> str:
        return str(self._json("POST", "/v1/enrolment-codes", json={"max_uses": max_uses})["code"])

    def ready(self) -> bool:
        """Whether the server answers and its database is in order."""
        try:
            return self._http.get("/readyz", timeout=2.0).status_code == 200
        except httpx.TransportError:
            return False

    # -- latencies --------------------------------------------------------------------------------------------------

    def import_latencies(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Import an uploaded file. Repeating it is harmless: nothing is added twice."""
        return self._json("POST", "/v1/latency:import", json=body, timeout=IMPORT_TIMEOUT_S)

    def export_latencies(self, wanted: Mapping[str, Any], target: Path) -> int:
        """Write an export into `target`, which appears when it is complete; returns its size in bytes."""
        partial = target.with_suffix(target.suffix + ".part")
        size = 0
        with self._http.stream("GET", "/v1/latency:export", params=dict(wanted)) as response:
            if response.status_code >= 400:
                response.read()
                raise _error(response)
            with partial.open("wb") as file:
                for chunk in response.iter_bytes():
                    size += file.write(chunk)
        partial.replace(target)
        return size

    def latencies(self, wanted: Mapping[str, Any], limit: int) -> tuple[list[dict[str, Any]], bool]:
        """Up to `limit` figures, and whether there are more."""
        return self._pages("/v1/latencies", wanted, limit)

    def latency_series(self, wanted: Mapping[str, Any], limit: int = 1000) -> list[dict[str, Any]]:
        """The series that fit."""
        return self._pages("/v1/latency-series", wanted, limit)[0]

    def latency_card(self, series_id: str) -> dict[str, Any]:
        """How far predictions from a series can be trusted."""
        return self._json("GET", f"/v1/latency-series/{series_id}/card")

    def latency_model(self, series_id: str) -> dict[str, Any]:
        """Whether a series has a latency model, how old it is, and what it starts from."""
        return self._json("GET", f"/v1/latency-series/{series_id}/model")

    def fit_latency_model(self, series_id: str, from_series_id: str | None = None) -> dict[str, Any]:
        """Have the model of a series fitted anew by a worker, starting from another series or from none."""
        return self._json("PUT", f"/v1/latency-series/{series_id}/model", json={"from_series_id": from_series_id})

    def export_latency_model(self, series_id: str) -> bytes:
        """The model of a series as versioned JSON."""
        return self._send("GET", f"/v1/latency-series/{series_id}/model:export").content

    def predict_latencies(self, series_id: str, kernels: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The latency of kernels by the model of a series, in their order; what was not measured says so."""
        body = {"series_id": series_id, "kernels": [dict(kernel) for kernel in kernels]}
        return self._json("POST", "/v1/latency:predict", json=body)

    def latency_profit(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """What pruning gains, kernel by kernel, in one series."""
        return self._json("GET", "/v1/latency:profit", params=dict(wanted))

    def compare_latencies(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """The kernels that two series have in common."""
        return self._json("GET", "/v1/latency:compare", params=dict(wanted))

    # -- plumbing ---------------------------------------------------------------------------------------------------

    def _pages(self, url: str, wanted: Mapping[str, Any], limit: int) -> tuple[list[dict[str, Any]], bool]:
        """Up to `limit` items of a list, page by page, and whether there are more."""
        items: list[dict[str, Any]] = []
        cursor: str | None = None
        while True:
            params = {**wanted, "limit": min(MAX_PAGE, limit - len(items))}
            part = self._json("GET", url, params=params if cursor is None else {**params, "cursor": cursor})
            items += part["items"]
            cursor = part["next"]
            if cursor is None or len(items) >= limit:
                return items, cursor is not None

    def _json(self, method: str, url: str, **arguments: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self._send(method, url, **arguments).json()
        return answer

    def _send(self, method: str, url: str, accept_missing: bool = False, **arguments: Any) -> httpx.Response:
        for attempt in range(1, MAX_ATTEMPTS + 1):
            try:
                response = self._http.request(method, url, **arguments)
            except httpx.TransportError as error:
                if attempt == MAX_ATTEMPTS:
                    address = self._http.base_url
                    raise ServerUnavailable(0, f"cannot reach the server at {address}", str(error)) from error
                time.sleep(_delay_s(attempt))
                continue
            if response.status_code in (429, 502, 503, 504) and attempt < MAX_ATTEMPTS:
                time.sleep(float(response.headers.get("Retry-After", _delay_s(attempt))))
                continue
            if response.status_code == 404 and accept_missing:
                return response
            if response.status_code >= 400:
                raise _error(response)
            return response
        raise AssertionError("the last attempt returns or raises")


def _delay_s(attempt: int) -> float:
    """Full jitter below an exponential bound: 0.2, 0.4, 0.8 ... 5 s."""
    return random.uniform(0.0, min(MAX_DELAY_S, FIRST_DELAY_S * 2.0 ** (attempt - 1)))


def _error(response: httpx.Response) -> ClientError:
    try:
        problem = response.json()
        if not isinstance(problem, dict):
            problem = {}
    except ValueError:
        problem = {}
    title = str(problem.get("title") or f"the server answered {response.status_code}")
    return ClientError(response.status_code, title, str(problem.get("detail") or ""), problem)


def _server_sent_events(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Parse an event stream (WHATWG HTML, section 9.2) into its fields; comments are dropped."""
    event: dict[str, str] = {}
    for line in lines:
        if not line:
            if "data" in event:
                yield event
            event = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            event[name] = f"{event[name]}\n{value}" if name == "data" and name in event else value
