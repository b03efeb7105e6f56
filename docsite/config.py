"""The reference of a search's config, from its JSON schema."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from docsite.schemas import definition, fields_table
from server.searches.config_schema import config_schema

_INTRODUCTION = """\
# Keys of a config

What a config may hold, from the JSON schema that `kerf search schema` prints: names, types and defaults.
[Configuration](../configuration.md) says what each of them is for.

## The whole
"""


def page() -> str:
    """The page as Markdown: parts in the order in which keys name them."""
    schema = config_schema()
    parts = [_INTRODUCTION, fields_table(schema), "\n## The parts\n"]
    parts += [definition(name, schema["$defs"][name]) for name in dict.fromkeys(_named(schema, schema["$defs"]))]
    return "\n".join(parts)


def _named(value: Any, known: dict[str, Any]) -> Iterator[str]:
    """Names of the schemas that a schema leads to, depth first."""
    for node in _nodes({k: v for k, v in value.items() if k != "$defs"}):
        name = node["$ref"].rpartition("/")[2]
        yield name
        yield from _named(known[name], known)


def _nodes(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if "$ref" in value:
            yield value
        for item in value.values():
            yield from _nodes(item)
    elif isinstance(value, list):
        for item in value:
            yield from _nodes(item)
