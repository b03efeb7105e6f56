"""What the source never does: unpickle, evaluate, or fetch an address that somebody gives. Found by reading it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("server", "kerf", "search", "device_agent")

#: Modules that run code from data.
PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "pickletools"}
#: Functions that do, by their last two names, and what makes a call of them safe: a keyword with this value.
UNSAFE_CALLS: dict[str, tuple[str, object] | None] = {
    "torch.load": ("weights_only", True),
    "np.load": ("allow_pickle", False),
    "yaml.load": None,
    "yaml.unsafe_load": None,
    "yaml.full_load": None,
    "export.load": None,
    "jit.load": None,
    "hub.load": None,
    "pandas.read_pickle": None,
    "os.system": None,
    "os.popen": None,
}
#: Builtins that run text.
UNSAFE_BUILTINS = {"eval", "exec", "compile", "__import__"}

#: Modules that open connections to somewhere.
NETWORK = {"urllib.request", "http.client", "httpx", "httpx2", "requests", "aiohttp", "urllib3", "ftplib", "smtplib"}

_WORDS = {*PICKLING, *NETWORK, *(f"{name.rpartition('.')[2]}(" for name in UNSAFE_CALLS), "shell=True"}
_BUILTINS = "|".join(UNSAFE_BUILTINS)
SUSPICIOUS = re.compile("|".join([*map(re.escape, sorted(_WORDS)), rf"(?<![.\w])({_BUILTINS})\("]))

#: The user's own machine, with a switch whose help says what it does: `kerf models convert --trust-file`.
ALLOWED_CALLS = {("search/networks/sources.py", "export.load")}

#: Between a worker and its own children, over a pipe or its own Ray cluster: no file and no request is read so.
ALLOWED_IMPORTS = {("search/parallel/processes.py", "pickle"), ("search/parallel/ray_cluster.py", "pickle")}

#: Who may: the client of our own API, and the commands and agent that use one.
NETWORK_ALLOWED = ("kerf/", "server/cli/", "device_agent/")


def sources() -> list[Path]:
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def called(node: ast.Call) -> str:
    """The last two names of what is called: `torch.load` of `torch.load(...)`, `load` of `load(...)`."""
    function, names = node.func, []
    while isinstance(function, ast.Attribute) and len(names) < 2:
        names.append(function.attr)
        function = function.value
    if isinstance(function, ast.Name) and len(names) < 2:
        names.append(function.id)
    return ".".join(reversed(names))


def unsafe_calls(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        if isinstance(node.func, ast.Name) and name in UNSAFE_BUILTINS:
            yield name
        if name in UNSAFE_CALLS:
            safe = UNSAFE_CALLS[name]
            given = {k.arg: k.value.value for k in node.keywords if isinstance(k.value, ast.Constant)}
            if safe is None or given.get(safe[0]) is not safe[1]:
                yield name
        if any(k.arg == "shell" and getattr(k.value, "value", None) is True for k in node.keywords):
            yield f"{name}(shell=True)"


def test_the_search_finds_what_it_looks_for() -> None:
    bad = (
        "import torch, yaml\ntorch.load(f)\nyaml.load(f)\neval(x)\nrun(x, shell=True)\ntorch.load(f, weights_only=True)"
    )
    assert list(unsafe_calls(ast.parse(bad))) == ["torch.load", "yaml.load", "eval", "run(shell=True)"]
    assert set(imported(ast.parse("from pickle import loads\nimport httpx"))) == {"pickle", "pickle.loads", "httpx"}


@pytest.fixture(scope="module")
def trees() -> dict[str, ast.AST]:
    """The source files of the packages that have one of the words at all, by their path: parsing takes time."""
    texts = {relative(path): path.read_text(encoding="utf-8") for path in sources()}
    assert len(texts) > 300
    return {path: ast.parse(text) for path, text in texts.items() if SUSPICIOUS.search(text)}


def test_nothing_runs_code_from_data(trees: dict[str, ast.AST]) -> None:
    found_imports = {(path, name) for path, tree in trees.items() for name in PICKLING & set(imported(tree))}
    assert found_imports <= ALLOWED_IMPORTS
    found = {(path, call) for path, tree in trees.items() for call in unsafe_calls(tree)}
    assert found == ALLOWED_CALLS


def test_server_worker_and_search_fetch_nothing(trees: dict[str, ast.AST]) -> None:
    """No request forgery by way of the server: it has nothing to make requests with."""
    served = {path: tree for path, tree in trees.items() if not path.startswith(NETWORK_ALLOWED)}
    assert {(path, name) for path, tree in served.items() for name in NETWORK & set(imported(tree))} == set()
