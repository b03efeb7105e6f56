"""A network as a document: nodes in execution order over the closed set of operators, and the names of their tensors.

Whatever a file says is checked here, and nothing in it is ever run: names are plain, as torch writes those of modules
into the code of a graph.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from device_agent.contracts import NETWORK_INPUT, ContractError
from search.networks.ops import OPS, NetworkOp, OpSpec

FORMAT_VERSION = 1
MAX_NODES = 10_000
MAX_INPUT_ELEMENTS = 1 << 24
_MAX_NAME_CHARS = 200
_NODE_NAME = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
_NETWORK_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInput:
    """The one input. `shape` is (channels, h, w)."""

    shape: tuple[int, int, int]

    def __post_init__(self) -> None:
        if min(self.shape) < 1 or self.shape[0] * self.shape[1] * self.shape[2] > MAX_INPUT_ELEMENTS:
            raise ContractError(
                f"the shape {self.shape} must be three positive sizes (channels, height, width) with at most "
                f"{MAX_INPUT_ELEMENTS} values"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkNode:
    """One operator. `inputs` are earlier nodes or "input"; `weights` has a tensor's name for each role.

    `frozen` names the roles that training leaves as they are. Nodes with the same tensors are one module that is used
    several times.
    """

    name: str
    op: NetworkOp
    inputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weights: Mapping[str, str] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_node_name(self.name)
        spec = OPS[self.op]
        self._check_inputs(spec)
        self._check_attributes(spec)
        self._check_weights(spec)

    @property
    def module(self) -> str | None:
        """The path of the module that holds the tensors; that of the tensor itself for a parameter."""
        if not self.weights:
            return None
        name = next(iter(self.weights.values()))
        return name if self.op is NetworkOp.PARAMETER else name.rpartition(".")[0]

    @property
    def weight_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of each tensor that the node has, by role."""
        weights = OPS[self.op].weights
        return {} if weights is None else {r: s for r, s in weights(self.attributes).items() if r in self.weights}

    def _check_inputs(self, spec: OpSpec) -> None:
        count = len(self.inputs)
        if not spec.min_inputs <= count <= spec.max_inputs:
            wanted = f"{spec.min_inputs}" if spec.min_inputs == spec.max_inputs else f"{spec.min_inputs} or more"
            raise ContractError(f"{self.name}: {self.op.value} takes {wanted} inputs, not {count}")

    def _check_attributes(self, spec: OpSpec) -> None:
        for name in self.attributes:
            if name not in spec.attributes:
                known = ", ".join(spec.attributes) or "none"
                raise ContractError(f"{self.name}: {self.op.value} has no attribute {name!r}; known are {known}")
        for name, attribute in spec.attributes.items():
            if name not in self.attributes:
                raise ContractError(f"{self.name}: the attribute {name!r} of {self.op.value} is missing")
            value = self.attributes[name]
            if not attribute.accepts(value):
                raise ContractError(f"{self.name}: {name} is {value!r:.80}, but must be {attribute.expected}")
        problem = None if spec.problem is None else spec.problem(self.attributes)
        if problem is not None:
            raise ContractError(f"{self.name}: {problem}")

    def _check_weights(self, spec: OpSpec) -> None:
        roles = set() if spec.weights is None else set(spec.weights(self.attributes))
        unknown = sorted(set(self.weights) - roles)
        if unknown:
            raise ContractError(f"{self.name}: {self.op.value} has no tensor {unknown[0]!r}; known are {sorted(roles)}")
        required = roles - {role for group in spec.optional for role in group}
        together = [set(group) for group in spec.optional if set(group) & set(self.weights)]
        missing = sorted(required.union(*together) - set(self.weights))
        if missing:
            raise ContractError(f"{self.name}: the tensor {missing[0]!r} of {self.op.value} is missing")
        for role, tensor in self.weights.items():
            check_node_name(tensor)
            if self.op is not NetworkOp.PARAMETER and tensor != f"{self.module}.{role}":
                raise ContractError(
                    f"{self.name}: its tensor {role!r} is called {tensor!r}, but the tensors of a node are called "
                    f"after one module: {self.module or 'MODULE'}.{role}"
                )
        trained = set(self.weights) - set(spec.statistics)
        wrong = sorted(set(self.frozen) - trained)
        if wrong or len(set(self.frozen)) != len(self.frozen):
            raise ContractError(
                f"{self.name}: frozen {list(self.frozen)} must name tensors that could be trained, once each: "
                f"{sorted(trained)}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkDocument:
    """A network without the values of its tensors. `outputs` are names of nodes.

    Raises `ContractError` naming the node, the value and the remedy.
    """

    name: str
    input: NetworkInput
    outputs: tuple[str, ...]
    nodes: tuple[NetworkNode, ...]
    format: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format != FORMAT_VERSION:
            raise ContractError(
                f"format {self.format!r} is unknown, only {FORMAT_VERSION} is read: update Kerf, or convert the "
                "network again"
            )
        if len(self.name) > _MAX_NAME_CHARS or not _NETWORK_NAME.fullmatch(self.name):
            raise ContractError(
                f"the name {self.name!r:.80} must be letters, digits, '_', '.' and '-', at most {_MAX_NAME_CHARS}"
            )
        if not 1 <= len(self.nodes) <= MAX_NODES:
            raise ContractError(f"a network has 1 to {MAX_NODES} nodes, not {len(self.nodes)}")
        self._check_flow()
        self._check_modules()

    @property
    def tensor_shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, by name."""
        return {node.weights[role]: shape for node in self.nodes for role, shape in node.weight_shapes.items()}

    def _check_flow(self) -> None:
        known = {NETWORK_INPUT}
        read: set[str] = set(self.outputs)
        for node in self.nodes:
            if node.name in known:
                raise ContractError(f"two nodes are called {node.name!r}: give each a name of its own")
            for source in node.inputs:
                if source not in known:
                    raise ContractError(
                        f"{node.name} reads {source!r:.80}, which no earlier node writes: nodes stand in execution "
                        "order, and none may read what comes of itself"
                    )
            known.add(node.name)
            read.update(node.inputs)
        if not self.outputs or len(set(self.outputs)) != len(self.outputs):
            raise ContractError(f"outputs {list(self.outputs)} must name one or more nodes, once each")
        for name in self.outputs:
            if name not in known or name == NETWORK_INPUT:
                raise ContractError(f"the output {name!r:.80} is no node")
        unread = [name for name in known if name not in read]
        if unread:
            raise ContractError(f"nothing reads {sorted(unread)[0]!r}: leave it out, or make it an output")

    def _check_modules(self) -> None:
        first: dict[str, NetworkNode] = {}
        for node in self.nodes:
            if node.module is None:
                continue
            other = first.setdefault(node.module, node)
            mine = (node.op, dict(node.attributes), dict(node.weights), set(node.frozen))
            if mine != (other.op, dict(other.attributes), dict(other.weights), set(other.frozen)):
                raise ContractError(
                    f"{other.name} and {node.name} share the module {node.module!r}, but differ in operator, "
                    "attributes or tensors: give each a module of its own"
                )
        for path in first:
            parts = path.split(".")
            inside = [p for n in range(1, len(parts)) if (p := ".".join(parts[:n])) in first]
            if inside:
                raise ContractError(f"the module {path!r} is inside {inside[0]!r}, which holds tensors: rename one")


def check_node_name(name: str) -> None:
    """Refuse names that torch could not write into the code of a graph, and those that look like paths."""
    if len(name) > _MAX_NAME_CHARS or not _NODE_NAME.fullmatch(name):
        raise ContractError(
            f"the name {name!r:.80} must be letters, digits and '_', in parts divided by '.', and at most "
            f"{_MAX_NAME_CHARS} long"
        )
    for part in name.split("."):
        if keyword.iskeyword(part) or part.startswith("__"):
            raise ContractError(f"the name {name!r} has the part {part!r}, which Python reserves: rename it")
