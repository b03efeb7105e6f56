"""JSON schemas as tables: what the references of config and REST have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

Schema = Mapping[str, Any]


def anchor(name: str) -> str:
    """Where the heading of a named schema lies on its page."""
    return name.lower().replace("[", "").replace("]", "").replace(" ", "-")


def words(schema: Schema) -> str:
    """The type of a value in Markdown, with links to the named ones."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{anchor(name)})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(words(part) for part in schema[several])
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{json.dumps(schema['const'])}`"
    kind = schema.get("type", "any")
    if kind == "array":
        if "prefixItems" in schema:
            return "(" + ", ".join(words(part) for part in schema["prefixItems"]) + ")"
        return f"list of {words(schema.get('items', {}))}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), Mapping):
        return f"map to {words(schema['additionalProperties'])}"
    return str(kind) + _bounds(schema)


def _bounds(schema: Schema) -> str:
    signs = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    told = [f"{sign} {schema[name]}" for name, sign in signs.items() if name in schema]
    return f" {', '.join(told)}" if told else ""


def default(schema: Schema, *, required: bool) -> str:
    """What a key is when it is left out."""
    if required:
        return "must be given"
    return f"`{json.dumps(schema['default'])}`" if "default" in schema else ""


def fields_table(schema: Schema) -> str:
    """A row for each key of an object."""
    rows = ["| key | type | default |", "|---|---|---|"]
    required = schema.get("required", ())
    for name, value in schema.get("properties", {}).items():
        told = value.get("description")
        text = words(value) + (f": {one_line(told)}" if told else "")
        rows.append(f"| `{name}` | {text} | {default(value, required=name in required)} |")
    return "\n".join(rows)


def definition(name: str, schema: Schema, level: str = "###") -> str:
    """A named schema under a heading of its own."""
    parts = [f"{level} {name}"]
    if text := schema.get("description"):
        parts.append(str(text))
    if "properties" in schema:
        parts.append(fields_table(schema))
    elif "description" not in schema or "enum" in schema:
        parts.append(words(schema))
    return "\n\n".join(parts) + "\n"


def one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
