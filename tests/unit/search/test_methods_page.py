"""The configs that docs/methods.md shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from search.domain.config import Method, parse_config

PAGE = (Path(__file__).parents[3] / "docs" / "methods.md").read_text(encoding="utf-8")
SHOWN = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.mark.parametrize("text", SHOWN, ids=range(len(SHOWN)))
def test_configs_are_valid(text: str) -> None:
    shown = yaml.safe_load(text)
    rest = {
        "name": "shown",
        "model": {"architecture": "resnet20"},
        "dataset": {"train": "train.zip", "test": "test.zip"},
        "space": {"channels": {}},
    }
    assert parse_config(rest | shown).method.name.value == shown["method"]["name"]


def test_every_method_is_there() -> None:
    assert SHOWN
    for method in Method:
        assert f"`{method.value}`" in PAGE
