"""The page of the examples: every file of examples/ that is short enough to read."""

from __future__ import annotations

from pathlib import Path

_EXAMPLES = Path(__file__).parents[1] / "examples"
_LANGUAGES = {".yaml": "yaml", ".py": "python", ".toml": "toml", ".json": "json"}
_INTRODUCTION = """\
# Examples

Whole configs and programs, as they lie in `examples/`. The configs on digits need no files and take minutes;
[Which method when](methods.md) says what each method is for. `quickstart.ipynb` is a notebook.
"""


def page() -> str:
    """The page as Markdown."""
    parts = [_INTRODUCTION]
    for path in sorted(_EXAMPLES.rglob("*")):
        language = _LANGUAGES.get(path.suffix)
        if language is not None:
            name = path.relative_to(_EXAMPLES)
            parts.append(f"## {name}\n\n```{language}\n{path.read_text(encoding='utf-8').rstrip()}\n```\n")
    return "\n".join(parts)
