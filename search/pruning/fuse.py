"""From a torch module to the plan of fused kernels that computes the same.

The module is traced symbolically (torch.fx), and batch norm, residual adds and activations are fused into the
convolution in front of them. Operators are called after the module that holds their weights, others after their node.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx, nn

from device_agent.contracts import NETWORK_INPUT, Activation, ContractError, KernelSpec, NetworkPlan, Op, PlanOp
from search.pruning.channel_part import ChannelPart
from search.pruning.operators import Kind, Operator, UnsupportedNetwork, recognise, unsupported

_WEIGHTED = {Kind.CONVOLUTION: Op.CONV2D, Kind.DEPTHWISE: Op.DEPTHWISE_CONV2D, Kind.LINEAR: Op.FULLY_CONNECTED}
_POOLS = {Kind.MAX_POOL: Op.MAX_POOL, Kind.AVG_POOL: Op.AVG_POOL, Kind.GLOBAL_POOL: Op.GLOBAL_AVG_POOL}
_PARTS = {Kind.FIRST_CHANNELS: Op.FIRST_CHANNELS, Kind.LAST_CHANNELS: Op.LAST_CHANNELS}
_TAKES_ACTIVATION = (
    Op.CONV2D,
    Op.DEPTHWISE_CONV2D,
    Op.FULLY_CONNECTED,
    Op.ADD,
    Op.MUL,
    Op.CONCAT,
    Op.CHANNEL_SHUFFLE,
    *_PARTS.values(),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedModules:
    """The modules behind one operator of a plan: a convolution or linear layer, and its batch norm. A batch norm that
    is an operator of its own, a depthwise convolution of 1x1, stands in `weights`.
    """

    weights: str
    norm: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FusedNetwork:
    """A dense plan, and for each of its operators with weights the modules that they come from; `parts` has the module
    of each part of a channel split.
    """

    plan: NetworkPlan
    modules: Mapping[str, FusedModules]
    parts: Mapping[str, str]


def fuse_network(model: nn.Module, input_shape: tuple[int, int, int], name: str) -> FusedNetwork:
    """Trace `model` and fuse it. The module itself stays as it is.

    Args:
        model: A network from one image to one vector or map of outputs.
        input_shape: (channels, h, w).
        name: The plan's name.

    Raises:
        UnsupportedNetwork: The network does something that no fused kernel does; the text names it.
    """
    # A copy, as evaluation mode and the shapes' run must not show in the caller's module.
    return fuse_evaluating(copy.deepcopy(model).eval(), input_shape, name)


def fuse_evaluating(model: nn.Module, input_shape: tuple[int, int, int], name: str) -> FusedNetwork:
    """`fuse_network` for a module in evaluation mode, without the copy that keeps another's mode and statistics."""
    try:
        traced = fx.GraphModule(model, _Tracer().trace(model))
    except (fx.proxy.TraceError, TypeError, AttributeError) as error:
        raise UnsupportedNetwork(
            f"{type(model).__name__} cannot be traced ({error}): its forward must not depend on tensor values"
        ) from None
    traced.graph.eliminate_dead_code()
    shapes = _Shapes(traced).of(input_shape)
    fuser = _Fuser(dict(traced.named_modules()), shapes)
    for node in traced.graph.nodes:
        fuser.add(node)
    return fuser.finish(name, input_shape)


_networks_of: weakref.WeakKeyDictionary[nn.Module, FusedNetwork] = weakref.WeakKeyDictionary()


def fused_modules(model: nn.Module, input_shape: tuple[int, int, int]) -> Mapping[str, FusedModules]:
    """The modules behind each operator of `model`. Traced once for each model, as its structure never changes."""
    return _fused_once(model, input_shape).modules


def fused_parts(model: nn.Module, input_shape: tuple[int, int, int]) -> Mapping[str, str]:
    """The module of each operator of `model` that is a part of a channel split; as `fused_modules`."""
    return _fused_once(model, input_shape).parts


def _fused_once(model: nn.Module, input_shape: tuple[int, int, int]) -> FusedNetwork:
    known = _networks_of.get(model)
    if known is None:
        known = _networks_of[model] = fuse_network(model, input_shape, type(model).__name__)
    return known


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ChannelPart) or super().is_leaf_module(m, module_qualified_name)


class _Shapes(fx.Interpreter):
    """Runs a traced network once and notes the shape of every node's tensor."""

    def of(self, input_shape: tuple[int, int, int]) -> dict[fx.Node, tuple[int, ...]]:
        self._shapes: dict[fx.Node, tuple[int, ...]] = {}
        dtype = next((p.dtype for p in self.module.parameters()), torch.float32)
        with torch.no_grad():
            try:
                self.run(torch.zeros(1, *input_shape, dtype=dtype))
            except (RuntimeError, ValueError) as error:
                raise UnsupportedNetwork(
                    f"the network does not run on an input of {input_shape}: {str(error).splitlines()[0]}"
                ) from None
        return self._shapes

    def run_node(self, n: fx.Node) -> object:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self._shapes[n] = tuple(result.shape[1:])
        return result


@dataclass(slots=True, eq=False)
class _Draft:
    """An operator while what follows it may still be fused into it."""

    name: str
    op: Op
    in_shape: tuple[int, int, int]
    out_channels: int
    inputs: list[_Draft | None]
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padding: int = 0
    weights: str | None = None
    norm: str | None = None
    residual: _Draft | None = None
    has_residual: bool = False
    activation: Activation = Activation.NONE
    pad_before: int = 0
    groups: int = 1
    #: The module of a part of a channel split.
    part: str | None = None

    @property
    def spec(self) -> KernelSpec:
        channels, height, width = self.in_shape
        return KernelSpec(
            op=self.op,
            in_channels=channels,
            out_channels=self.out_channels,
            input_h=height,
            input_w=width,
            kernel_h=self.kernel[0],
            kernel_w=self.kernel[1],
            stride=self.stride,
            padding=self.padding,
            residual=self.has_residual,
            activation=self.activation,
            pad_channels_before=self.pad_before,
            groups=self.groups,
        )


@dataclass(slots=True)
class _Fuser:
    """Walks the nodes in execution order. `None` stands for the network's input among the drafts."""

    modules: Mapping[str, nn.Module]
    shapes: Mapping[fx.Node, tuple[int, ...]]
    drafts: list[_Draft] = field(default_factory=list)
    values: dict[fx.Node, _Draft | None] = field(default_factory=dict)
    #: Nodes that hand on their source's tensor, and that source.
    aliases: dict[fx.Node, fx.Node] = field(default_factory=dict)
    #: Nodes whose channels are in blocks, an axis of their own: the tensor that is meant, the number of blocks, and
    #: whether the axes of channels were exchanged.
    blocks: dict[fx.Node, tuple[fx.Node, int, bool]] = field(default_factory=dict)

    def add(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            if self.values:
                raise unsupported(node, "the network has more than one input")
            self.values[node] = None
        elif node.op == "output":
            result = node.args[0]
            if not isinstance(result, fx.Node) or result not in self.values:
                raise unsupported(node, "the network must return one tensor")
            if not self.drafts or self.values[result] is not self.drafts[-1]:
                raise unsupported(node, "the network's output is not its last operator")
        elif self._is_shape_arithmetic(node):
            return
        else:
            self._add_operator(node, recognise(node, self.modules))

    def finish(self, name: str, input_shape: tuple[int, int, int]) -> FusedNetwork:
        if not self.drafts:
            raise UnsupportedNetwork(f"the network {name!r} has no operators")
        ops, modules, parts = [], {}, {}
        for draft in self.drafts:
            try:
                kernel = draft.spec
            except ContractError as error:
                raise UnsupportedNetwork(f"{draft.name!r} cannot be lowered: {error}") from None
            residual = _tensor_name(draft.residual) if draft.has_residual else None
            inputs = tuple(_tensor_name(source) for source in draft.inputs)
            ops.append(PlanOp(name=draft.name, kernel=kernel, inputs=inputs, residual=residual))
            if draft.weights is not None:
                modules[draft.name] = FusedModules(weights=draft.weights, norm=draft.norm)
            if draft.part is not None:
                parts[draft.name] = draft.part
        try:
            plan = NetworkPlan(name=name, input_shape=input_shape, ops=tuple(ops))
        except ContractError as error:
            raise UnsupportedNetwork(str(error)) from None
        return FusedNetwork(plan=plan, modules=modules, parts=parts)

    def _is_shape_arithmetic(self, node: fx.Node) -> bool:
        """`x.size(0)` and `x.shape[0]`, as they stand in `x.view(x.size(0), -1)`."""
        if node.op == "call_method" and node.target == "size":
            return True
        return node not in self.shapes

    def _add_operator(self, node: fx.Node, found: Operator) -> None:
        source = found.sources[0]
        if found.kind in (Kind.BLOCKS, Kind.SWAP) or source in self.blocks:
            self._add_shuffle(node, found)
            return
        if any(s in self.blocks for s in found.sources):
            raise unsupported(node, "it reads channels in blocks, which only a channel shuffle may")
        if any(s not in self.values for s in found.sources):
            raise unsupported(node, "it reads something that is not a tensor of the network")
        if found.kind in (Kind.IDENTITY, Kind.FLATTEN):
            self._check_flatten(node, found)
            self.values[node] = self.values[source]
            self.aliases[node] = source
        elif found.kind is Kind.NORM:
            self._fuse_norm(node, found)
        elif found.kind is Kind.ACTIVATION:
            self._fuse_activation(node, found)
        elif found.kind is Kind.ADD:
            self._fuse_add(node, found)
        elif found.kind is Kind.GATE:
            self._add_gate(node, found)
        elif found.kind is Kind.CONCAT:
            self._add_concat(node, found)
        elif found.kind is Kind.CHANNEL_PAD:
            self._fuse_channel_pad(node, found)
        elif found.kind is Kind.SUBSAMPLE:
            self._append(node, found, Op.SHORTCUT_PAD, node.name)
        elif found.kind in _PARTS:
            assert found.module is not None
            self._append(node, found, _PARTS[found.kind], found.module).part = found.module
        elif found.kind in _POOLS:
            self._append(node, found, _POOLS[found.kind], node.name)
        else:
            self._add_weighted(node, found)

    def _append(self, node: fx.Node, found: Operator, op: Op, name: str) -> _Draft:
        out_channels = self.shapes[node][0]
        draft = _Draft(
            name=name,
            op=op,
            in_shape=self._image_shape(found.sources[0]),
            out_channels=out_channels,
            inputs=[self.values[s] for s in found.sources],
            kernel=found.kernel,
            stride=found.stride,
            padding=found.padding,
            pad_before=found.pad_before,
            groups=found.groups,
        )
        self.drafts.append(draft)
        self.values[node] = draft
        return draft

    def _add_weighted(self, node: fx.Node, found: Operator) -> None:
        assert found.module is not None
        self._claim(node, found.module)
        read = self.shapes[found.sources[0]]
        if found.kind is Kind.LINEAR and len(read) != 1:
            raise unsupported(
                node,
                f"it is a linear layer along the last axis of {read}: flatten in front of it, or use a convolution of "
                "1x1 for one along the channels",
            )
        draft = self._append(node, found, _WEIGHTED[found.kind], found.module)
        draft.weights = found.module
        if found.kind is Kind.LINEAR and draft.in_shape[1:] != (1, 1):
            # A linear layer on a flattened image is a convolution whose kernel covers that image.
            draft.op, draft.kernel = Op.CONV2D, draft.in_shape[1:]

    def _claim(self, node: fx.Node, module: str) -> None:
        if any(module in (draft.weights, draft.norm) for draft in self.drafts):
            raise unsupported(node, f"the module {module!r} is used twice: give each use a module of its own")

    def _fuse_norm(self, node: fx.Node, found: Operator) -> None:
        draft = self.values[found.sources[0]]
        if draft is None or draft.weights is None or draft.norm or not self._is_open(draft, found.sources[0]):
            self._add_norm(node, found)
            return
        assert found.module is not None
        self._claim(node, found.module)
        draft.norm = found.module
        self.values[node] = draft

    def _add_norm(self, node: fx.Node, found: Operator) -> None:
        """A batch norm that nothing in front can take in: a factor and an offset for each channel."""
        assert found.module is not None
        norm = self.modules[found.module]
        assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)
        if not norm.affine or norm.num_features != self._image_shape(found.sources[0])[0]:
            raise unsupported(
                node,
                "batch norm must follow a convolution or linear layer that nothing else reads, or be affine and have a "
                "factor for each channel of an image",
            )
        self._claim(node, found.module)
        self._append(node, found, Op.DEPTHWISE_CONV2D, found.module).weights = found.module

    def _fuse_activation(self, node: fx.Node, found: Operator) -> None:
        draft = self.values[found.sources[0]]
        if draft is None or draft.op not in _TAKES_ACTIVATION or not self._is_sole_use(found.sources[0]):
            raise unsupported(
                node,
                "an activation must follow a convolution, a linear layer, an add, a gate, a concatenation, a part of a "
                "split or a shuffle that nothing else reads",
            )
        # A clamp may be written twice; a sigmoid of a sigmoid is another function.
        is_same = found.activation is draft.activation and found.activation.is_clamp
        if draft.activation is not Activation.NONE and not is_same:
            raise unsupported(node, "it follows another activation")
        draft.activation = found.activation
        self.values[node] = draft

    def _fuse_add(self, node: fx.Node, found: Operator) -> None:
        if self.shapes[found.sources[0]] != self.shapes[found.sources[1]]:
            raise unsupported(node, "it adds tensors of different shapes")
        values = [self.values[s] for s in found.sources]
        candidates = [
            (self.drafts.index(draft), draft, other)
            for source, draft, other in zip(found.sources, values, reversed(values), strict=True)
            if draft is not None
            and draft is not other
            and draft.op is Op.CONV2D
            and draft.groups == 1
            and self._is_open(draft, source)
        ]
        if not candidates:
            self._append(node, found, Op.ADD, node.name)
            return
        # The one that runs later, so that its other operand is ready; it moves behind everything that came before.
        _, draft, other = max(candidates, key=lambda candidate: candidate[0])
        draft.residual, draft.has_residual = other, True
        self.drafts.remove(draft)
        self.drafts.append(draft)
        self.values[node] = draft

    def _add_gate(self, node: fx.Node, found: Operator) -> None:
        """A product of an image and one factor for each channel, in either order."""
        image, gate = found.sources
        if self.shapes[image] != self.shapes[node]:
            image, gate = gate, image
        channels = self.shapes[node][0]
        if (
            len(self.shapes[node]) != 3
            or self.shapes[image] != self.shapes[node]
            or (self.shapes[gate] != (channels, 1, 1))
        ):
            raise unsupported(
                node,
                f"it multiplies tensors of {self.shapes[found.sources[0]]} and {self.shapes[found.sources[1]]}: only a "
                "factor for each channel, (channels, 1, 1), has a kernel",
            )
        self._append(node, replace(found, sources=(image, gate)), Op.MUL, node.name)

    def _add_concat(self, node: fx.Node, found: Operator) -> None:
        """A chain of concatenations of two; the last one is called after the node."""
        shapes = [self._image_shape(source) for source in found.sources]
        if len({shape[1:] for shape in shapes}) != 1:
            raise unsupported(node, f"it joins images of different sizes: {', '.join(map(str, shapes))}")
        value, (channels, height, width) = self.values[found.sources[0]], shapes[0]
        for position, (source, shape) in enumerate(zip(found.sources[1:], shapes[1:], strict=True), start=1):
            is_last = position == len(shapes) - 1
            value = _Draft(
                name=node.name if is_last else f"{node.name}.{position}",
                op=Op.CONCAT,
                in_shape=(channels, height, width),
                out_channels=channels + shape[0],
                inputs=[value, self.values[source]],
            )
            channels = value.out_channels
            self.drafts.append(value)
        self.values[node] = value
        if len(shapes) == 1:
            self.aliases[node] = found.sources[0]

    def _add_shuffle(self, node: fx.Node, found: Operator) -> None:
        """A channel shuffle: channels in blocks, the two axes of channels exchanged, and joined again."""
        source = found.sources[0]
        whole = "blocks of channels must be exchanged and joined again, as in a channel shuffle"
        if found.kind is Kind.BLOCKS:
            if source not in self.values or len(self.shapes[source]) != 3:
                raise unsupported(node, whole)
            self.blocks[node] = (source, found.groups, False)
            return
        if source not in self.blocks:
            raise unsupported(node, whole)
        image, groups, is_swapped = self.blocks[source]
        if found.kind is Kind.SWAP and not is_swapped:
            self.blocks[node] = (image, groups, True)
        elif found.kind is Kind.IDENTITY:
            self.blocks[node] = self.blocks[source]
        elif found.kind is Kind.FLATTEN and is_swapped and self.shapes[node] == self.shapes[image]:
            self._append(node, replace(found, sources=(image,), groups=groups), Op.CHANNEL_SHUFFLE, node.name)
        else:
            raise unsupported(node, whole)

    def _fuse_channel_pad(self, node: fx.Node, found: Operator) -> None:
        draft = self.values[found.sources[0]]
        fits = draft is not None and draft.op is Op.SHORTCUT_PAD and draft.out_channels == draft.in_shape[0]
        if draft is not None and fits and self._is_sole_use(found.sources[0]):
            draft.name = node.name
            draft.out_channels = self.shapes[node][0]
            draft.pad_before = found.pad_before
            self.values[node] = draft
        else:
            self._append(node, found, Op.SHORTCUT_PAD, node.name)

    def _check_flatten(self, node: fx.Node, found: Operator) -> None:
        before, after = self.shapes[found.sources[0]], self.shapes[node]
        flat = 1
        for extent in before:
            flat *= extent
        if found.kind is Kind.FLATTEN and after not in (before, (flat,), (flat, 1, 1)):
            raise unsupported(
                node, f"it reshapes {before} to {after}: only flattening all but the batch has a meaning here"
            )

    def _is_open(self, draft: _Draft, node: fx.Node) -> bool:
        """Whether a linear operation on `node`'s tensor may be fused into `draft`, which computes it."""
        return draft.activation is Activation.NONE and not draft.has_residual and self._is_sole_use(node)

    def _is_sole_use(self, node: fx.Node) -> bool:
        """Whether one node only reads the tensor of `node`, under whatever name."""
        return len(node.users) == 1 and (node not in self.aliases or self._is_sole_use(self.aliases[node]))

    def _image_shape(self, node: fx.Node) -> tuple[int, int, int]:
        """(channels, h, w) of a node's tensor, seen through flattening."""
        while node in self.aliases and len(self.shapes[node]) != 3:
            node = self.aliases[node]
        shape = self.shapes[node]
        if len(shape) == 3:
            return (shape[0], shape[1], shape[2])
        if len(shape) == 1:
            return (shape[0], 1, 1)
        raise unsupported(node, f"its tensor of shape {shape} is no image")


def _tensor_name(draft: _Draft | None) -> str:
    return NETWORK_INPUT if draft is None else draft.name
