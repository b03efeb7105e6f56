"""What a `.kerf` network is: its operators, its size, what can be pruned, and what no kernel runs yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from device_agent.contracts import NETWORK_INPUT, ContractError
from search.domain.network import PruningGroup, RefusedBlock, RefusedGroup, RemovableBlock
from search.networks.build import BuiltNetwork, build_joined, build_network
from search.networks.document import NetworkDocument, NetworkNode
from search.networks.file import Network
from search.networks.ops import NetworkOp
from search.networks.runtimes import LayerInspection, RuntimeInspection, inspect_layers
from search.networks.torch_ops import is_written_out
from search.pruning.operators import UnsupportedNetwork, recognise
from search.pruning.trace import trace_network


@dataclass(frozen=True, slots=True, kw_only=True)
class NotLowered:
    """A node that cannot be lowered to kernels yet, and why. Where several nodes together are the reason, `node` is
    empty, and the reason names the first.
    """

    node: str
    op: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkInspection:
    """What `kerf models inspect` shows. Shapes are those of one image.

    `groups` are the channel groups that were proved, `dense` those that stay as they are. `layers` are the operators
    of the fused plan, and `runtimes` what each runtime makes of zeros in them. All of these are found on the fused
    plan, so a network with something in `not_lowered` has none yet.
    """

    name: str
    format: int
    input_shape: tuple[int, ...]
    outputs: Mapping[str, tuple[int, ...]]
    ops: Mapping[str, int]
    parameters: int
    frozen_parameters: int
    macs: int
    groups: tuple[PruningGroup, ...]
    dense: tuple[RefusedGroup, ...]
    blocks: tuple[RemovableBlock, ...]
    kept_blocks: tuple[RefusedBlock, ...]
    not_lowered: tuple[NotLowered, ...]
    layers: tuple[LayerInspection, ...] = ()
    runtimes: tuple[RuntimeInspection, ...] = ()


def inspect_network(network: Network) -> NetworkInspection:
    """Count, try to lower, and find and prove pruning groups. Raises `ContractError` where nodes do not fit."""
    document = network.document
    built = build_network(network)
    not_lowered = _not_recognised(document, built)
    spec = None
    if not not_lowered:
        try:
            spec = trace_network(build_joined(network).model, document.input.shape, document.name)
        except (UnsupportedNetwork, ContractError) as error:
            not_lowered = (NotLowered(node="", op="", reason=str(error)),)
    layers, runtimes = ((), ()) if spec is None else inspect_layers(spec)
    frozen = {node.weights[role] for node in document.nodes for role in node.frozen}
    parameters = {name: p.numel() for name, p in built.model.named_parameters()}
    return NetworkInspection(
        name=document.name,
        format=document.format,
        input_shape=document.input.shape,
        outputs={name: built.shapes[name] for name in document.outputs},
        ops=dict(sorted(Counter(node.op.value for node in document.nodes).items())),
        parameters=sum(parameters.values()),
        frozen_parameters=sum(count for name, count in parameters.items() if name in frozen),
        macs=sum(_macs(node, document, built.shapes) for node in document.nodes),
        groups=() if spec is None else spec.groups,
        dense=() if spec is None else spec.refused,
        blocks=() if spec is None else spec.blocks,
        kept_blocks=() if spec is None else spec.refused_blocks,
        not_lowered=not_lowered,
        layers=layers,
        runtimes=runtimes,
    )


def _not_recognised(document: NetworkDocument, built: BuiltNetwork) -> tuple[NotLowered, ...]:
    modules = dict(built.model.named_modules())
    found = []
    for node in document.nodes:
        if node.op is NetworkOp.IDENTITY:
            continue
        if node.op is NetworkOp.RESHAPE and is_written_out(built.graph_nodes[node.name]):
            # Flattening has a name of its own in the document.
            reason = f"{node.name!r} reshapes to {node.attributes['shape']}: only to (channels, 1, 1), to one axis and "
            reason += "in a channel shuffle has a meaning in a plan"
            found.append(NotLowered(node=node.name, op=node.op.value, reason=reason))
            continue
        try:
            recognise(built.graph_nodes[node.name], modules)
        except UnsupportedNetwork as error:
            found.append(NotLowered(node=node.name, op=node.op.value, reason=str(error)))
    return tuple(found)


def _macs(node: NetworkNode, document: NetworkDocument, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Multiply-accumulates of one image: those of convolutions and linear layers."""
    if node.op not in (NetworkOp.CONV2D, NetworkOp.CONV_TRANSPOSE2D, NetworkOp.LINEAR):
        return 0
    weight = node.weight_shapes["weight"]
    if node.op is NetworkOp.LINEAR:
        return prod(shapes[node.name][:-1]) * prod(weight)
    # Each weight meets every pixel of the output once; of a transposed convolution, every pixel of the input.
    source = node.inputs[0]
    read = document.input.shape if source == NETWORK_INPUT else shapes[source]
    height, width = (shapes[node.name] if node.op is NetworkOp.CONV2D else read)[-2:]
    return int(prod(weight) * height * width)
