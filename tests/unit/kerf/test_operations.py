"""Every operation of the OpenAPI document has one method, the same in both clients."""

from __future__ import annotations

import ast
import inspect
import json
from pathlib import Path
from typing import Any

import kerf
from kerf.operations import Operation, Procedure
from kerf.resources.searches import SearchOperations

ROOT = Path(__file__).parents[3]
DOCUMENT = json.loads((ROOT / "tests" / "fixtures" / "openapi.json").read_text(encoding="utf-8"))
OPERATIONS = {
    (method.upper(), path): operation
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
}


def resources(client: kerf.Client | kerf.AsyncClient) -> dict[str, Any]:
    return {name: value for name, value in vars(client).items() if not name.startswith("_")}


def methods(resource: object) -> dict[str, Any]:
    """The operations and procedures of a resource by their names."""
    found = {name: inspect.getattr_static(resource, name) for name in dir(resource)}
    return {name: value for name, value in found.items() if isinstance(value, Operation | Procedure)}


def test_every_operation_has_one_method() -> None:
    with kerf.Client("http://server", "token") as client:
        found = [m for r in resources(client).values() for m in methods(r).values() if isinstance(m, Operation)]
    made = [(operation.method, operation.path) for operation in found] + [SearchOperations.events_operation]
    assert len(made) == len(set(made))
    # Agents have a client of their own, which needs nothing but httpx.
    agents = {key for key, operation in OPERATIONS.items() if operation["tags"] == ["agents"]}
    assert set(made) == set(OPERATIONS) - agents
    source = (ROOT / "device_agent" / "client.py").read_text(encoding="utf-8")
    assert [path for _, path in agents if f'"{path}"' not in source] == []


def test_methods_take_what_their_operations_take() -> None:
    """Each parameter of the document is one of the method, or hidden in the names of its filter."""
    with kerf.Client("http://server", "token") as client:
        for resource in resources(client).values():
            for name, method in methods(resource).items():
                if not isinstance(method, Operation):
                    continue
                parameters = OPERATIONS[method.method, method.path].get("parameters", ())
                wanted = {p["name"] for p in parameters if p["in"] == "query"}
                written = inspect.signature(getattr(resource, name)).parameters
                taken = set(written)
                for parameter in written.values():
                    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                        filters = parameter.annotation.removeprefix("Unpack[").removesuffix("]")
                        module = inspect.getmodule(method._written)
                        taken |= set(getattr(module, filters).__annotations__)
                assert wanted <= taken, (method.path, wanted - taken)


def test_both_clients_have_the_same_methods() -> None:
    client, awaited = kerf.Client("http://server", "token"), kerf.AsyncClient("http://server", "token")
    assert resources(client).keys() == resources(awaited).keys()
    for name, resource in resources(client).items():
        other = resources(awaited)[name]
        assert methods(resource) == methods(other)
        assert {n for n in dir(resource) if n[0] != "_"} == {n for n in dir(other) if n[0] != "_"}
        for method in methods(resource):
            assert getattr(resource, method).__doc__, method
            assert list(inspect.signature(getattr(resource, method)).parameters)[:1] != ["self"]
    client.close()


def test_the_page_names_every_method() -> None:
    page = (ROOT / "docs" / "python.md").read_text(encoding="utf-8")
    with kerf.Client("http://server", "token") as client:
        for name, resource in resources(client).items():
            (row,) = [line for line in page.splitlines() if line.startswith(f"| `client.{name}` |")]
            # Lists read pages by themselves, and `upload` is what people put.
            hidden = {n for n in methods(resource) if n.endswith("page")} | {"put", "import_artifact"}
            assert [n for n in methods(resource).keys() - hidden if f"`{n}`" not in row] == []


def test_the_command_line_talks_through_this_client_alone() -> None:
    for path in sorted((ROOT / "server" / "cli").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert not {name.split(".")[0] for name in names} & {"httpx", "requests", "urllib"}, path
    assert not (ROOT / "server" / "client.py").exists()
