"""From a torch module to a `.kerf` network that computes the same, or a refusal that says where it does not."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from device_agent.contracts import NETWORK_INPUT, ContractError
from search.networks.agreement import check_agreement
from search.networks.aten import convert_node
from search.networks.build import build_network
from search.networks.capture import Capture, capture_module, capture_program
from search.networks.converted import ConvertedNetwork
from search.networks.document import NetworkDocument, NetworkInput
from search.networks.file import Network
from search.networks.ops import NetworkOp
from search.networks.walker import ShapedLeaf, Walker


def convert_module(model: nn.Module, example: Tensor, name: str) -> ConvertedNetwork:
    """Convert a module, which stays as it is.

    The result was built again and compared with the module: outputs on `example` and on random images and the gradients
    of all parameters, in evaluation mode.

    Args:
        model: A network from one batch of images to one or more tensors.
        example: Images of the size that the network takes, (images, channels, h, w).
        name: The name of the network.

    Raises:
        ContractError: It cannot be traced, uses an operator that the format does not have, or comes out different. The
            text names the first place, and the remedy.
    """
    if example.ndim != 4 or min(example.shape) < 1 or example.dtype != torch.float32:
        raise ContractError(
            f"the example is {example.dtype} of shape {tuple(example.shape)}, but must be float32 images (images, "
            "channels, height, width)"
        )
    return _convert(capture_module(model, (example.shape[1], example.shape[2], example.shape[3])), name, example)


def convert_program(program: ExportedProgram, name: str) -> ConvertedNetwork:
    """Convert what torch.export made of a network; as `convert_module`."""
    return _convert(capture_program(program), name, None)


def _convert(capture: Capture, name: str, example: Tensor | None) -> ConvertedNetwork:
    walker = Walker(capture=capture)
    walker.values[capture.image] = NETWORK_INPUT
    for node in capture.program.graph.nodes:
        leaf = capture.leaves.get(node.name) if node.op == "placeholder" else None
        if leaf is not None:
            walker.values[node] = ShapedLeaf(leaf=leaf, shape=tuple(leaf.tensor.shape))
        elif node.op == "call_function":
            convert_node(walker, node)
    outputs: list[str] = []
    for node in capture.outputs:
        output = walker.operand(node, node)
        if output == NETWORK_INPUT or output in outputs:
            # An output is a node of its own.
            output = walker.emit(node, NetworkOp.IDENTITY, [output])
        outputs.append(output)
    nodes = walker.reaching(outputs)
    document = NetworkDocument(
        name=name, input=NetworkInput(shape=capture.input_shape), outputs=tuple(outputs), nodes=nodes
    )
    used = document.tensor_shapes
    network = Network(document=document, tensors={n: t for n, t in walker.tensors.items() if n in used})
    notes = check_agreement(capture, walker, build_network(network), example)
    return ConvertedNetwork(network=network, notes=(*walker.notes, *notes))
