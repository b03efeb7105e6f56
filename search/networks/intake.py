"""A network as somebody sends it: the network that a file holds, and what was found about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from search.networks.file import Network, read_network
from search.networks.kinds import NetworkFileFormat, network_format
from search.networks.ops import OPS


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkContents:
    """What a file holds. Shapes are those of one image, `outputs` by node; `notes` say what a conversion left out."""

    format: NetworkFileFormat
    name: str
    input_shape: tuple[int, ...]
    outputs: tuple[str, ...]
    num_nodes: int
    parameters: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TakenNetwork:
    """A network and what was found about its file."""

    network: Network
    contents: NetworkContents


def take_network(path: Path, name: str, input_shape: tuple[int, ...] | None = None) -> TakenNetwork:
    """Read a `.kerf` file, or convert an ONNX file. Nothing of either is run.

    Args:
        path: The file. What it is called does not matter.
        name: The name of a converted network; a `.kerf` file has its own.
        input_shape: (channels, h, w), where an ONNX file leaves them open.

    Raises:
        RunsCode: It is a pickle or an archive of them.
        ContractError: It is unsound, or cannot be converted; see `read_network` and `convert_onnx`.
    """
    form = network_format(path)
    if form is NetworkFileFormat.KERF:
        return _taken(read_network(path), form)
    # Imports torch, which takes seconds; a .kerf file needs none of it.
    from search.networks.from_onnx.convert import convert_onnx

    converted = convert_onnx(path, name, input_shape)
    return _taken(converted.network, form, converted.notes)


def _taken(network: Network, form: NetworkFileFormat, notes: tuple[str, ...] = ()) -> TakenNetwork:
    document = network.document
    trained = {n.weights[role] for n in document.nodes for role in n.weights if role not in OPS[n.op].statistics}
    contents = NetworkContents(
        format=form,
        name=document.name,
        input_shape=document.input.shape,
        outputs=document.outputs,
        num_nodes=len(document.nodes),
        parameters=sum(int(network.tensors[name].size) for name in trained),
        notes=notes,
    )
    return TakenNetwork(network=network, contents=contents)
