"""The JSON schema of a search's config."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter

from search.domain.config import SearchConfig

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def config_schema() -> dict[str, Any]:
    """What `search.domain.config.parse_config` takes, as far as a schema can say it: names, types and the words that
    are known, not how values go together. Unknown keys are refused, as they are there.
    """
    schema = TypeAdapter(SearchConfig).json_schema()
    for part in (schema, *schema.get("$defs", {}).values()):
        if "properties" in part:
            part["additionalProperties"] = False
    return {"$schema": DIALECT, **schema}
