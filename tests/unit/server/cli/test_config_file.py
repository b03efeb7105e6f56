"""Reading a search's YAML and the files it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from search.domain.config import Method
from server.cli.config_file import ConfigFileError, check_files, load_config, with_overrides

EXAMPLES = Path(__file__).parents[4] / "examples"


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.stem)
def test_the_examples_are_valid(path: Path) -> None:
    config = load_config(path)
    assert config.name == path.stem
    assert config.selection.candidates >= 4


def test_an_override_replaces_only_what_it_names() -> None:
    config = load_config(EXAMPLES / "cifar10-resnet20.yaml")
    changed = with_overrides(config, method="random", seed=7, latency_from=None, devices=["board"])
    assert (changed.method.name, changed.method.seed, changed.device) == (Method.RANDOM, 7, "board")
    assert changed.method.population == config.method.population
    with pytest.raises(ConfigFileError, match="'annealing'; known are jcw, aacp, nsga2, random"):
        with_overrides(config, method="annealing", seed=None, latency_from=None)


def test_a_missing_file_is_named_with_its_role(tmp_path: Path) -> None:
    config = load_config(EXAMPLES / "cifar10-resnet20.yaml")
    with pytest.raises(ConfigFileError, match="--data"):
        check_files(config, None)
    with pytest.raises(ConfigFileError, match=r"checkpoint: there is no file .*resnet20-cifar10-jpeg.safetensors"):
        check_files(config, tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- a", "is a mapping"),
        ("", "mapping"),
        ("name: a\nmethod:\n  seed: 1\n  seed: 2\n", "the key 'seed' of line 3 is there again in line 4"),
        ("a: &x {b: 1}\nc: [*x, *x, {d: 1, 'd': 2}]\n", "the key 'd' of line 2"),
    ],
)
def test_what_is_no_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "search.yaml"
    path.write_text(text)
    with pytest.raises(ConfigFileError, match=message):
        load_config(path)
    with pytest.raises(ConfigFileError, match="cannot read the config"):
        load_config(tmp_path / "none.yaml")
