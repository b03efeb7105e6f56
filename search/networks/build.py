"""From a `.kerf` network to a torch module that can be traced, pruned and trained as one of the zoo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import cast

import torch
from torch import Tensor, fx, nn

from device_agent.contracts import NETWORK_INPUT, ContractError
from search.networks.document import NetworkDocument, NetworkNode
from search.networks.file import Network
from search.networks.ops import NetworkOp
from search.networks.torch_ops import add_call, channel_parts, make_module

#: Values of one tensor for one image: 1 GiB.
MAX_TENSOR_ELEMENTS = 1 << 28
#: Any number that no constant of a network is likely to be.
_BATCH = 7


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BuiltNetwork:
    """A module in evaluation mode. `graph_nodes` has the node of its graph for each node of the document, and `shapes`
    the shape of its tensor without the batch; a network of one output returns a tensor, others a tuple.
    """

    model: fx.GraphModule
    graph_nodes: Mapping[str, fx.Node]
    shapes: Mapping[str, tuple[int, ...]]


def build_network(network: Network) -> BuiltNetwork:
    """The module of a network. Its parameters are called as the tensors of the file.

    Raises:
        ContractError: A node does not fit the tensors that it reads; the text names it.
    """
    model, nodes = _empty_module(network.document, {})
    shapes = _check_shapes(network.document, model, nodes)
    if any(node.op in (NetworkOp.SLICE, NetworkOp.RESHAPE) for node in network.document.nodes):
        # Once more, without the numbers of channels that the shapes tell.
        model, nodes = _empty_module(network.document, {**shapes, NETWORK_INPUT: network.document.input.shape})
        shapes = _check_shapes(network.document, model, nodes)
    state: dict[str, Tensor] = {name: torch.tensor(value) for name, value in network.tensors.items()}
    for name in model.state_dict():
        if name.endswith(".num_batches_tracked") and name not in state:
            state[name] = torch.tensor(0)
    model.load_state_dict(state, strict=True, assign=True)
    for node in network.document.nodes:
        for role in node.frozen:
            model.get_parameter(node.weights[role]).requires_grad_(False)
    return BuiltNetwork(model=model.eval(), graph_nodes=nodes, shapes=shapes)


def build_joined(network: Network) -> BuiltNetwork:
    """`build_network` of a network with one output: several are joined to one vector, one behind the other in the order
    of the document, as that is what runs on a device.

    Raises `ContractError` where one of several outputs is no vector.
    """
    built = build_network(network)
    names = network.document.outputs
    if len(names) == 1:
        return built
    for name in names:
        shape = built.shapes[name]
        if len(shape) != 1 and shape[1:] != (1, 1):
            raise ContractError(
                f"the output {name!r} has the shape {'x'.join(map(str, shape))}: of several outputs, each must be a "
                "vector, such as that of a linear layer behind a global pooling"
            )
    graph = built.model.graph
    (output,) = (node for node in graph.nodes if node.op == "output")
    with graph.inserting_before(output):
        vectors = [
            graph.call_function(torch.flatten, (built.graph_nodes[name], 1))
            if len(built.shapes[name]) > 1
            else built.graph_nodes[name]
            for name in names
        ]
        output.args = (graph.call_function(torch.cat, (vectors, 1)),)
    built.model.recompile()
    return built


def build_classifier(network: Network, num_classes: int) -> BuiltNetwork:
    """`build_network` for a network that gives one number for each class. Raises `ContractError` where it does not."""
    built = build_network(network)
    outputs = [built.shapes[name] for name in network.document.outputs]
    if outputs != [(num_classes,)]:
        told = " and ".join("x".join(map(str, shape)) for shape in outputs)
        raise ContractError(
            f"the network {network.document.name!r} gives {told} for an image, but the data has {num_classes} classes: "
            "convert a network with one output of as many values, or give a task of your own, which takes several"
        )
    return built


def _empty_module(
    document: NetworkDocument, shapes: Mapping[str, tuple[int, ...]]
) -> tuple[fx.GraphModule, dict[str, fx.Node]]:
    root = nn.Module()
    graph = fx.Graph()
    values = {NETWORK_INPUT: graph.placeholder(NETWORK_INPUT)}
    made: set[str] = set()
    for node in document.nodes:
        inputs = tuple(values[name] for name in node.inputs)
        label = node.name.replace(".", "_")
        if node.op is NetworkOp.PARAMETER:
            path = node.weights["value"]
            if path not in made:
                value = nn.Parameter(torch.empty(node.weight_shapes["value"], device="meta"))
                _place(root, path, value, node)
            values[node.name] = graph.create_node("get_attr", path, name=label)
        elif (module := make_module(node)) is not None:
            path = node.module or node.name
            if path not in made or node.module is None:
                _place(root, path, module, node)
            values[node.name] = graph.create_node("call_module", path, inputs, name=label)
        else:
            shape = shapes.get(node.inputs[0])
            parts = None if shape is None else channel_parts(node, shape)
            if parts is None:
                values[node.name] = add_call(graph, node, inputs, label, shape)
                continue
            values[node.name] = inputs[0]
            for number, part in enumerate(parts):
                path = node.name if len(parts) == 1 else f"{node.name}.{number}"
                _place(root, path, part, node)
                read = (values[node.name],)
                values[node.name] = graph.create_node("call_module", path, read, name=path.replace(".", "_"))
            continue
        made.add(path)
    outputs = tuple(values[name] for name in document.outputs)
    graph.output(outputs[0] if len(outputs) == 1 else outputs)
    del values[NETWORK_INPUT]
    return fx.GraphModule(root, graph), values


def _place(root: nn.Module, path: str, value: nn.Module | nn.Parameter, node: NetworkNode) -> None:
    """Put a module or parameter at `path`, with plain modules in between."""
    *parents, name = path.split(".")
    owner = root
    for depth, part in enumerate((*parents, name)):
        # A graph module has attributes of its own, which must not be replaced.
        taken = hasattr(fx.GraphModule, part) or part == "graph" if depth == 0 else hasattr(nn.Module, part)
        found = None if taken else getattr(owner, part, None)
        last = depth == len(parents)
        if taken or (found is not None and (last or type(found) is not nn.Module)):
            raise ContractError(
                f"{node.name}: {path!r} cannot be the name of a module, as {part!r} is taken: rename it in the "
                "network's source and convert it again"
            )
        if last and isinstance(value, nn.Parameter):
            owner.register_parameter(name, value)
        elif last:
            owner.add_module(name, cast(nn.Module, value))
        elif found is None:
            owner.add_module(part, nn.Module())
        if not last:
            owner = owner.get_submodule(part)


class _MetaRun(fx.Interpreter):
    """Runs a graph on tensors without storage, and notes the shape of each."""

    def __init__(self, model: fx.GraphModule) -> None:
        super().__init__(model)
        self.shapes: dict[fx.Node, tuple[int, ...]] = {}
        self.last: fx.Node | None = None

    def run_node(self, n: fx.Node) -> object:
        self.last = n
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.shapes[n] = tuple(result.shape)
            if n.op != "get_attr" and (result.ndim == 0 or result.shape[0] != _BATCH):
                raise ValueError(f"it gives {tuple(result.shape)}, which mixes the {_BATCH} images of a batch")
            if prod(result.shape) > _BATCH * MAX_TENSOR_ELEMENTS:
                raise ValueError(f"it gives {tuple(result.shape)}, more values than {MAX_TENSOR_ELEMENTS} for an image")
        return result


def _check_shapes(
    document: NetworkDocument, model: fx.GraphModule, nodes: Mapping[str, fx.Node]
) -> dict[str, tuple[int, ...]]:
    run = _MetaRun(model.eval())
    run.extra_traceback = False
    x = torch.empty(_BATCH, *document.input.shape, device="meta")
    try:
        with torch.no_grad():
            run.run(x)
    except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
        at = next((name for name, node in nodes.items() if node is run.last), str(run.last))
        found = ", ".join(str(run.shapes.get(s, ()))[:60] for s in (run.last.all_input_nodes if run.last else ()))
        raise ContractError(
            f"{at} does not fit what it reads, of shape {found}: {str(error).splitlines()[0]:.300}"
        ) from None
    shapes = {name: run.shapes[node] if node.op == "get_attr" else run.shapes[node][1:] for name, node in nodes.items()}
    for document_node in document.nodes:
        # Built without its number of channels, so torch does not compare it.
        if document_node.op is NetworkOp.RESHAPE and list(shapes[document_node.name]) != list(
            document_node.attributes["shape"]
        ):
            raise ContractError(
                f"{document_node.name} does not fit what it reads: it reshapes to {document_node.attributes['shape']}, "
                f"but there are values for {list(shapes[document_node.name])}"
            )
    return shapes
