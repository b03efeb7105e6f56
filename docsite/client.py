"""The reference of the Python client: what mkdocstrings reads, and how methods look to a caller."""

from __future__ import annotations

from typing import Any

import griffe

_INTRODUCTION = """\
# The client's methods

From the docstrings of `kerf`; [Python client](../python.md) is the introduction. `kerf.AsyncClient` has the same
methods, each of which is a coroutine. Answers are dictionaries with the types of [kerf.schemas](rest.md#schemas).
"""

#: Of the client's attributes, the classes of their methods.
_RESOURCES = {
    "searches": "kerf.resources.searches.Searches",
    "devices": "kerf.resources.devices.Devices",
    "latency": "kerf.resources.latency.LatencyDatabase",
    "models": "kerf.resources.models.Models",
    "datasets": "kerf.resources.datasets.Datasets",
    "artifacts": "kerf.resources.artifacts.Artifacts",
    "tokens": "kerf.resources.tokens.Tokens",
    "status": "kerf.resources.status.Status",
}


def page() -> str:
    """The page as Markdown with the marks that mkdocstrings replaces."""
    parts = [_INTRODUCTION, "## Clients\n", "::: kerf.Client\n", "::: kerf.AsyncClient\n"]
    for name, path in _RESOURCES.items():
        parts += [f"## client.{name}\n", f"::: {path}\n    options:\n      show_root_heading: false\n"]
    parts += ["## Searches and fronts\n", "::: kerf.Search\n", "::: kerf.Front\n", "::: kerf.FrontPlot\n"]
    parts += ["## Errors\n", "::: kerf.errors\n    options:\n      show_root_heading: false\n"]
    return "\n".join(parts)


class Operations(griffe.Extension):
    """Methods of resources are written as what they send, `Request[T]`; who calls them gets a `T`."""

    def on_function(self, *, func: griffe.Function, **_: Any) -> None:
        returns = func.returns
        if isinstance(returns, griffe.ExprSubscript) and str(returns.left).endswith("Request"):
            func.returns = returns.slice
        # A procedure is a coroutine function for itself, and an ordinary method of `Client`.
        if func.has_labels("async") and any("procedure" in str(d.value) for d in func.decorators):
            func.labels.discard("async")
        func.decorators = [d for d in func.decorators if not str(d.value).startswith(("operation", "procedure"))]
