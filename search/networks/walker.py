"""From a graph of ATen operators to nodes of a `.kerf` document: names, tensors and the order of nodes. What each
operator becomes is in `search.networks.aten`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, fx

from device_agent.contracts import NETWORK_INPUT, ContractError
from search.networks.capture import Capture, Leaf
from search.networks.document import NetworkNode
from search.networks.file import FloatArray
from search.networks.ops import NetworkOp


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ShapedLeaf:
    """A tensor of the network that is read as an operand, maybe in another shape."""

    leaf: Leaf
    shape: tuple[int, ...]


COMPUTED = (
    "is computed and no parameter of the network: remove parametrisations such as weight norm first "
    "(torch.nn.utils.parametrize.remove_parametrizations)"
)

_TORCH = f"{os.path.dirname(torch.__file__)}{os.sep}"

#: What a node of the graph stands for: a node of the document, several of them, or a tensor of the network.
Value = str | list[str] | ShapedLeaf


@dataclass(slots=True, eq=False)
class Walker:
    """The document so far. `computed_by` has the document's node for each node of the graph."""

    capture: Capture
    nodes: list[NetworkNode] = field(default_factory=list)
    tensors: dict[str, FloatArray] = field(default_factory=dict)
    #: The name in the document for each name of a tensor in the original.
    renamed: dict[str, str] = field(default_factory=dict)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    computed_by: dict[fx.Node, str] = field(default_factory=dict)
    #: Nodes of the graph that write into the tensor that they read.
    writes: list[fx.Node] = field(default_factory=list)
    #: What was written as something else that computes the same at the size of the example.
    notes: list[str] = field(default_factory=list)
    _names: set[str] = field(default_factory=lambda: {NETWORK_INPUT})

    def emit(self, node: fx.Node, op: NetworkOp, inputs: Sequence[str], **attributes: Any) -> str:
        """Add an operator without tensors; returns its name."""
        # Dropout becomes a module of this name, beside those of the original.
        modules = {leaf.name.partition(".")[0] for leaf in self.capture.leaves.values()}
        wanted = node.name.rstrip("_") or "node"
        return self._add(node, op, inputs, attributes, self._unique(wanted, modules))

    def emit_weighted(
        self,
        node: fx.Node,
        op: NetworkOp,
        inputs: Sequence[str],
        leaves: Mapping[str, Leaf | None],
        statistics: Iterable[str] = (),
        **attributes: Any,
    ) -> str:
        """Add an operator with tensors, called after the module that holds them."""
        given = {role: leaf for role, leaf in leaves.items() if leaf is not None}
        path = self.module_path(given) or node.name
        names = {role: f"{path}.{role}" for role in given}
        for role, leaf in given.items():
            self._store(node, leaf, names[role], tuple(leaf.tensor.shape))
        frozen = tuple(r for r, leaf in sorted(given.items()) if not leaf.is_trained and r not in statistics)
        return self._add(node, op, inputs, attributes, self._unique(path), names, frozen)

    def operand(self, node: fx.Node, source: Any) -> str:
        """The document's node behind an argument of `node`."""
        value = self.values.get(source) if isinstance(source, fx.Node) else None
        if isinstance(value, str):
            return value
        if isinstance(value, ShapedLeaf):
            return self._parameter(node, value)
        return refuse(node, f"it reads {source}, which is no tensor of the network")

    def leaf(self, node: fx.Node, source: Any, role: str) -> Leaf | None:
        """The tensor of the network behind an argument, in its own shape; None where the argument is None."""
        if source is None:
            return None
        value = self.values.get(source)
        if not isinstance(value, ShapedLeaf) or value.shape != tuple(value.leaf.tensor.shape):
            refuse(node, f"its {role} {COMPUTED}")
        return value.leaf

    def module_path(self, leaves: Mapping[str, Leaf]) -> str:
        """The module that holds just these tensors; else the name of the first tensor; empty for the root module's."""
        weight = next(iter(leaves.values()), None)
        if weight is None:
            return ""
        path = weight.name.rpartition(".")[0]
        if all(leaf.name == (f"{path}.{role}" if path else role) for role, leaf in leaves.items()):
            others = {leaf.name for leaf in self.capture.leaves.values()} - {leaf.name for leaf in leaves.values()}
            if not path or not any(n.startswith(f"{path}.") and not n.endswith("_tracked") for n in others):
                return path
        return weight.name

    def reaching(self, outputs: Sequence[str]) -> tuple[NetworkNode, ...]:
        """The nodes that the outputs need."""
        wanted = set(outputs)
        for node in reversed(self.nodes):
            if node.name in wanted:
                wanted.update(node.inputs)
        return tuple(node for node in self.nodes if node.name in wanted)

    def _parameter(self, node: fx.Node, value: ShapedLeaf) -> str:
        name = value.leaf.name
        self._store(node, value.leaf, name, value.shape)
        for known in self.nodes:
            if known.op is NetworkOp.PARAMETER and known.weights["value"] == name:
                if known.attributes["shape"] != list(value.shape):
                    refuse(node, f"it reads {name!r} as {value.shape}, elsewhere as {known.attributes['shape']}")
                return known.name
        frozen = () if value.leaf.is_trained else ("value",)
        attributes = {"shape": list(value.shape)}
        return self._add(node, NetworkOp.PARAMETER, (), attributes, self._unique(name), {"value": name}, frozen)

    def _store(self, node: fx.Node, leaf: Leaf, name: str, shape: tuple[int, ...]) -> None:
        other = self.renamed.setdefault(leaf.name, name)
        if other != name:
            refuse(
                node,
                f"the tensor {leaf.name!r} is also used by the layer of {other!r}, with other tensors or in another "
                "way: share whole modules, or give each its own tensors",
            )
        if str(leaf.tensor.dtype) != "torch.float32":
            refuse(node, f"the tensor {leaf.name!r} is {leaf.tensor.dtype}: convert a network in float32")
        self.tensors[name] = np.array(leaf.tensor.cpu().numpy(), dtype=np.float32).reshape(shape)

    def _add(
        self,
        node: fx.Node,
        op: NetworkOp,
        inputs: Sequence[str],
        attributes: Mapping[str, Any],
        name: str,
        weights: Mapping[str, str] | None = None,
        frozen: tuple[str, ...] = (),
    ) -> str:
        try:
            made = NetworkNode(
                name=name, op=op, inputs=tuple(inputs), attributes=attributes, weights=weights or {}, frozen=frozen
            )
        except ContractError as error:
            refuse(node, str(error))
        self.nodes.append(made)
        return name

    def _unique(self, wanted: str, taken: Collection[str] = ()) -> str:
        name, count = wanted, 1
        while name in self._names or name in taken:
            count += 1
            name = f"{wanted}_{count}"
        self._names.add(name)
        return name


def refuse(node: fx.Node, reason: str) -> NoReturn:
    """Raise the error for a node of the original, with the module and the line that it comes from."""
    raise ContractError(f"{place_of(node)} cannot be converted: {reason}")


def place_of(node: fx.Node) -> str:
    """A node of the original in words: its operator, its module and the line of the user's code."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((str(entry[0]) for entry in reversed(list(stack.values()))), "")
    path = re.sub(r"^L\['self'\]\.?", "", path)
    lines = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    # The user's code that calls a module of torch, rather than that module's own.
    lines = [line for line in lines if not line[0].startswith(_TORCH)] or lines
    where = "".join((f" in {path!r}" if path else "", f", {lines[-1][0]}:{lines[-1][1]}" if lines else ""))
    return f"{node.name} ({node.target}){where}"


def arguments(node: fx.Node) -> dict[str, Any]:
    """The arguments of an ATen call by their names in its schema, defaults filled in."""
    schema = node.target._schema  # type: ignore[union-attr]
    found: dict[str, Any] = {}
    for position, argument in enumerate(schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        given = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name, default)
        found[argument.name] = list(given) if isinstance(given, list | tuple) else given
    return found


def shape_of(node: fx.Node) -> tuple[Any, ...]:
    """The shape of a node's tensor with the batch."""
    value = node.meta.get("val")
    if not isinstance(value, Tensor):
        refuse(node, "it is no tensor")
    return tuple(value.shape)
