"""From an ONNX file to a `.kerf` network that computes the same, or a refusal that says where it does not."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from device_agent.contracts import NETWORK_INPUT, ContractError
from search.networks.agreement import TOLERANCE, Recorder, difference
from search.networks.build import BuiltNetwork, build_network
from search.networks.converted import ConvertedNetwork
from search.networks.document import NetworkDocument, NetworkInput
from search.networks.file import Network
from search.networks.from_onnx.model import OnnxGraph, OnnxNode, read_onnx
from search.networks.from_onnx.rules import convert_node
from search.networks.from_onnx.writer import Writer
from search.networks.ops import NetworkOp

#: Images that are compared where the file leaves their number open. The reference takes seconds for a large one.
_IMAGES = 2
_NOTE = (
    "an ONNX file says nothing of training: all weights are trained, and what the exporter folded or left out (batch "
    "norm in convolutions, dropout) is not there"
)


def convert_onnx(path: Path, name: str, input_shape: tuple[int, ...] | None = None) -> ConvertedNetwork:
    """Convert an ONNX file. The result was built and compared with what ONNX's reference says of the file.

    Args:
        path: The file; see `read_onnx`.
        name: The name of the network.
        input_shape: (channels, h, w), where the file leaves them open.

    Raises:
        ContractError: It cannot be read, uses an operator that the format does not have, or comes out different. The
            text names the node and the remedy.
    """
    graph = read_onnx(path, input_shape)
    writer = Writer(graph=graph)
    writer.values[graph.image] = NETWORK_INPUT
    for node in graph.nodes:
        convert_node(writer, node)
    network = _network(writer, name)
    check_agreement(writer, build_network(network))
    return ConvertedNetwork(network=network, notes=(*dict.fromkeys(writer.notes), _NOTE))


def check_agreement(writer: Writer, built: BuiltNetwork) -> None:
    """Compare with ONNX's reference on random images. Raises `ContractError` naming the first difference."""
    graph = writer.graph
    rng = np.random.default_rng(1)
    x = rng.standard_normal((graph.batch or _IMAGES, *graph.input_shape), dtype=np.float32)
    expected = _reference(graph, x)
    with torch.no_grad():
        result = built.model(torch.from_numpy(x))
    actual = result if isinstance(result, tuple) else (result,)
    worst = max(difference(a, _as_tensor(expected[name])) for a, name in zip(actual, graph.outputs, strict=True))
    if not worst <= TOLERANCE:
        raise ContractError(
            f"the converted network differs from the ONNX file by {worst:.3g} on {len(x)} images, more than "
            f"{TOLERANCE:g}: {_first_difference(writer, built, x, expected)}"
        )


def _network(writer: Writer, name: str) -> Network:
    graph = writer.graph
    outputs: list[str] = []
    for value in graph.outputs:
        output = writer.values.get(value)
        if output is None:
            raise ContractError(f"the output {value!r} does not depend on the image: leave it out of the file")
        if output == NETWORK_INPUT or output in outputs:
            # An output is a node of its own.
            node = OnnxNode(name=value, op="Identity", inputs=(), outputs=(value,), attributes={})
            output = writer.emit(node, NetworkOp.IDENTITY, [output])
        outputs.append(output)
    nodes = writer.reaching(outputs)
    document = NetworkDocument(
        name=name, input=NetworkInput(shape=graph.input_shape), outputs=tuple(outputs), nodes=nodes
    )
    used = document.tensor_shapes
    return Network(document=document, tensors={n: t for n, t in writer.tensors.items() if n in used})


def _reference(graph: OnnxGraph, x: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
    """All tensors of the file by name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = ReferenceEvaluator(graph.model).run(None, {graph.image: x}, intermediate=True)
    except Exception as error:
        # What the reference does not do, it says in errors of many kinds.
        lines = str(error).strip().splitlines() or [""]
        raise ContractError(
            f"the ONNX file does not run on {len(x)} images ({type(error).__name__}: {lines[0]:.200}): export it again "
            "with an open number of images (dynamic_axes or dynamic_shapes), or with one"
        ) from None
    assert isinstance(found, dict)
    return found


def _first_difference(
    writer: Writer, built: BuiltNetwork, x: NDArray[np.float32], expected: dict[str, NDArray[Any]]
) -> str:
    recorder = Recorder(built.model)
    with torch.no_grad():
        recorder.run(torch.from_numpy(x))
    for node in writer.nodes:
        made = recorder.found.get(built.graph_nodes[node.name]) if node.name in built.graph_nodes else None
        theirs = expected.get(writer.computed_by.get(node.name, ""))
        if made is None or theirs is None:
            continue
        found = difference(made, _as_tensor(theirs))
        if not found <= TOLERANCE:
            return f"the first difference is at {node.name!r} ({node.op.value}), {found:.3g}"
    return "no single node differs: please report the file"


def _as_tensor(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values))
