"""The example notebook runs from its first cell to its last against a real server, worker and agent.

Its code cells are executed in order in this process, not in a Jupyter kernel, which would be a heavy dependency for
little: all that it adds is how last values are shown, and that is called here too.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from server.cli.local_stack import LocalStack

pytestmark = pytest.mark.xdist_group("stack")

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"


def run_cell(source: str, names: dict[str, Any]) -> Any:
    """Execute a cell, and return the value of its last expression, which a notebook would show."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return None if last is None else eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names)  # type: ignore[attr-defined]


def test_the_notebook_runs(
    simulated_stack: LocalStack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("pandas", reason="needs pandas: pip install '.[notebook]'")
    monkeypatch.setenv("KERF_SERVER", simulated_stack.url)
    monkeypatch.setenv("KERF_TOKEN", simulated_stack.token)
    monkeypatch.chdir(tmp_path)
    cells = [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]
    assert all(not cell["outputs"] for cell in cells)
    names: dict[str, Any] = {}
    shown = [run_cell("".join(cell["source"]), names) for cell in cells]

    table, plot = names["table"], shown[-3]
    assert len(table) == len(names["front"]) >= 1
    assert (table["accuracy"] > 0.1).all()
    assert plot._repr_png_().startswith(b"\x89PNG")
    assert names["best"].candidate_id in names["front"]._repr_html_()
    assert (tmp_path / "network.kerfnet").stat().st_size > 0
    assert shown[-1]
    assert "train the front" in capsys.readouterr().out
    names["client"].close()
