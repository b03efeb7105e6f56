"""From an ONNX graph to nodes of a `.kerf` document: names, tensors, and what ONNX writes as several nodes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from device_agent.contracts import NETWORK_INPUT, ContractError
from search.networks.document import NetworkNode, check_node_name
from search.networks.file import FloatArray
from search.networks.from_onnx.model import Array, OnnxGraph, OnnxNode, refuse
from search.networks.ops import NetworkOp

_SIXTH = 1 / 6


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Weight:
    """Values of a tensor, and the constant of the file that they come from."""

    source: str
    values: Array


@dataclass(slots=True, eq=False)
class Writer:
    """The document so far. `values` has the document's node for each tensor of the file, `computed_by` the tensor of
    the file for each node that gives the same.
    """

    graph: OnnxGraph
    nodes: list[NetworkNode] = field(default_factory=list)
    tensors: dict[str, FloatArray] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    computed_by: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    _by_name: dict[str, NetworkNode] = field(default_factory=dict)
    #: The module that was made of an operator, its attributes and its constants.
    _modules: dict[tuple[object, ...], str] = field(default_factory=dict)
    #: The module that first held a constant of more than one axis.
    _holders: dict[str, str] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=lambda: {NETWORK_INPUT})
    #: What the names that are taken lie inside of.
    _parents: set[str] = field(default_factory=set)
    _readers: dict[str, list[OnnxNode]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for node in self.graph.nodes:
            for value in dict.fromkeys(node.inputs):
                self._readers.setdefault(value, []).append(node)

    def only_reader(self, value: str) -> OnnxNode | None:
        """The node that reads a tensor, where it is the only one and the tensor is no output."""
        readers = self._readers.get(value, [])
        return readers[0] if len(readers) == 1 and value not in self.graph.outputs else None

    def shape(self, value: str) -> tuple[int, ...]:
        """The shape of a tensor with the batch."""
        constant = self.graph.constants.get(value)
        return self.graph.shapes[value] if constant is None else constant.shape

    def constant(self, node: OnnxNode, position: int) -> Array | None:
        """The constant that an input is, or None where it is left out. Refuses what is computed from the image."""
        if position >= len(node.inputs) or not node.inputs[position]:
            return None
        value = self.graph.constants.get(node.inputs[position])
        if value is None:
            refuse(node, f"its input {node.inputs[position]!r} is computed from the image, but must be a constant")
        return value

    def integers(self, node: OnnxNode, position: int) -> list[int] | None:
        """An input of whole numbers."""
        value = self.constant(node, position)
        return None if value is None else [int(n) for n in value.reshape(-1)]

    def number(self, node: OnnxNode, position: int) -> float | None:
        """An input of one number."""
        value = self.constant(node, position)
        if value is not None and value.size != 1:
            refuse(node, f"its input {node.inputs[position]!r} has {value.size} values, but must be one number")
        return None if value is None else float(value.reshape(()))

    def weight(self, node: OnnxNode, position: int) -> Weight | None:
        """A constant float32 tensor."""
        value = self.constant(node, position)
        if value is None:
            return None
        if value.dtype != np.float32:
            refuse(node, f"its tensor {node.inputs[position]!r} is {value.dtype}: export the network in float32")
        return Weight(source=node.inputs[position], values=value)

    def operand(self, node: OnnxNode, position: int = 0) -> str:
        """The document's node behind an input; a parameter where it is a constant."""
        name = node.inputs[position] if position < len(node.inputs) else ""
        if name in self.values:
            return self.values[name]
        weight = self.weight(node, position)
        if weight is None:
            refuse(node, f"its input {position} is missing")
        return self._parameter(node, weight)

    def node(self, name: str) -> NetworkNode | None:
        """The document's node of this name; None for the network's input."""
        return self._by_name.get(name)

    def emit(self, node: OnnxNode, op: NetworkOp, inputs: Sequence[str], **attributes: Any) -> str:
        """Add an operator without tensors, or the one that it makes together with what it reads; returns its name."""
        return self._fused(node, op, inputs, attributes) or self._add(
            node, op, inputs, attributes, self._free(_label(node).replace(".", "_"))
        )

    def emit_weighted(
        self,
        node: OnnxNode,
        op: NetworkOp,
        inputs: Sequence[str],
        weights: Mapping[str, Weight | None],
        frozen: tuple[str, ...] = (),
        **attributes: Any,
    ) -> str:
        """Add an operator with tensors, called after its weight in the file or after the node."""
        given = {role: weight for role, weight in weights.items() if weight is not None}
        identity = (op, repr(sorted(attributes.items())), tuple((role, w.source) for role, w in given.items()))
        path = self._modules.get(identity)
        if path is None:
            name = path = self._free(_module_path(node, given))
            self._modules[identity] = path
            for role, weight in given.items():
                self._store(f"{path}.{role}", weight)
        else:
            name = self._free(path)
        names = {role: f"{path}.{role}" for role in given}
        return self._add(node, op, inputs, attributes, name, names, frozen)

    def skip(self, node: OnnxNode, value: str) -> None:
        """`node` is in the document already, as a part of `value`."""
        self.values[node.outputs[0]] = value
        self.computed_by[value] = node.outputs[0]

    def reaching(self, outputs: Sequence[str]) -> tuple[NetworkNode, ...]:
        """The nodes that the outputs need."""
        wanted = set(outputs)
        for node in reversed(self.nodes):
            if node.name in wanted:
                wanted.update(node.inputs)
        return tuple(node for node in self.nodes if node.name in wanted)

    def _store(self, name: str, weight: Weight) -> None:
        self.tensors[name] = np.array(weight.values, dtype=np.float32)
        if weight.values.ndim > 1:
            other = self._holders.setdefault(weight.source, name)
            if other != name:
                self.notes.append(
                    f"{other!r} and {name!r} were one tensor in the file, and are trained as two: their layers differ"
                )

    def _parameter(self, node: OnnxNode, weight: Weight) -> str:
        identity = (NetworkOp.PARAMETER, weight.source)
        known = self._modules.get(identity)
        if known is None:
            known = self._free(_plain_name(weight.source) or _label(node))
            self._modules[identity] = known
            self.tensors[known] = np.array(weight.values, dtype=np.float32)
            shape = list(weight.values.shape)
            self._add(node, NetworkOp.PARAMETER, (), {"shape": shape}, known, {"value": known})
        return known

    def _add(
        self,
        node: OnnxNode,
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
        self._by_name[name] = made
        return name

    def _fused(self, node: OnnxNode, op: NetworkOp, inputs: Sequence[str], a: Mapping[str, Any]) -> str | None:
        """What this operator and those in front of it are together. Those that nothing else reads are left out."""
        sources = [self._by_name.get(name) for name in inputs]
        first = sources[0] if sources else None
        if op is NetworkOp.MUL:
            for x, gate in (inputs, inputs[::-1]):
                made = self._by_name.get(gate)
                if made is not None and made.inputs == (x,) and made.op in _TIMES_ITSELF:
                    return self.emit(node, _TIMES_ITSELF[made.op], [x])
        if first is None:
            return None
        if op is NetworkOp.AFFINE and abs(a["scale"] - _SIXTH) < 1e-6 and a["offset"] == 0:
            shifted = self._of_shifted_relu6(first.name)
            if shifted is not None:
                return self.emit(node, NetworkOp.HARDSIGMOID, [shifted])
            if first.op is NetworkOp.MUL:
                for x, gate in (first.inputs, first.inputs[::-1]):
                    if self._of_shifted_relu6(gate) == x:
                        return self.emit(node, NetworkOp.HARDSWISH, [x])
        if op is NetworkOp.CLAMP and (a["min"], a["max"]) == (None, 6) and first.op is NetworkOp.RELU:
            return self.emit(node, NetworkOp.RELU6, first.inputs)
        if op is NetworkOp.SLICE and first.op is NetworkOp.SLICE and a["axis"] == 3:
            rows = {**a, "axis": 2}
            if dict(first.attributes) == rows and (a["start"], a["stop"]) == (0, None):
                return self.emit(node, NetworkOp.SUBSAMPLE, first.inputs, stride=a["step"])
        return None

    def _of_shifted_relu6(self, name: str) -> str | None:
        """x, where `name` is relu6(x + 3)."""
        clamp = self._by_name.get(name)
        shift = self._by_name.get(clamp.inputs[0]) if clamp is not None and clamp.op is NetworkOp.RELU6 else None
        is_shift = shift is not None and shift.op is NetworkOp.AFFINE
        return shift.inputs[0] if shift is not None and is_shift and _by_three(shift.attributes) else None

    def _free(self, wanted: str) -> str:
        """A name for a node, a module or a parameter: not taken, and neither inside of another nor around one."""
        name, count = wanted, 1
        while name in self._taken or name in self._parents or self._taken.intersection(_parents(name)):
            count += 1
            name = f"{wanted}_{count}"
        self._taken.add(name)
        self._parents.update(_parents(name))
        return name


_TIMES_ITSELF = {NetworkOp.SIGMOID: NetworkOp.SILU, NetworkOp.HARDSIGMOID: NetworkOp.HARDSWISH}


def _by_three(attributes: Mapping[str, Any]) -> bool:
    return (attributes["scale"], attributes["offset"]) == (1.0, 3.0)


def _parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def _module_path(node: OnnxNode, weights: Mapping[str, Weight]) -> str:
    """What the exporter called the module: a weight's name in front of ".weight", else the node's place."""
    for role, weight in weights.items():
        path, _, last = weight.source.rpartition(".")
        if last == role and _plain_name(path):
            return path
    scope = _label(node).rpartition(".")[0]
    return scope or _label(node)


def _label(node: OnnxNode) -> str:
    """A readable name: "/features/features.0/Conv" is features.0.conv, and "node_conv2d" is conv2d."""
    *scope, last = [part for part in node.name.split("/") if part] or [node.op]
    path: list[str] = []
    for part in scope:
        # Each part of the path may begin with those in front of it.
        if path and part.startswith(f"{path[-1]}."):
            path.pop()
        path.append(part)
    if not scope:
        last = last.removeprefix("node_")
    parts = [re.sub(r"\W", "_", part, flags=re.ASCII) for part in ".".join([*path, last.lower()]).split(".")]
    return ".".join(_allowed(part) for part in parts if part)


def _plain_name(name: str) -> str:
    """`name` where a document may have it, else empty."""
    try:
        check_node_name(name)
    except ContractError:
        return ""
    return name


def _allowed(part: str) -> str:
    return part if _plain_name(part) else f"n{part[:100]}"
