"""A torch module as a graph of ATen operators, by torch.export, with its tensors looked up by name."""

from __future__ import annotations

import contextlib
import copy
import io
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from device_agent.contracts import ContractError

#: Images in the batch that is traced: any number that is not likely to be an extent of the network itself.
TRACED_BATCH = 7


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Leaf:
    """A parameter, buffer or constant of the original. `name` is the first of its names, if it has several."""

    name: str
    tensor: Tensor
    is_trained: bool


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Capture:
    """A traced network. `source` computes what the graph does; `leaves` are the tensors behind placeholders of the
    graph; `batch` is the number of images that the graph was traced with.
    """

    program: ExportedProgram
    source: nn.Module
    leaves: Mapping[str, Leaf]
    image: fx.Node
    outputs: tuple[fx.Node, ...]
    #: Whether `source` takes any number of images and can be put into training mode.
    is_module: bool

    @property
    def batch(self) -> object:
        return self.image.meta["val"].shape[0]

    @property
    def input_shape(self) -> tuple[int, int, int]:
        _, channels, height, width = self.image.meta["val"].shape
        return (int(channels), int(height), int(width))


def capture_module(model: nn.Module, input_shape: tuple[int, int, int]) -> Capture:
    """Trace a copy of `model` in evaluation mode. Raises `ContractError` where torch.export cannot."""
    try:
        source = copy.deepcopy(model).eval().cpu()
    except (RuntimeError, TypeError) as error:
        raise ContractError(f"{type(model).__name__} cannot be copied ({_first_line(error)})") from None
    other = [f"{n} is {p.dtype}" for n, p in source.named_parameters() if p.dtype != torch.float32]
    if other:
        raise ContractError(f"{other[0]}: convert a network in float32, model.float()")
    example = torch.randn(TRACED_BATCH, *input_shape, generator=torch.Generator().manual_seed(0))
    try:
        with _quiet():
            program = torch.export.export(source, (example,))
    except Exception as error:
        # torch.export raises errors of many kinds, its own and those of the user's code.
        raise ContractError(
            f"{type(model).__name__} cannot be traced by torch.export on an input of {tuple(input_shape)}: "
            f"{_first_line(error)}. Its forward must take one batch of images, must not depend on their values, and "
            "must not use .data"
        ) from None
    return _capture(program, source, is_module=True)


def capture_program(program: ExportedProgram) -> Capture:
    """The network of an exported program. Raises `ContractError` where it does not take one batch of images."""
    return _capture(program, program.module(), is_module=False)


def _capture(program: ExportedProgram, source: nn.Module, *, is_module: bool) -> Capture:
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    leaves: dict[str, Leaf] = {}
    images: list[fx.Node] = []
    known: dict[tuple[int, tuple[int, ...], tuple[int, ...]], str] = {}
    for spec in program.graph_signature.input_specs:
        if isinstance(spec.arg, ConstantArgument):
            continue
        if spec.kind is InputKind.USER_INPUT:
            images.append(placeholders[spec.arg.name])
            continue
        if spec.target is None or spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            raise ContractError(f"the network reads {spec.arg.name}, which is neither a tensor of it nor an image")
        tensor = program.state_dict.get(spec.target, program.constants.get(spec.target))
        if not isinstance(tensor, Tensor):
            raise ContractError(f"the tensor {spec.target!r} of the network has no values")
        # The same values in the same place are one tensor under two names.
        place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()))
        name = known.setdefault(place, spec.target) if tensor.numel() else spec.target
        is_trained = spec.kind is InputKind.PARAMETER and tensor.requires_grad
        leaves[spec.arg.name] = Leaf(name=name, tensor=tensor.detach(), is_trained=is_trained)
    if len(images) != 1 or not isinstance(images[0].meta.get("val"), Tensor) or images[0].meta["val"].ndim != 4:
        raise ContractError(
            f"the network takes {len(images)} inputs, but must take one batch of images (images, channels, "
            "height, width)"
        )
    returned = next(node for node in reversed(program.graph.nodes) if node.op == "output").args[0]
    flat = returned if isinstance(returned, tuple | list) else (returned,)
    outputs = tuple(node for node in flat if isinstance(node, fx.Node))
    mutated = [spec.target for spec in program.graph_signature.output_specs if spec.kind.name != "USER_OUTPUT"]
    if len(outputs) != len(flat) or mutated or not outputs:
        what = f"changes its tensor {mutated[0]!r}" if mutated else "returns something that is no tensor"
        raise ContractError(f"the network {what} in evaluation mode: it must return tensors and change nothing")
    return Capture(program=program, source=source, leaves=leaves, image=images[0], outputs=outputs, is_module=is_module)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings and reports that torch.export prints, also where it succeeds."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.300}" if lines else type(error).__name__
