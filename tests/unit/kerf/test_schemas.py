"""The client's types are those of the OpenAPI document."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.unit.kerf.client_schemas import python_source

ROOT = Path(__file__).parents[3]


def test_the_types_are_those_of_the_openapi_document() -> None:
    document = json.loads((ROOT / "tests" / "fixtures" / "openapi.json").read_text(encoding="utf-8"))
    path = ROOT / "kerf" / "schemas.py"
    source = python_source(document)
    if os.environ.get("KERF_UPDATE_SNAPSHOTS"):
        path.write_text(source, encoding="utf-8")
    assert path.read_text(encoding="utf-8") == source
