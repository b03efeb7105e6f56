"""From a network plan and its tensors to a program: native steps over placed buffers.

Three passes. The operators are lowered to nodes over tensors, which collects what each tensor's layout must satisfy.
Then tensors are placed, in memory that is free again after their last reader. Last, each node is emitted as steps with
all pointers resolved.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import NETWORK_INPUT, NETWORK_RESIDUAL, Activation, KernelSpec, NetworkPlan, Op, PlanOp
from device_agent.native import steps
from device_agent.native.blocks import blockwise_pairs, channels_per_block
from device_agent.native.errors import UnsupportedKernelError
from device_agent.native.layout import ChannelView, Form, PhaseTensor, Tensor
from device_agent.native.placement import Placement
from device_agent.native.steps import Emitter, Run, Ways
from device_agent.native.weights import Weights, WeightSource

FloatArray = NDArray[np.float32]

#: Zeros around images in a network whose convolutions are mostly 3x3.
_USUAL_PADDING = 1


class Phase(Enum):
    """When a step runs. LOAD and STORE convert between the caller's (c, h, w) and the executor's layouts."""

    LOAD = "load"
    RUN = "run"
    STORE = "store"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The steps of one node. `ways` emits them in one or more equivalent ways, of which the tuner chooses one."""

    op_index: int
    phase: Phase
    #: Called once, and late: the constants of all ways of all nodes together would take several times the memory.
    ways: Callable[[], Ways]
    #: Nodes with the same key have the same best tile.
    tuning_key: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Everything that execution needs. `held` keeps the memory alive that all ways point into, and is complete when all
    ways have been emitted.
    """

    work: tuple[Work, ...]
    inputs: dict[str, FloatArray]
    output: FloatArray
    held: Sequence[NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    op_index: int
    phase: Phase
    reads: tuple[Tensor, ...]
    writes: Tensor
    emit: Emitter
    #: What is to be tuned, if anything is.
    kernel: KernelSpec | None = None


def make_program(
    plan: NetworkPlan,
    tensors: Mapping[str, WeightSource],
    *,
    inputs_in_place: bool,
    exact: bool = False,
    threads: int = 1,
) -> Program:
    """Lower `plan` with `tensors` (checked: `formats.packed.check_tensors`).

    With `inputs_in_place`, inputs are in the executor's own layout before the timed steps begin, as they are inside of
    a network, with the padding that they usually have there; else the conversion is part of them. With `exact`, all
    ways of a node give the same bits: Winograd's algorithm is left out. `threads` is how many may share a step.

    Raises `UnsupportedKernelError` naming the operator.
    """
    lowering = _Lowering(plan, tensors, inputs_in_place, exact, threads)
    return lowering.program()


class _Lowering:
    def __init__(
        self, plan: NetworkPlan, tensors: Mapping[str, WeightSource], inputs_in_place: bool, exact: bool, threads: int
    ) -> None:
        self._plan = plan
        self._tensors = tensors
        self._inputs_in_place = inputs_in_place
        self._exact = exact
        self._threads = threads
        self._nodes: list[_Node] = []
        self._op_index = 0
        self._by_name: dict[str, Tensor] = {}
        self._planes: dict[Tensor, Tensor] = {}
        self._phases: dict[tuple[Tensor, int], PhaseTensor] = {}
        self._external: dict[str, Tensor] = {}
        self._pairs = blockwise_pairs(plan)

    def program(self) -> Program:
        self._add_input(NETWORK_INPUT, self._plan.input_shape)
        if self._plan.residual_shape is not None:
            self._add_input(NETWORK_RESIDUAL, self._plan.residual_shape)
        later = {op.name for op in self._pairs.values()}
        for index, op in enumerate(self._plan.ops):
            self._op_index = index
            _check_supported(op)
            if op.name not in later:
                self._by_name[op.name] = self._lower(op)
        output = self._by_name[self._plan.output_name]
        if output.form is not Form.VECTOR:
            compact = Tensor(output.channels, output.height, output.width, Form.COMPACT)
            phase = Phase.STORE if self._inputs_in_place else Phase.RUN
            self._add(phase, (output,), compact, steps.emit_copy(output, compact))
            output = compact
        return self._place(output)

    # --- inputs and conversions -------------------------------------------------------------------------------------

    def _add_input(self, name: str, shape: tuple[int, int, int]) -> None:
        tensor = _tensor_for(*shape, unpadded=Form.COMPACT)
        self._external[name] = tensor
        if self._inputs_in_place and tensor.form is Form.COMPACT:
            planes = Tensor(*shape, Form.PLANES)
            self._add(Phase.LOAD, (tensor,), planes, steps.emit_copy(tensor, planes))
            tensor = planes
        self._by_name[name] = tensor

    def _as_planes(self, tensor: Tensor) -> Tensor:
        """`tensor` in the PLANES form, copied there once if it has another."""
        if tensor.form is Form.PLANES:
            return tensor
        if tensor not in self._planes:
            planes = Tensor(tensor.channels, tensor.height, tensor.width, Form.PLANES)
            self._add(Phase.RUN, (tensor,), planes, steps.emit_copy(tensor, planes))
            self._planes[tensor] = planes
        return self._planes[tensor]

    def _split(self, tensor: Tensor, stride: int) -> PhaseTensor:
        key = (tensor, stride)
        if key not in self._phases:
            phases = PhaseTensor(tensor, stride)
            self._add(Phase.RUN, (tensor,), phases, steps.emit_phases(phases))
            self._phases[key] = phases
        return self._phases[key]

    def _add(
        self,
        phase: Phase,
        reads: tuple[Tensor, ...],
        writes: Tensor,
        emit: Emitter,
        kernel: KernelSpec | None = None,
    ) -> None:
        self._nodes.append(
            _Node(op_index=self._op_index, phase=phase, reads=reads, writes=writes, emit=emit, kernel=kernel)
        )

    # --- operators --------------------------------------------------------------------------------------------------

    def _lower(self, op: PlanOp) -> Tensor:
        output = self._lower_clamped(replace(op, kernel=_clamped(op.kernel)))
        self._activate(op.kernel, output)
        return output

    def _activate(self, kernel: KernelSpec, tensor: Tensor) -> None:
        """The activation of `kernel` on its output, where no step does it on its way."""
        if not kernel.activation.is_clamp:
            emit = steps.emit_activation(kernel.activation, tensor)
            self._add(Phase.RUN, (tensor,), tensor, emit)

    def _lower_clamped(self, op: PlanOp) -> Tensor:
        """`op`, whose activation is a clamp."""
        kernel = op.kernel
        output = _tensor_for(kernel.out_channels, kernel.output_h, kernel.output_w, unpadded=Form.PLANES)
        if op.name in self._pairs:
            self._lower_blockwise(self._pairs[op.name], op, output)
            return output
        source = self._by_name[op.inputs[0]]
        residual = None if op.residual is None else self._by_name[op.residual]
        if kernel.op is Op.FULLY_CONNECTED:
            self._lower_matvec(op, source, None, output, self._op_weights(op))
        elif kernel.groups > 1 and kernel.op is Op.CONV2D:
            self._lower_grouped(op, source, output)
        elif kernel.channel_multiplier > 1:
            repeated = self._repeat(source, kernel.channel_multiplier)
            each = replace(op, kernel=replace(kernel, in_channels=kernel.out_channels))
            self._lower_depthwise(each, repeated, output)
        elif kernel.op is Op.CONV2D and source.form is Form.VECTOR and output.form is Form.VECTOR:
            # A 1x1 image meets one position of the kernel only.
            taps = self._tensors[f"{op.name}.weight"][:][:, :, kernel.padding :, kernel.padding :]
            inside = taps.shape[2] > 0 and taps.shape[3] > 0
            rows = taps[:, :, 0, 0] if inside else np.zeros(taps.shape[:2], dtype=np.float32)
            self._lower_matvec(op, source, residual, output, Weights(rows))
        elif kernel.op is Op.DEPTHWISE_CONV2D:
            self._lower_depthwise(op, source, output)
        elif kernel.op is Op.CONV2D:
            self._lower_conv(op, source, residual, output)
        elif kernel.op is Op.ADD:
            self._lower_add(kernel, source, self._by_name[op.inputs[1]], output)
        elif kernel.op is Op.MUL:
            self._lower_multiply(kernel, source, self._by_name[op.inputs[1]], output)
        elif kernel.op is Op.CONCAT:
            self._lower_concat(kernel, source, self._by_name[op.inputs[1]], output)
        elif kernel.op in (Op.FIRST_CHANNELS, Op.LAST_CHANNELS):
            first = 0 if kernel.op is Op.FIRST_CHANNELS else kernel.in_channels - kernel.out_channels
            self._lower_copies(kernel, source, output, (Run(count=kernel.out_channels, source=first),))
        elif kernel.op is Op.CHANNEL_SHUFFLE:
            self._lower_copies(kernel, source, output, _shuffled(kernel))
        elif kernel.op in (Op.MAX_POOL, Op.AVG_POOL):
            self._add(Phase.RUN, (source,), output, steps.emit_pool(kernel, source, output))
        elif kernel.op is Op.GLOBAL_AVG_POOL:
            self._lower_global_pool(kernel, source, output)
        elif kernel.op is Op.SHORTCUT_PAD:
            self._add(Phase.RUN, (source,), output, steps.emit_shortcut(kernel, source, output))
        else:
            raise UnsupportedKernelError(f"{op.name}: the native runtime has no {kernel.op}")
        return output

    def _op_weights(self, op: PlanOp) -> Weights:
        return Weights(self._tensors[f"{op.name}.weight"])

    def _bias(self, op: PlanOp) -> FloatArray:
        return self._tensors[f"{op.name}.bias"][:]

    def _lower_conv(self, op: PlanOp, source: Tensor, residual: Tensor | None, output: Tensor) -> None:
        kernel = op.kernel
        target = output
        if output.form is not Form.PLANES:
            target = Tensor(output.channels, output.height, output.width, Form.PLANES)
        if residual is not None:
            residual = self._as_planes(residual)
        weights = self._op_weights(op)
        by_winograd = not self._exact and steps.is_for_winograd(kernel, weights)
        if self._inputs_in_place and kernel.stride > 1 and kernel.kernel_h * kernel.kernel_w > 1:
            # Convolutions of stride 1 before and behind it want zeros around what it reads and writes.
            for tensor in (source, target):
                tensor.need_padding(_USUAL_PADDING)
        read = self._conv_input(kernel, source)
        self._add_conv(kernel, weights, self._bias(op), read, residual, target, by_winograd=by_winograd)
        if target is not output:
            self._add(Phase.RUN, (target,), output, steps.emit_copy(target, output))

    def _lower_depthwise(self, op: PlanOp, source: Tensor, output: Tensor) -> None:
        kernel = op.kernel
        if steps.has_depthwise_kernel(kernel):
            emit = steps.emit_depthwise(kernel, self._op_weights(op), self._bias(op), source, output)
            self._add(Phase.RUN, (source,), output, emit)
        else:
            self._lower_conv(op, source, None, output)

    def _repeat(self, source: Tensor, times: int) -> Tensor:
        """Each channel of `source` so many times, one behind the other."""
        repeated = _tensor_for(source.channels * times, source.height, source.width, unpadded=Form.PLANES)
        runs = tuple(Run(count=source.channels, target=i, stride=times) for i in range(times))
        self._add(Phase.RUN, (source,), repeated, steps.emit_copies(source, repeated, runs))
        return repeated

    def _lower_grouped(self, op: PlanOp, source: Tensor, output: Tensor) -> None:
        """A grouped convolution: one for each group, on channels where they are. Winograd's algorithm is left out, as
        groups have few channels.
        """
        kernel = op.kernel
        part = replace(
            kernel,
            groups=1,
            in_channels=kernel.in_channels // kernel.groups,
            out_channels=kernel.out_channels // kernel.groups,
        )
        target = output
        if output.form is not Form.PLANES:
            target = Tensor(output.channels, output.height, output.width, Form.PLANES)
        read = self._as_planes(source) if source.form is Form.VECTOR else source
        read = self._conv_input(part, read)
        if read.padding >= kernel.padding and kernel.stride == 1:
            target.join_rows(read)
        weights, bias = self._op_weights(op), self._bias(op)
        for group in range(kernel.groups):
            filters = slice(group * part.out_channels, (group + 1) * part.out_channels)
            emit = functools.partial(
                _emit_group, part, group, weights.part(filters), bias[filters], read=read, target=target
            )
            self._add(Phase.RUN, (read,), target, emit, part)
        if target is not output:
            self._add(Phase.RUN, (target,), output, steps.emit_copy(target, output))

    def _conv_input(self, kernel: KernelSpec, source: Tensor, *, has_many_readers: bool = False) -> Tensor:
        """`source` as the convolution `kernel` reads it: where it is, with or without padding, or split into phases.

        Steps pack their input themselves. Where several of them read the same one, it is split once for all instead.
        """
        if steps.reads_padding(kernel):
            read = self._as_planes(source)
            read.need_padding(kernel.padding)
            return read
        if kernel.stride > 1 and (kernel.op is Op.DEPTHWISE_CONV2D or has_many_readers):
            phases = self._split(source, kernel.stride)
            phases.need_phases(kernel.kernel_h, kernel.kernel_w, kernel.padding)
            return phases
        source.need_margin(kernel.padding)
        return source

    def _add_conv(
        self,
        kernel: KernelSpec,
        weights: Weights,
        bias: FloatArray,
        read: Tensor,
        residual: Tensor | None,
        target: Tensor,
        *,
        by_winograd: bool = False,
    ) -> None:
        """A convolution of what `_conv_input` gave, perhaps `by_winograd`: the tuner chooses."""
        if read.padding >= kernel.padding and (kernel.stride == 1 or isinstance(read, PhaseTensor)):
            target.join_rows(read)
        reads: tuple[Tensor, ...] = (read,)
        if residual is not None:
            residual.join_rows(target)
            reads = (read, residual)
        emit = steps.emit_conv(kernel, weights, bias, read, residual, target)
        if by_winograd:
            emit = steps.emit_any(emit, steps.emit_winograd(kernel, weights, bias, read, residual, target))
        self._add(Phase.RUN, reads, target, emit, kernel)

    def _lower_blockwise(self, conv: PlanOp, reader: PlanOp, output: Tensor) -> None:
        """A convolution and the depthwise convolution or pool that reads it, a few channels at a time."""
        kernel, reader_index = conv.kernel, self._op_index
        conv_index = next(index for index, op in enumerate(self._plan.ops) if op is conv)
        self._op_index = conv_index
        read = self._conv_input(kernel, self._by_name[conv.inputs[0]], has_many_readers=True)
        size = channels_per_block(kernel)
        for first in range(0, kernel.out_channels, size):
            channels = slice(first, min(first + size, kernel.out_channels))
            part = replace(_clamped(kernel), out_channels=channels.stop - channels.start)
            between = Tensor(part.out_channels, kernel.output_h, kernel.output_w, Form.PLANES)
            self._op_index = conv_index
            self._add_conv(part, self._op_weights(conv).part(channels), self._bias(conv)[channels], read, None, between)
            self._activate(kernel, between)
            self._op_index = reader_index
            if reader.kernel.op is Op.DEPTHWISE_CONV2D:
                weights, bias = self._op_weights(reader).part(channels), self._bias(reader)[channels]
                emit = steps.emit_depthwise(reader.kernel, weights, bias, between, output, first)
            else:
                emit = steps.emit_pool(reader.kernel, between, output, first)
            self._add(Phase.RUN, (between,), output, emit)

    def _lower_matvec(
        self, op: PlanOp, source: Tensor, residual: Tensor | None, output: Tensor, weights: Weights
    ) -> None:
        emit = steps.emit_matvec(op.kernel, weights, self._bias(op), source, residual, output)
        reads = (source,) if residual is None else (source, residual)
        self._add(Phase.RUN, reads, output, emit)

    def _lower_add(self, kernel: KernelSpec, first: Tensor, second: Tensor, output: Tensor) -> None:
        if output.form is Form.PLANES:
            first, second = self._as_planes(first), self._as_planes(second)
            first.join_rows(output)
            second.join_rows(output)
        self._add(Phase.RUN, (first, second), output, steps.emit_elementwise(kernel, first, second, output))

    def _lower_multiply(self, kernel: KernelSpec, source: Tensor, gate: Tensor, output: Tensor) -> None:
        if output.form is Form.PLANES:
            source = self._as_planes(source)
            source.join_rows(output)
        self._add(Phase.RUN, (source, gate), output, steps.emit_multiply(kernel, source, gate, output))

    def _lower_concat(self, kernel: KernelSpec, first: Tensor, second: Tensor, output: Tensor) -> None:
        # Rows of one stride are copied as one.
        for source in (first, second):
            if source.form is output.form is Form.PLANES:
                source.join_rows(output)
        self._add(Phase.RUN, (first,), output, steps.emit_copy(first, output))
        self._add(Phase.RUN, (second,), output, steps.emit_copy(second, output, kernel.in_channels))
        if kernel.activation is not Activation.NONE:
            self._add(Phase.RUN, (output,), output, steps.emit_elementwise(kernel, output, None, output))

    def _lower_copies(self, kernel: KernelSpec, source: Tensor, output: Tensor, runs: Sequence[Run]) -> None:
        """`runs` of channels of `source`, and what clamps them."""
        if source.form is output.form is Form.PLANES:
            source.join_rows(output)
        self._add(Phase.RUN, (source,), output, steps.emit_copies(source, output, runs))
        if kernel.activation is not Activation.NONE:
            self._add(Phase.RUN, (output,), output, steps.emit_elementwise(kernel, output, None, output))

    def _lower_global_pool(self, kernel: KernelSpec, source: Tensor, output: Tensor) -> None:
        if source.form is Form.VECTOR:
            self._add(Phase.RUN, (source,), output, steps.emit_elementwise(kernel, source, None, output))
            return
        source = self._as_planes(source)
        self._add(Phase.RUN, (source,), output, steps.emit_global_pool(kernel, source, output))

    # --- placement --------------------------------------------------------------------------------------------------

    def _place(self, output: Tensor) -> Program:
        placement = Placement(threads=self._threads)
        for tensor in self._external.values():
            placement.place(tensor)
        placement.place_all(self._lifetimes(output))
        work = []
        for node in self._nodes:
            work.append(
                Work(
                    op_index=node.op_index,
                    phase=node.phase,
                    ways=functools.partial(node.emit, placement),
                    tuning_key=None if node.kernel is None else _tuning_key(node.kernel, node.reads[0], node.writes),
                )
            )
        return Program(
            work=tuple(work),
            inputs={name: placement.elements(tensor) for name, tensor in self._external.items()},
            output=placement.elements(output),
            held=placement.held,
        )

    def _lifetimes(self, output: Tensor) -> dict[Tensor, tuple[int, int]]:
        """The first and the last node that uses each tensor that is not an input."""
        lifetimes: dict[Tensor, tuple[int, int]] = {}
        for index, node in enumerate(self._nodes):
            for tensor in (*node.reads, node.writes):
                if tensor not in self._external.values():
                    lifetimes[tensor] = (lifetimes.get(tensor, (index, index))[0], index)
        # What is loaded once stays valid for every later run, and the output until it is read.
        for tensor in (*(node.writes for node in self._nodes if node.phase is Phase.LOAD), output):
            if tensor in lifetimes:
                lifetimes[tensor] = (0, len(self._nodes))
        return lifetimes


def _tuning_key(kernel: KernelSpec, read: Tensor, written: Tensor) -> object:
    """What decides on the best tiling. A residual and an activation cost all tilings alike, and what lies around the
    image costs nothing but for the padding that the kernel wants.
    """
    plain = replace(kernel, seed=0, residual=False, activation=Activation.NONE)
    layouts = tuple(replace(tensor.layout(), lead=0, size=0) for tensor in (read, written))
    return plain, read.padding >= kernel.padding, layouts


def _emit_group(
    kernel: KernelSpec,
    group: int,
    weights: Weights,
    bias: FloatArray,
    placement: Placement,
    *,
    read: Tensor,
    target: Tensor,
) -> Ways:
    """One group of a grouped convolution, as the convolution `kernel`. Late, when all demands on layouts are known."""
    channels_read = ChannelView(read, group * kernel.in_channels, kernel.in_channels)
    channels_written = ChannelView(target, group * kernel.out_channels, kernel.out_channels)
    return steps.emit_conv(kernel, weights, bias, channels_read, None, channels_written)(placement)


def _shuffled(kernel: KernelSpec) -> tuple[Run, ...]:
    """A shuffle, a block of channels at a time."""
    count = kernel.in_channels // kernel.groups
    blocks = range(kernel.groups)
    return tuple(Run(count=count, source=block * count, target=block, stride=kernel.groups) for block in blocks)


def _clamped(kernel: KernelSpec) -> KernelSpec:
    """`kernel` without an activation that is a pass of its own."""
    return kernel if kernel.activation.is_clamp else replace(kernel, activation=Activation.NONE)


def _tensor_for(channels: int, height: int, width: int, *, unpadded: Form) -> Tensor:
    return Tensor(channels, height, width, Form.VECTOR if height == width == 1 else unpadded)


def _check_supported(op: PlanOp) -> None:
    kernel = op.kernel
    if kernel.op is Op.FULLY_CONNECTED and (kernel.input_h, kernel.input_w) != (1, 1):
        raise UnsupportedKernelError(
            f"{op.name}: fully connected reads (c, 1, 1), not an image of {kernel.input_h}x{kernel.input_w}: "
            "put a global pool before it, or use a convolution"
        )
    if kernel.op in (Op.MAX_POOL, Op.AVG_POOL) and 2 * kernel.padding > min(kernel.kernel_h, kernel.kernel_w):
        raise UnsupportedKernelError(
            f"{op.name}: padding {kernel.padding} is more than half of the {kernel.kernel_h}x{kernel.kernel_w} window"
        )
    if kernel.op in (Op.ADD, Op.SHORTCUT_PAD) and (kernel.kernel_h, kernel.kernel_w, kernel.padding) != (1, 1, 0):
        raise UnsupportedKernelError(f"{op.name}: {kernel.op} has no window, but kernel and padding say otherwise")
    if kernel.op is Op.ADD and kernel.stride != 1:
        raise UnsupportedKernelError(f"{op.name}: an add of stride {kernel.stride} is not defined")
