"""The reference of the REST interface, from the server's OpenAPI document."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from docsite.schemas import definition, one_line, words
from kerf import Client
from kerf.operations import Operation
from server.app import create_app

_INTRODUCTION = """\
# REST

Generated from the OpenAPI document, which a running server has at `/openapi.json`. All paths but `/healthz`, `/readyz`,
`/v1/version` and enrolment want `Authorization: Bearer TOKEN`. What is refused is answered with a
[Problem](#problem) (`application/problem+json`): `code` is stable, `retryable` says whether to try again. Lists are
read page by page: give `next` of the answer as `cursor`. Of each operation the Python client has a
[method](client.md), which is named with it; those without one are for agents.

Any request may be refused with 400 (cannot be read), 401 (no valid token), 403 (the token does not allow it), 404, 409
(not in a state for this), 413 (too large), 422 (a value cannot be used; `errors` names it) and 503 (try again in a
moment).
"""
#: Told once for all.
_USUAL_REFUSALS = {"400", "401", "403", "404", "409", "413", "422", "503"}
_METHODS = ("get", "post", "put", "patch", "delete", "head")


def page() -> str:
    """The page as Markdown: operations by part of the interface, then the schemas."""
    document = create_app().openapi()
    methods = _client_methods()
    by_tag = defaultdict(list)
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                tag = item[method].get("tags", ["status"])[0]
                by_tag[tag].append(_operation(method.upper(), path, item[method], methods))
    parts = [_INTRODUCTION]
    for tag in sorted(by_tag):
        parts += [f"## {tag}\n", *by_tag[tag]]
    parts.append("## Schemas\n")
    schemas = document["components"]["schemas"]
    parts += [definition(name, schemas[name]) for name in sorted(schemas)]
    return "\n".join(parts)


def _operation(method: str, path: str, operation: Mapping[str, Any], methods: Mapping[tuple[str, str], str]) -> str:
    parts = [f"### {method} {path}", operation.get("description", operation["summary"])]
    if name := methods.get((method, path)):
        parts.append(f"In Python: `client.{name}`.")
    if parameters := operation.get("parameters"):
        parts.append(_parameters(parameters))
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"Takes {_content(kind, content)}.")
    for status, response in operation["responses"].items():
        if status.startswith(("2", "3")):
            told = [_content(kind, content) for kind, content in response.get("content", {}).items()]
            parts.append(f"Answers {status}" + (f" with {' or '.join(told)}." if told else "."))
    for status, response in operation["responses"].items():
        if status.startswith(("4", "5")) and status not in _USUAL_REFUSALS:
            parts.append(f"Refuses with {status}: {response['description']}.")
    return "\n\n".join(parts) + "\n"


def _parameters(parameters: list[Mapping[str, Any]]) -> str:
    rows = ["| parameter | in | type | default |", "|---|---|---|---|"]
    for parameter in parameters:
        schema = parameter["schema"]
        told = parameter.get("description")
        text = words(schema) + (f": {one_line(told)}" if told else "")
        default = "must be given" if parameter.get("required") else ""
        if schema.get("default") is not None:
            default = f"`{schema['default']}`"
        rows.append(f"| `{parameter['name']}` | {parameter['in']} | {text} | {default} |")
    return "\n".join(rows)


def _content(kind: str, content: Mapping[str, Any]) -> str:
    schema = content.get("schema", {})
    return f"{words(schema)} (`{kind}`)" if schema else f"`{kind}`"


def _client_methods() -> dict[tuple[str, str], str]:
    """The client's method of each operation, by HTTP method and path: `searches.create`."""
    found = {}
    with Client("http://unused", "unused") as client:
        for resource, bound in sorted(vars(client).items()):
            for name, member in inspect.getmembers_static(type(bound)):
                if isinstance(member, Operation):
                    found[member.method, member.path] = f"{resource}.{name}"
        # Streams are written for each kind of client.
        method, path = client.searches.events_operation
        found[method, path] = "searches.events"
    return found
