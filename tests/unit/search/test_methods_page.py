"""The configs that docs/methods.md shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from search.domain.config import Method, parse_config

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
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


def test_examples_are_there_for_all_methods_and_told_of() -> None:
    files = sorted((ROOT / "examples").glob("*.yaml"))
    methods = {parse_config(yaml.safe_load(path.read_text(encoding="utf-8"))).method.name for path in files}
    # One policy's config serves the rules, too; the others are baselines.
    assert methods >= set(Method) - {Method.RULE_MAPPING, Method.NSGA2, Method.RANDOM}
    for path in files:
        assert f"(../examples/{path.name})" in PAGE or f"examples/{path.name}" in README
    assert all((ROOT / "docs" / link).is_file() for link in re.findall(r"\]\((\.\./examples/[^)]+)\)", PAGE))
