"""An ONNX file as a graph whose shapes are known, or a refusal that names the node and the remedy.

Nothing of the file is run but arithmetic on its constants. Format: https://onnx.ai/onnx/repo-docs/IR.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray
from onnx import (
    ModelProto,
    NodeProto,
    TensorProto,
    ValueInfoProto,
    checker,
    helper,
    inliner,
    numpy_helper,
    shape_inference,
)
from onnx.defs import onnx_opset_version
from onnx.reference import ReferenceEvaluator

from device_agent.contracts import ContractError
from search.networks.document import MAX_INPUT_ELEMENTS, MAX_NODES

#: protobuf reads a file as a whole, and takes several times its size.
MAX_ONNX_BYTES = 1 << 30
#: From here on, bounds and axes are inputs, and reductions and pads mean what they mean now.
MIN_OPSET = 13
#: Values of one constant that is computed from others.
MAX_FOLDED_ELEMENTS = 1 << 26
#: Images in the batch where the file leaves their number open: a number that is not likely to be another extent.
OPEN_BATCH = 7
_MAX_PASSES = 20
#: Constants of more values say nothing of shapes.
_MAX_SHAPE_VALUES = 1024
_STANDARD_DOMAINS = ("", "ai.onnx")

#: What is computed where all that it reads is constant: arithmetic of shapes, and weights in another layout.
_FOLDABLE = frozenset(
    "Abs Add And Cast CastLike Ceil Concat ConstantOfShape Div Equal Expand Flatten Floor Gather Greater "  # noqa: SIM905
    "GreaterOrEqual Identity Less LessOrEqual Max Min Mod Mul Neg Not Or Pow Range Reciprocal ReduceL2 ReduceMax "
    "ReduceMin ReduceProd ReduceSum Reshape Size Slice Split Sqrt Squeeze Sub Tile Transpose Unsqueeze Where".split()
)

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxNode:
    """One node. An input that was left out is called ""."""

    name: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class OnnxGraph:
    """A checked file. `model` is what it computes; `nodes` are those that do not fold to constants, in execution order;
    `shapes` have the batch in front, which is `OPEN_BATCH` where `batch` is None.
    """

    model: ModelProto
    opset: int
    image: str
    input_shape: tuple[int, int, int]
    batch: int | None
    outputs: tuple[str, ...]
    nodes: tuple[OnnxNode, ...]
    constants: Mapping[str, Array]
    shapes: Mapping[str, tuple[int, ...]]


def read_onnx(path: Path, input_shape: tuple[int, ...] | None = None) -> OnnxGraph:
    """Read and check an ONNX file.

    Args:
        path: The file.
        input_shape: (channels, h, w), where the file leaves them open.

    Raises:
        ContractError: It is damaged, too large, keeps data in other files, or has nodes or shapes that no `.kerf`
            network can have. The text names the node and the remedy.
    """
    model = _loaded(path)
    _check_storage(model, path)
    opset = _opset(model, path)
    model = _inlined(model, path)
    if len(model.graph.node) > 4 * MAX_NODES:
        raise ContractError(f"{path} has {len(model.graph.node)} nodes: more than {4 * MAX_NODES} are not read")
    try:
        checker.check_model(model)
    except checker.ValidationError as error:
        raise ContractError(f"{path} is no sound ONNX file: {_first_line(error)}") from None
    image, shape, batch = _image(model, input_shape, path)
    for node in model.graph.node:
        _check_node(node)
    bare = _without_weights(model, image, (batch or OPEN_BATCH, *shape))
    stored = {tensor.name: _array(tensor) for tensor in model.graph.initializer}
    folded, constants, shapes = _folded(bare, stored, path)
    nodes = tuple(_node(node) for node in folded)
    graph = OnnxGraph(
        model=model,
        opset=opset,
        image=image,
        input_shape=shape,
        batch=batch,
        outputs=tuple(output.name for output in model.graph.output),
        nodes=nodes,
        constants=constants,
        shapes=shapes,
    )
    _check_shapes(graph)
    return graph


def refuse(node: OnnxNode | NodeProto, reason: str) -> NoReturn:
    """Raise the error for a node of the file."""
    op = node.op if isinstance(node, OnnxNode) else node.op_type
    outputs = node.outputs if isinstance(node, OnnxNode) else tuple(node.output)
    name = node.name or (f"the node that writes {outputs[0]!r}" if outputs else "a node")
    raise ContractError(f"{name} ({op}) cannot be converted: {reason}")


def _loaded(path: Path) -> ModelProto:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ContractError(f"cannot read the network {path}: {error.strerror}") from None
    if size > MAX_ONNX_BYTES:
        raise ContractError(f"{path} has {size} bytes, more than an ONNX file may have here ({MAX_ONNX_BYTES})")
    model = ModelProto()
    try:
        model.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise ContractError(f"{path} is no ONNX file ({_first_line(error)}): export the network again") from None
    if not model.HasField("graph") or not model.graph.node:
        raise ContractError(f"{path} is no ONNX file, or one without a graph: export the network again")
    return model


def _check_storage(model: ModelProto, path: Path) -> None:
    for tensor in _tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL or tensor.external_data:
            raise ContractError(
                f"{path}: the tensor {tensor.name!r:.80} lies in another file, and only one file is read: put all into "
                "one, torch.onnx.export(..., external_data=False) or onnx.save(onnx.load('net.onnx'), 'one.onnx')"
            )
    if model.graph.sparse_initializer:
        raise ContractError(f"{path} stores weights without their zeros: export the network with dense tensors")


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    nodes: list[NodeProto] = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    while nodes:
        for attribute in nodes.pop().attribute:
            yield attribute.t
            yield from attribute.tensors
            for graph in (attribute.g, *attribute.graphs):
                yield from graph.initializer
                nodes += graph.node


def _opset(model: ModelProto, path: Path) -> int:
    found = [int(entry.version) for entry in model.opset_import if entry.domain in _STANDARD_DOMAINS]
    newest = int(onnx_opset_version())
    if len(found) != 1:
        raise ContractError(f"{path} names {len(found)} versions of ONNX's operators, but must name one")
    (opset,) = found
    if opset < MIN_OPSET:
        raise ContractError(
            f"{path} is of opset {opset}, and read are {MIN_OPSET} to {newest}: export it again with opset_version=20, "
            "or turn it into one with onnx.version_converter.convert_version(model, 20)"
        )
    if opset > newest:
        raise ContractError(
            f"{path} is of opset {opset}, but onnx {onnx.__version__} knows up to {newest}: update onnx, or export the "
            f"network with opset_version={newest}"
        )
    return opset


def _inlined(model: ModelProto, path: Path) -> ModelProto:
    if not model.functions:
        return model
    try:
        return inliner.inline_local_functions(model)
    except (RuntimeError, ValueError) as error:
        raise ContractError(f"{path}: its functions cannot be put in place: {_first_line(error)}") from None


def _image(
    model: ModelProto, wanted: tuple[int, ...] | None, path: Path
) -> tuple[str, tuple[int, int, int], int | None]:
    """The input's name and (channels, h, w), and the number of images where the file fixes it."""
    stored = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in stored]
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs) or "none"
        raise ContractError(f"{path} takes {len(inputs)} inputs ({names:.200}), but must take one batch of images")
    (image,) = inputs
    kind = image.type.tensor_type
    if kind.elem_type != TensorProto.FLOAT:
        found = TensorProto.DataType.Name(kind.elem_type)
        raise ContractError(f"{path}: the input {image.name!r} is {found}, but must be FLOAT: export it in float32")
    dims = list(kind.shape.dim)
    if len(dims) != 4:
        raise ContractError(
            f"{path}: the input {image.name!r} has {len(dims)} axes, but must have four: images, channels, "
            "height, width"
        )
    batch = int(dims[0].dim_value) if dims[0].HasField("dim_value") else None
    shape = []
    for axis, (what, dim) in enumerate(zip(("channels", "height", "width"), dims[1:], strict=True)):
        fixed = int(dim.dim_value) if dim.HasField("dim_value") else None
        extent = fixed if wanted is None or fixed is not None else wanted[axis]
        if extent is None:
            raise ContractError(
                f"{path}: the {what} of the input {image.name!r} are open ({dim.dim_param or '?'}): say with "
                "--example-shape C,H,W how large an image is"
            )
        if wanted is not None and extent != wanted[axis]:
            raise ContractError(
                f"{path}: the {what} of the input {image.name!r} are {extent}, and {wanted[axis]} were asked for: "
                "leave --example-shape out, or export the network for that size"
            )
        shape.append(extent)
    if min(*shape, 1 if batch is None else batch) < 1 or prod(shape) * (batch or 1) > MAX_INPUT_ELEMENTS:
        raise ContractError(f"{path}: the input's shape {(batch, *shape)} must be positive, and at most 2^24 values")
    return image.name, (shape[0], shape[1], shape[2]), batch


def _check_node(node: NodeProto) -> None:
    if node.domain not in _STANDARD_DOMAINS:
        refuse(
            node,
            f"it is of the domain {node.domain!r}, and only ONNX's own operators are known: export the network without "
            "a runtime's optimisations",
        )
    if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
        refuse(node, "it decides at run time what is computed: a network must compute the same for all images")


def _without_weights(model: ModelProto, image: str, shape: Sequence[int]) -> ModelProto:
    """What shapes are inferred from: the graph for one size of image, weights as inputs that have a shape alone, since
    inference copies all that it is given.
    """
    large = [t for t in model.graph.initializer if prod(t.dims) > _MAX_SHAPE_VALUES]
    outputs = [ValueInfoProto() for _ in model.graph.output]
    for output, value in zip(outputs, model.graph.output, strict=True):
        output.CopyFrom(value)
        # What the file says of shapes may be of another size of the image; they are inferred anew.
        output.type.tensor_type.ClearField("shape")
    graph = helper.make_graph(
        model.graph.node,
        model.graph.name,
        [
            helper.make_tensor_value_info(image, TensorProto.FLOAT, list(shape)),
            *(helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in large),
        ],
        outputs,
        [tensor for tensor in model.graph.initializer if prod(tensor.dims) <= _MAX_SHAPE_VALUES],
    )
    return helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _folded(
    model: ModelProto, constants: dict[str, Array], path: Path
) -> tuple[list[NodeProto], dict[str, Array], dict[str, tuple[int, ...]]]:
    """The nodes that depend on the image, the constants, and the shapes of all tensors that can be told.

    Folding a constant may tell a shape, and a shape folds to a constant: repeated until nothing is found.
    """
    nodes = list(model.graph.node)
    for _ in range(_MAX_PASSES):
        shapes = _inferred(model, path)
        found: dict[str, Array] = {}
        left: list[NodeProto] = []
        for node in nodes:
            results = _constant_results(node, constants, shapes)
            if results is None:
                left.append(node)
                continue
            new = {name: value for name, value in zip(node.output, results, strict=False) if name}
            found |= new
            constants |= new
        nodes = left
        if not found:
            break
        del model.graph.node[:]
        model.graph.node.extend(nodes)
        for name, value in found.items():
            tensor = numpy_helper.from_array(value, name)
            if value.size <= _MAX_SHAPE_VALUES:
                model.graph.initializer.append(tensor)
            else:
                model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(value.shape)))
    return nodes, constants, shapes


def _inferred(model: ModelProto, path: Path) -> dict[str, tuple[int, ...]]:
    try:
        inferred = shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (shape_inference.InferenceError, ValueError) as error:
        raise ContractError(f"{path}: the shapes of its tensors contradict each other: {_first_line(error)}") from None
    graph = inferred.graph
    shapes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if kind.HasField("shape") and all(dim.HasField("dim_value") for dim in kind.shape.dim):
            shapes[value.name] = tuple(int(dim.dim_value) for dim in kind.shape.dim)
    return shapes


def _constant_results(
    node: NodeProto, constants: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]]
) -> list[Array] | None:
    """What a node gives where that is known before it runs; else None."""
    if node.op_type == "Constant":
        return [_constant(node)]
    if node.op_type == "Shape" and node.input[0] in shapes:
        bounds = {a.name: a.i for a in node.attribute}
        return [np.array(shapes[node.input[0]][bounds.get("start", 0) : bounds.get("end")], np.int64)]
    if node.op_type not in _FOLDABLE or not all(name in constants or not name for name in node.input):
        return None
    feeds = {name: constants[name] for name in node.input if name}
    planned = [shapes[name] for name in node.output if name in shapes]
    if node.op_type == "ConstantOfShape":
        planned.append(tuple(int(n) for n in feeds[node.input[0]]))
    if any(prod(shape) > MAX_FOLDED_ELEMENTS for shape in planned):
        refuse(node, f"it makes a constant of {planned[0]}, more than {MAX_FOLDED_ELEMENTS} values")
    try:
        # Mistakes in the file's arithmetic end in errors of many kinds.
        results = ReferenceEvaluator(node).run(None, feeds)
    except Exception as error:
        refuse(node, f"its constants cannot be computed ({type(error).__name__}: {_first_line(error)})")
    return [np.asarray(result) for result in results]


def _constant(node: NodeProto) -> Array:
    (attribute,) = node.attribute
    value = helper.get_attribute_value(attribute)
    if attribute.name == "value":
        return _array(value)
    if attribute.name in ("value_float", "value_floats"):
        return np.asarray(value, np.float32)
    if attribute.name in ("value_int", "value_ints"):
        return np.asarray(value, np.int64)
    refuse(node, f"a constant by {attribute.name!r} is no number")


def _array(tensor: TensorProto) -> Array:
    try:
        return numpy_helper.to_array(tensor)
    except (ValueError, TypeError) as error:
        raise ContractError(f"the tensor {tensor.name!r:.80} is damaged: {_first_line(error)}") from None


def _node(node: NodeProto) -> OnnxNode:
    attributes = {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute}
    return OnnxNode(
        name=node.name, op=node.op_type, inputs=tuple(node.input), outputs=tuple(node.output), attributes=attributes
    )


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _check_shapes(graph: OnnxGraph) -> None:
    for node in graph.nodes:
        for value in (*node.inputs, *node.outputs[:1]):
            if value and value not in graph.constants and value not in graph.shapes:
                refuse(
                    node,
                    f"the shape of {value!r} cannot be told before it runs: export the network for one size of image, "
                    "without values in its shapes, or simplify the file (onnxsim)",
                )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
