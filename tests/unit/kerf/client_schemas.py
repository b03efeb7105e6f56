"""The types of `kerf/schemas.py`, written from the OpenAPI document."""

from __future__ import annotations

import keyword
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

#: What answers are made of, and the closed sets of words that requests use; with all that they refer to.
ROOTS = (
    "CandidateView",
    "CardView",
    "Comparison",
    "DatasetView",
    "DeviceView",
    "EnrolmentCode",
    "EventView",
    "Health",
    "ImportAnswer",
    "JobState",
    "KernelView",
    "LatencyAnswer",
    "LatencyModelView",
    "LatencyView",
    "MeasurementView",
    "ModelList",
    "ModelView",
    "NetworkView",
    "NewToken",
    "Op",
    "Pardon",
    "PredictionAnswer",
    "ProfitMap",
    "PruningScheme",
    "QuarantineView",
    "ReportStatus",
    "SearchView",
    "SeriesView",
    "Source",
    "TableFormat",
    "TokenView",
    "Verdict",
    "Version",
    "WorkerView",
)

_HEADER = '''"""The JSON that the server answers with, as types. Written from the OpenAPI document; do not edit.

`KERF_UPDATE_SNAPSHOTS=1 pytest tests/unit/kerf/test_schemas.py` writes it anew.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias, TypedDict
'''
_SIMPLE = {"string": "str", "integer": "int", "number": "float", "boolean": "bool", "null": "None"}
_WIDTH = 116


def python_source(document: Mapping[str, Any]) -> str:
    """The source of the module."""
    schemas = document["components"]["schemas"]
    names = sorted(_reachable(schemas, ROOTS))
    words = [_alias(name, schemas[name]["enum"]) for name in names if "enum" in schemas[name]]
    classes = [_class(name, schemas[name]) for name in names if "enum" not in schemas[name]]
    return "\n".join([_HEADER, *words]) + "".join(classes) + "\n"


def _reachable(schemas: Mapping[str, Any], roots: Iterable[str]) -> set[str]:
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += _references(schemas[name])
    return found


def _references(schema: object) -> list[str]:
    if isinstance(schema, Mapping):
        own = [schema["$ref"].rpartition("/")[2]] if "$ref" in schema else []
        return own + [name for value in schema.values() for name in _references(value)]
    if isinstance(schema, list):
        return [name for value in schema for name in _references(value)]
    return []


def _alias(name: str, words: list[str]) -> str:
    line = f"{name}: TypeAlias = Literal[" + ", ".join(f'"{word}"' for word in words) + "]"
    if len(line) > _WIDTH + 4:
        line = f"{name}: TypeAlias = Literal[\n" + "".join(f'    "{word}",\n' for word in words) + "]"
    return line


def _class(name: str, schema: Mapping[str, Any]) -> str:
    lines = ["", "", "", f"class {name}(TypedDict):", *_docstring(schema.get("description", ""))]
    for key, value in schema["properties"].items():
        assert key.isidentifier(), key
        assert not keyword.iskeyword(key), key
        lines.append(f"    {key}: {_type(value)}")
    return "\n".join(lines)


def _docstring(text: str) -> list[str]:
    if not text:
        return []
    lines: list[str] = []
    for paragraph in text.split("\n\n"):
        words = " ".join(paragraph.split())
        lines += ["", *textwrap.wrap(words, _WIDTH)] if lines else textwrap.wrap(words, _WIDTH, initial_indent='"""')
    if len(lines) == 1 and len(lines[0]) + 3 <= _WIDTH:
        return [f'    {lines[0]}"""', ""]
    return [*(f"    {line}".rstrip() for line in lines), '    """', ""]


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rpartition("/")[2])
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(option) for option in schema["anyOf"]))
    kind = schema.get("type")
    if kind == "array":
        options = dict.fromkeys(_type(item) for item in schema.get("prefixItems", ()) or (schema.get("items", {}),))
        return f"list[{' | '.join(options)}]"
    if kind == "object":
        values = schema.get("additionalProperties", True)
        return f"dict[str, {_type(values) if isinstance(values, Mapping) else 'Any'}]"
    return _SIMPLE.get(kind, "Any") if isinstance(kind, str) else "Any"
