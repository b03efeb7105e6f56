"""Requests made up from the OpenAPI document, sound and unsound ones, against the whole application.

    python -m tests.fuzz.api [--cases 20000] [--seed 0] [--database URL] [--json FILE]

Every answer must have a documented status below 500 and the form that the document gives for it; every refusal must be
a problem document. Identities are drawn from what is stored half of the time, as made up ones only ever give 404. Ends
with code 1, naming the requests, where anything else came.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jsonschema_rs
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from server.accounts.service import Scope
from server.app import create_app
from server.database import upgrade
from server.settings import Settings
from tests.fuzz.hostile import hostile_bodies
from tests.unit.server.server_lab import LabAgent, ServerLab, measurement, report_of

#: Limits of the fuzzed server: small, so that large bodies need not be made.
MAX_BODY_BYTES = 1 << 20
#: What agents call: their tokens alone are let in.
_AGENTS = ("/v1/agents:heartbeat", "/v1/leases", "/v1/reports")


@dataclass(slots=True)
class Findings:
    """What was sent, what came, and what should not have come: the first case of each kind."""

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: dict[str, str] = field(default_factory=dict)


class ApiFuzzer:
    """Fuzzes the application of one lab."""

    def __init__(self, lab: ServerLab, agent: LabAgent, stored: Mapping[str, Sequence[str]]) -> None:
        self._lab = lab
        self._agent = agent
        self._stored = stored
        self._document = lab.client.app.openapi()  # type: ignore[attr-defined]
        self._schema = schemathesis.openapi.from_dict(self._document)
        self._validators: dict[str, Any] = {}
        self.findings = Findings()

    def run(self, cases: int, seed_value: int, *, num_operations: int | None = None) -> Findings:
        """About `cases` requests, divided evenly among the operations, and all hostile bodies.

        `num_operations` takes only so many, drawn from the seed.
        """
        operations = [found.ok() for found in self._schema.get_all_operations()]
        if num_operations is not None:
            operations = random.Random(seed_value).sample(operations, num_operations)
        share = max(1, cases // (2 * len(operations)))
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                self._explore(operation, mode, share, seed_value)
            if operation.body:
                self._send_hostile(operation.method.upper(), operation.path)
        return self.findings

    def _explore(self, operation: Any, mode: GenerationMode, count: int, seed_value: int) -> None:

        @seed(seed_value)
        @settings(
            max_examples=count,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
        def explore(case: Any, data: st.DataObject) -> None:
            if case.path_parameters:
                for parameter in list(case.path_parameters):
                    known = self._stored.get(parameter, ())
                    if known and data.draw(st.booleans()):
                        case.path_parameters[parameter] = data.draw(st.sampled_from(known))
            self._send(case)

        try:
            explore()
        except Exception as error:
            if type(error).__name__ not in ("Unsatisfiable", "SkipTest"):
                raise
            # Nothing can be wrong with a request that has neither parameters nor a body.
            assert mode is GenerationMode.NEGATIVE, operation.label

    def _send(self, case: Any) -> None:
        sent = case.as_transport_kwargs(base_url="http://testserver")
        headers = {str(k): str(v) for k, v in (sent.get("headers") or {}).items() if str(v).isascii()}
        headers |= {"Authorization": f"Bearer {self._token(case.operation.path)}"}
        body: dict[str, Any] = {}
        if "json" in sent:
            value = sent["json"]
            if case.operation.path == "/v1/leases" and isinstance(value, dict) and "wait_s" in value:
                # A sound request waits as long as it says.
                value = {**value, "wait_s": min(value["wait_s"], 0)} if _is_number(value["wait_s"]) else value
            body["content"] = json.dumps(value).encode("utf-8", "surrogatepass")
            headers["Content-Type"] = "application/json"
        elif sent.get("data") is not None:
            body["content"] = sent["data"] if isinstance(sent["data"], bytes) else str(sent["data"]).encode()
        self._exchange(
            case.operation.method.upper(), case.operation.path, sent["url"], headers, sent.get("params"), body
        )

    def _send_hostile(self, method: str, path: str) -> None:
        url = path
        for parameter, known in self._stored.items():
            url = url.replace("{" + parameter + "}", known[0])
        headers = {"Authorization": f"Bearer {self._token(path)}", "Content-Type": "application/json"}
        for name, content in hostile_bodies(MAX_BODY_BYTES):
            self._exchange(method, path, f"http://testserver{url}", headers, None, {"content": content}, name)

    def _token(self, path: str) -> str:
        return self._agent.token if path.startswith(_AGENTS) else self._lab.admin

    def _exchange(
        self,
        method: str,
        path: str,
        url: str,
        headers: Mapping[str, str],
        params: Any,
        body: Mapping[str, Any],
        note: str = "",
    ) -> None:
        response = self._lab.client.request(method, url, headers=headers, params=params, **body)
        self.findings.cases += 1
        self.findings.statuses[response.status_code] += 1
        problem = self._problem(method, path, response)
        if problem is not None:
            sent = repr(body.get("content", b""))[:1000]
            self.findings.wrong.setdefault(
                f"{method} {path}: {problem[:200]}", f"{note} {url} {params} {sent}\n  -> {response.text[:500]}"
            )

    def _problem(self, method: str, path: str, response: Any) -> str | None:
        """What is wrong with an answer; None where nothing is."""
        status, kind = response.status_code, response.headers.get("content-type", "")
        if status >= 500:
            return f"status {status}"
        documented = self._document["paths"][path][method.lower()]["responses"]
        if str(status) not in documented:
            return f"status {status} is not documented"
        if method == "HEAD" or status in (204, 304):
            return None
        if status >= 400:
            if kind != "application/problem+json":
                return f"status {status} is {kind!r}, no problem document"
            return self._mismatch("Problem", {"$ref": "#/components/schemas/Problem"}, response)
        content = documented[str(status)].get("content", {})
        if "json" not in kind:
            return None
        schema = content.get("application/json", {}).get("schema", {})
        return self._mismatch(f"{method} {path} {status}", schema, response)

    def _mismatch(self, name: str, schema: Mapping[str, Any], response: Any) -> str | None:
        if name not in self._validators:
            whole = {**schema, "components": self._document["components"]}
            self._validators[name] = jsonschema_rs.Draft202012Validator(whole)
        try:
            value = json.loads(response.content, parse_constant=_refuse_constant)
        except ValueError as error:
            return f"the answer is not JSON: {error}"
        error = next(iter(self._validators[name].iter_errors(value)), None)
        return None if error is None else f"the answer is not as documented: {str(error)[:150]}"


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no JSON")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@contextmanager
def stocked_lab(folder: Path, database_url: str = "") -> Iterator[tuple[ServerLab, LabAgent, dict[str, list[str]]]]:
    """An application with something of each kind in it, and the identities of that by the names of parameters."""
    options = Settings(
        data_dir=folder,
        database_url=database_url,
        max_body_bytes=MAX_BODY_BYTES,
        poll_interval_s=0.02,
        reap_interval_s=1.0,
    )
    upgrade(options)
    with TestClient(create_app(options), raise_server_exceptions=False) as client:
        lab = ServerLab(client, options)
        # A user without the right to revoke the tokens of the others would only ever meet 403.
        lab.admin = lab.user_token(*Scope)
        agent = lab.agent()
        over, waiting = lab.search(agent.device_id, "over"), lab.search(agent.device_id, "waiting")
        lab.tasks(agent, 3, search_id=waiting)
        leases = lab.lease(agent, 2)
        lab.report(agent, report_of(leases[0], measurement()))
        lab.post(f"/v1/searches/{over}:cancel", token=lab.admin)
        digest = "ab" * 32
        keys = [item["result_key"] for item in lab.get("/v1/measurements").json()["items"]]
        series = [item["id"] for item in lab.get("/v1/latency-series").json()["items"]]
        kernels = [item["id"] for item in lab.get("/v1/kernels").json()["items"]]
        stored = {
            # Only a search that is over: the events of an open one are followed without end.
            "search_id": [over],
            "device_id": [agent.device_id],
            "lease_id": [lease.lease_id for lease in leases],
            "result_key": keys,
            "series_id": series,
            "id_": kernels,
            "subject": kernels,
            "digest": [digest],
            "candidate_id": ["c0"],
            "dataset_id": ["dataset_0"],
            "token_id": ["token_0"],
        }
        try:
            yield lab, agent, stored
        finally:
            lab.close()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", default="", help="URL of an empty database (default: SQLite)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    began_at = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="kerf-fuzz-") as folder,
        stocked_lab(Path(folder), options.database) as (lab, agent, stored),
    ):
        findings = ApiFuzzer(lab, agent, stored).run(options.cases, options.seed)
    result = {
        "cases": findings.cases,
        "statuses": {str(status): count for status, count in sorted(findings.statuses.items())},
        "wrong": len(findings.wrong),
        "seed": options.seed,
        "seconds": round(time.monotonic() - began_at, 1),
    }
    print(json.dumps(result, indent=1))
    for what, example in findings.wrong.items():
        print(f"{what}\n  {example}", file=sys.stderr)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 1 if findings.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
