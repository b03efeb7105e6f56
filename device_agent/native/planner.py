"""From a network plan and its tensors to a program: native steps over placed buffers.

Three passes. The operators are lowered to nodes over tensors, which collects what each tensor's layout must satisfy.
Then buffers are placed: a buffer is free again after its last reader, and serves later tensors of the same layout only,
so that the zeros between its rows stay zeros. Last, each node is emitted as steps with all pointers resolved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import (
    NETWORK_INPUT,
    NETWORK_RESIDUAL,
    Activation,
    KernelSpec,
    NetworkPlan,
    Op,
    PlanOp,
)
from device_agent.native.errors import UnsupportedKernelError
from device_agent.native.layout import (
    FLOAT_BYTES,
    VECTOR,
    Form,
    Layout,
    PhaseTensor,
    Tensor,
    phase_of,
    position_mask,
)
from device_agent.native.library import GROUP_SIZES, Kind, Step
from device_agent.native.packing import RowGroups, dense_blocks, depthwise_rows, group_rows, groupings

FloatArray = NDArray[np.float32]

#: A fully connected layer with more non-zeros than this is read as a whole: indices would cost more than they save.
_DENSE_MATVEC_DENSITY = 0.6
_ALIGNMENT = 64

_BOUNDS = {
    Activation.NONE: (-math.inf, math.inf),
    Activation.RELU: (0.0, math.inf),
    Activation.RELU6: (0.0, 6.0),
}


class Phase(Enum):
    """When a step runs. LOAD and STORE convert between the caller's (c, h, w) and the executor's layouts."""

    LOAD = "load"
    RUN = "run"
    STORE = "store"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The steps of one node, in one or more equivalent ways; the tuner chooses."""

    op_index: int
    phase: Phase
    ways: tuple[tuple[Step, ...], ...]
    #: Nodes with the same key have the same best tile.
    tuning_key: object = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Everything that execution needs. `held` keeps the memory alive that the steps point into."""

    work: tuple[Work, ...]
    inputs: dict[str, FloatArray]
    output: FloatArray
    held: tuple[NDArray[Any], ...]

    @property
    def memory_bytes(self) -> int:
        return sum(array.nbytes for array in self.held)


Ways = list[list[Step]]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Node:
    op_index: int
    phase: Phase
    reads: tuple[Tensor, ...]
    writes: Tensor
    emit: Callable[[_Placement], Ways]
    tuning_key: object = None


def make_program(plan: NetworkPlan, tensors: Mapping[str, FloatArray], *, inputs_in_place: bool) -> Program:
    """Lower `plan` with `tensors` (checked: `formats.packed.check_tensors`).

    With `inputs_in_place`, inputs are in the executor's own layout before the timed steps begin, as they are inside of
    a network; else the conversion is part of them. Raises `UnsupportedKernelError` naming the operator.
    """
    lowering = _Lowering(plan, tensors, inputs_in_place)
    return lowering.program()


class _Lowering:
    def __init__(self, plan: NetworkPlan, tensors: Mapping[str, FloatArray], inputs_in_place: bool) -> None:
        self._plan = plan
        self._weights = tensors
        self._inputs_in_place = inputs_in_place
        self._nodes: list[_Node] = []
        self._op_index = 0
        self._by_name: dict[str, Tensor] = {}
        self._planes: dict[Tensor, Tensor] = {}
        self._phases: dict[tuple[Tensor, int], PhaseTensor] = {}
        self._external: dict[str, Tensor] = {}

    def program(self) -> Program:
        self._add_input(NETWORK_INPUT, self._plan.input_shape)
        if self._plan.residual_shape is not None:
            self._add_input(NETWORK_RESIDUAL, self._plan.residual_shape)
        for index, op in enumerate(self._plan.ops):
            self._op_index = index
            _check_supported(op)
            self._by_name[op.name] = self._lower(op)
        output = self._by_name[self._plan.output_name]
        if output.form is not Form.VECTOR:
            compact = Tensor(output.channels, output.height, output.width, Form.COMPACT)
            phase = Phase.STORE if self._inputs_in_place else Phase.RUN
            self._add(phase, (output,), compact, _emit_copy(output, compact))
            output = compact
        return self._place(output)

    # --- inputs and conversions -------------------------------------------------------------------------------------

    def _add_input(self, name: str, shape: tuple[int, int, int]) -> None:
        tensor = _tensor_for(*shape, unpadded=Form.COMPACT)
        self._external[name] = tensor
        if self._inputs_in_place and tensor.form is Form.COMPACT:
            planes = Tensor(*shape, Form.PLANES)
            self._add(Phase.LOAD, (tensor,), planes, _emit_copy(tensor, planes))
            tensor = planes
        self._by_name[name] = tensor

    def _as_planes(self, tensor: Tensor) -> Tensor:
        """`tensor` in the PLANES form, copied there once if it has another."""
        if tensor.form is Form.PLANES:
            return tensor
        if tensor not in self._planes:
            planes = Tensor(tensor.channels, tensor.height, tensor.width, Form.PLANES)
            self._add(Phase.RUN, (tensor,), planes, _emit_copy(tensor, planes))
            self._planes[tensor] = planes
        return self._planes[tensor]

    def _split(self, tensor: Tensor, stride: int) -> PhaseTensor:
        key = (tensor, stride)
        if key not in self._phases:
            phases = PhaseTensor(tensor, stride)
            self._add(Phase.RUN, (tensor,), phases, _emit_phases(phases))
            self._phases[key] = phases
        return self._phases[key]

    def _add(
        self,
        phase: Phase,
        reads: tuple[Tensor, ...],
        writes: Tensor,
        emit: Callable[[_Placement], Ways],
        tuning_key: object = None,
    ) -> None:
        self._nodes.append(
            _Node(op_index=self._op_index, phase=phase, reads=reads, writes=writes, emit=emit, tuning_key=tuning_key)
        )

    # --- operators --------------------------------------------------------------------------------------------------

    def _lower(self, op: PlanOp) -> Tensor:
        kernel = op.kernel
        source = self._by_name[op.inputs[0]]
        residual = None if op.residual is None else self._by_name[op.residual]
        output = _tensor_for(kernel.out_channels, kernel.output_h, kernel.output_w, unpadded=Form.PLANES)
        if kernel.op is Op.FULLY_CONNECTED:
            self._lower_matvec(op, source, None, output, self._weight(op)[:, :, 0, 0])
        elif kernel.op is Op.CONV2D and source.form is Form.VECTOR and output.form is Form.VECTOR:
            # A 1x1 image meets one position of the kernel only.
            row, column = kernel.padding, kernel.padding
            weight = self._weight(op)
            inside = row < kernel.kernel_h and column < kernel.kernel_w
            rows = weight[:, :, row, column] if inside else np.zeros(weight.shape[:2], dtype=np.float32)
            self._lower_matvec(op, source, residual, output, rows)
        elif kernel.op in (Op.CONV2D, Op.DEPTHWISE_CONV2D):
            self._lower_conv(op, source, residual, output)
        elif kernel.op is Op.ADD:
            self._lower_add(kernel, source, self._by_name[op.inputs[1]], output)
        elif kernel.op in (Op.MAX_POOL, Op.AVG_POOL):
            self._add(Phase.RUN, (source,), output, _emit_pool(kernel, source, output))
        elif kernel.op is Op.GLOBAL_AVG_POOL:
            self._lower_global_pool(kernel, source, output)
        elif kernel.op is Op.SHORTCUT_PAD:
            self._add(Phase.RUN, (source,), output, _emit_shortcut(kernel, source, output))
        else:
            raise UnsupportedKernelError(f"{op.name}: the native runtime has no {kernel.op}")
        return output

    def _weight(self, op: PlanOp) -> FloatArray:
        return self._weights[f"{op.name}.weight"]

    def _lower_conv(self, op: PlanOp, source: Tensor, residual: Tensor | None, output: Tensor) -> None:
        kernel = op.kernel
        if kernel.stride == 1:
            read = self._as_planes(source)
            read.need_padding(kernel.padding)
        else:
            phases = self._split(source, kernel.stride)
            phases.need_phases(kernel.kernel_h, kernel.kernel_w, kernel.padding)
            read = phases
        target = output
        if output.form is not Form.PLANES:
            target = Tensor(output.channels, output.height, output.width, Form.PLANES)
        target.join_rows(read)
        reads: tuple[Tensor, ...] = (read,)
        if residual is not None:
            residual = self._as_planes(residual)
            residual.join_rows(target)
            reads = (read, residual)
        if kernel.op is Op.CONV2D:
            rows = self._weight(op).reshape(kernel.out_channels, -1)
            ways = groupings(rows, kernel.pruning.block_filters)
        else:
            ways = depthwise_rows(self._weight(op).reshape(kernel.out_channels, -1))
        emit = _emit_conv(kernel, ways, self._weights[f"{op.name}.bias"], read, residual, target)
        self._add(Phase.RUN, reads, target, emit, tuning_key=replace(kernel, seed=0))
        if target is not output:
            self._add(Phase.RUN, (target,), output, _emit_copy(target, output))

    def _lower_matvec(
        self, op: PlanOp, source: Tensor, residual: Tensor | None, output: Tensor, rows: FloatArray
    ) -> None:
        emit = _emit_matvec(op.kernel, rows, self._weights[f"{op.name}.bias"], source, residual, output)
        reads = (source,) if residual is None else (source, residual)
        self._add(Phase.RUN, reads, output, emit)

    def _lower_add(self, kernel: KernelSpec, first: Tensor, second: Tensor, output: Tensor) -> None:
        if output.form is Form.PLANES:
            first, second = self._as_planes(first), self._as_planes(second)
            first.join_rows(output)
            second.join_rows(output)
        self._add(Phase.RUN, (first, second), output, _emit_elementwise(kernel, first, second, output))

    def _lower_global_pool(self, kernel: KernelSpec, source: Tensor, output: Tensor) -> None:
        if source.form is Form.VECTOR:
            self._add(Phase.RUN, (source,), output, _emit_elementwise(kernel, source, None, output))
            return
        source = self._as_planes(source)
        self._add(Phase.RUN, (source,), output, _emit_global_pool(kernel, source, output))

    # --- placement --------------------------------------------------------------------------------------------------

    def _place(self, output: Tensor) -> Program:
        placement = _Placement()
        for tensor in self._external.values():
            placement.allocate(tensor)
        last_use = {tensor: index for index, node in enumerate(self._nodes) for tensor in node.reads}
        # What is loaded once stays valid for every later run.
        kept = {output, *self._external.values(), *(n.writes for n in self._nodes if n.phase is Phase.LOAD)}
        work = []
        for index, node in enumerate(self._nodes):
            placement.allocate(node.writes)
            ways = node.emit(placement)
            layouts = tuple(tensor.layout() for tensor in (*node.reads, node.writes))
            work.append(
                Work(
                    op_index=node.op_index,
                    phase=node.phase,
                    ways=tuple(tuple(way) for way in ways),
                    tuning_key=None if node.tuning_key is None else (node.tuning_key, layouts),
                )
            )
            for tensor in {*node.reads, node.writes}:
                if last_use.get(tensor, index) <= index and tensor not in kept:
                    placement.release(tensor)
        return Program(
            work=tuple(work),
            inputs={name: placement.elements(tensor) for name, tensor in self._external.items()},
            output=placement.elements(output),
            held=tuple(placement.held),
        )


@dataclass(slots=True)
class _Placement:
    """Buffers and constants at fixed addresses."""

    held: list[NDArray[Any]] = field(default_factory=list)
    _buffers: dict[Tensor, FloatArray] = field(default_factory=dict)
    _free: dict[Layout, list[FloatArray]] = field(default_factory=dict)
    _masks: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def allocate(self, tensor: Tensor) -> None:
        if tensor in self._buffers:
            return
        layout = tensor.layout()
        reusable = self._free.get(layout)
        self._buffers[tensor] = reusable.pop() if reusable else self._new(layout.size)

    def release(self, tensor: Tensor) -> None:
        self._free.setdefault(tensor.layout(), []).append(self._buffers[tensor])

    def address(self, tensor: Tensor) -> int:
        """Where element (0, 0, 0) of `tensor` is."""
        return self._buffers[tensor].ctypes.data + FLOAT_BYTES * tensor.layout().lead

    def elements(self, tensor: Tensor) -> FloatArray:
        """A COMPACT or VECTOR tensor as an array (c, h, w) over its buffer."""
        shape = (tensor.channels, tensor.height, tensor.width)
        return self._buffers[tensor][: math.prod(shape)].reshape(shape)

    def mask(self, layout: Layout) -> int:
        key = (layout.row, layout.height, layout.width)
        if key not in self._masks:
            self._masks[key] = self.constant(position_mask(layout))
        return self._masks[key]

    def constant(self, values: NDArray[Any]) -> int:
        """The address of an aligned copy of `values` that lives as long as the program."""
        copy = _aligned(values.size, values.dtype)
        copy[: values.size] = values.reshape(-1)
        self.held.append(copy)
        return copy.ctypes.data

    def _new(self, size: int) -> FloatArray:
        buffer = _aligned(size, np.dtype(np.float32))
        self.held.append(buffer)
        return buffer


def _aligned(size: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Zeros, aligned to a cache line, with a vector to spare."""
    num_bytes = (size + VECTOR) * dtype.itemsize
    raw = np.zeros(num_bytes + _ALIGNMENT, dtype=np.uint8)
    start = -raw.ctypes.data % _ALIGNMENT
    return raw[start : start + num_bytes].view(dtype)


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


# --- steps ----------------------------------------------------------------------------------------------------------


def _bounded(step: Step, activation: Activation) -> Step:
    step.lower, step.upper = _BOUNDS[activation]
    return step


def _set_input(step: Step, placement: _Placement, tensor: Tensor) -> Layout:
    layout = tensor.layout()
    step.input, step.input_row, step.input_plane = placement.address(tensor), layout.row, layout.plane
    step.input_h, step.input_w = layout.height, layout.width
    return layout


def _set_output(step: Step, placement: _Placement, tensor: Tensor) -> Layout:
    layout = tensor.layout()
    step.output, step.output_row, step.output_plane = placement.address(tensor), layout.row, layout.plane
    step.output_h, step.output_w = layout.height, layout.width
    return layout


def _emit_copy(source: Tensor, target: Tensor) -> Callable[[_Placement], Ways]:
    def emit(placement: _Placement) -> Ways:
        step = Step(kind=Kind.SPLIT, stride=1, channels=source.channels, num_phases=1)
        _set_input(step, placement, source)
        _set_output(step, placement, target)
        return [[step]]

    return emit


def _emit_phases(phases: PhaseTensor) -> Callable[[_Placement], Ways]:
    def emit(placement: _Placement) -> Ways:
        step = Step(
            kind=Kind.SPLIT,
            stride=phases.stride,
            channels=phases.source.channels,
            num_phases=phases.num_phases,
            phases=placement.constant(phases.phase_indices()),
        )
        _set_input(step, placement, phases.source)
        _set_output(step, placement, phases)
        return [[step]]

    return emit


def _emit_conv(
    kernel: KernelSpec,
    ways: list[list[RowGroups]],
    bias: FloatArray,
    source: Tensor,
    residual: Tensor | None,
    target: Tensor,
) -> Callable[[_Placement], Ways]:
    def emit(placement: _Placement) -> Ways:
        offsets = _tap_offsets(kernel, source)
        common = _bounded(Step(kind=Kind.CONV, bias=placement.constant(bias)), kernel.activation)
        _set_input(common, placement, source)
        layout = _set_output(common, placement, target)
        common.positions, common.mask = layout.positions, placement.mask(layout)
        if residual is not None:
            common.second, common.second_plane = placement.address(residual), residual.layout().plane
        return [[_conv_step(common, groups, offsets, placement) for groups in way] for way in ways]

    return emit


def _tap_offsets(kernel: KernelSpec, source: Tensor) -> NDArray[np.int32]:
    """The offset of each column (input channel, kernel y, kernel x) from the output's position, in elements."""
    layout = source.layout()
    stride = kernel.stride
    y, x = np.meshgrid(
        np.arange(kernel.kernel_h) - kernel.padding, np.arange(kernel.kernel_w) - kernel.padding, indexing="ij"
    )
    taps = (y // stride) * layout.row + x // stride
    planes_per_channel = 1
    if isinstance(source, PhaseTensor):
        taps = taps + source.phase_indices()[phase_of(y, x, stride)] * layout.plane
        planes_per_channel = source.num_phases
    channels = np.arange(kernel.in_channels, dtype=np.int64) * planes_per_channel * layout.plane
    if layout.size >= 1 << 31:
        raise UnsupportedKernelError(f"an input of {layout.size} elements exceeds the reach of 32-bit offsets")
    return (channels[:, None, None] + taps).reshape(-1).astype(np.int32)


def _conv_step(common: Step, groups: RowGroups, offsets: NDArray[np.int32], placement: _Placement) -> Step:
    step = Step.from_buffer_copy(common)
    step.group_size, step.num_groups = groups.group_size, len(groups.channels)
    step.group_channels = placement.constant(groups.channels)
    step.group_starts = placement.constant(groups.starts)
    step.offsets = placement.constant(offsets[groups.columns])
    step.weights = placement.constant(groups.values)
    return step


def _emit_matvec(
    kernel: KernelSpec,
    rows: FloatArray,
    bias: FloatArray,
    source: Tensor,
    residual: Tensor | None,
    output: Tensor,
) -> Callable[[_Placement], Ways]:
    def emit(placement: _Placement) -> Ways:
        common = _bounded(
            Step(channels=rows.shape[1], outputs=rows.shape[0], bias=placement.constant(bias)), kernel.activation
        )
        _set_input(common, placement, source)
        _set_output(common, placement, output)
        if residual is not None:
            common.second = placement.address(residual)
        # The grouping follows from the weights alone: here, unlike in convolutions, it has an effect on rounding.
        size = next(size for size in GROUP_SIZES if kernel.pruning.block_filters % size == 0)
        way = group_rows(rows, kernel.pruning.block_filters, size)
        if sum(groups.values.size for groups in way) > _DENSE_MATVEC_DENSITY * rows.size:
            common.kind = Kind.DENSE_MATVEC
            common.weights = placement.constant(dense_blocks(rows, VECTOR))
            return [[common]]
        common.kind = Kind.SPARSE_MATVEC
        inputs = np.arange(rows.shape[1], dtype=np.int32)
        return [[_conv_step(common, groups, inputs, placement) for groups in way]]

    return emit


def _emit_elementwise(
    kernel: KernelSpec, first: Tensor, second: Tensor | None, output: Tensor
) -> Callable[[_Placement], Ways]:
    def emit(placement: _Placement) -> Ways:
        return [[_elementwise_step(kernel, first, second, output, placement)]]

    return emit


def _elementwise_step(
    kernel: KernelSpec, first: Tensor, second: Tensor | None, output: Tensor, placement: _Placement
) -> Step:
    step = _bounded(Step(kind=Kind.ELEMENTWISE), kernel.activation)
    _set_input(step, placement, first)
    layout = _set_output(step, placement, output)
    if output.form is Form.VECTOR:
        layout = replace(layout, channels=1, width=layout.channels, row=layout.channels)
    step.channels, step.positions, step.mask = layout.channels, layout.positions, placement.mask(layout)
    if second is not None:
        step.second, step.second_plane = placement.address(second), second.layout().plane
    return step


def _emit_pool(kernel: KernelSpec, source: Tensor, output: Tensor) -> Callable[[_Placement], Ways]:
    def emit(placement: _Placement) -> Ways:
        step = _bounded(
            Step(
                kind=Kind.MAX_POOL if kernel.op is Op.MAX_POOL else Kind.AVG_POOL,
                channels=kernel.in_channels,
                kernel_h=kernel.kernel_h,
                kernel_w=kernel.kernel_w,
                stride=kernel.stride,
                padding=kernel.padding,
                scale=1.0 / (kernel.kernel_h * kernel.kernel_w),
                scratch=placement.constant(np.zeros(kernel.input_w + 2 * kernel.padding, dtype=np.float32)),
            ),
            kernel.activation,
        )
        _set_input(step, placement, source)
        _set_output(step, placement, output)
        return [[step]]

    return emit


def _emit_global_pool(kernel: KernelSpec, source: Tensor, output: Tensor) -> Callable[[_Placement], Ways]:
    def emit(placement: _Placement) -> Ways:
        step = _bounded(
            Step(
                kind=Kind.GLOBAL_AVG_POOL,
                channels=kernel.in_channels,
                scale=1.0 / (kernel.input_h * kernel.input_w),
            ),
            kernel.activation,
        )
        step.positions = _set_input(step, placement, source).positions
        _set_output(step, placement, output)
        return [[step]]

    return emit


def _emit_shortcut(kernel: KernelSpec, source: Tensor, output: Tensor) -> Callable[[_Placement], Ways]:
    def emit(placement: _Placement) -> Ways:
        before = kernel.pad_channels_before
        after = kernel.out_channels - kernel.in_channels - before
        plane_bytes = FLOAT_BYTES * output.layout().plane
        phases = np.full(kernel.stride * kernel.stride, -1, dtype=np.int32)
        phases[0] = 0
        copy = Step(
            kind=Kind.SPLIT,
            stride=kernel.stride,
            channels=kernel.in_channels,
            num_phases=1,
            phases=placement.constant(phases),
        )
        _set_input(copy, placement, source)
        _set_output(copy, placement, output)
        start = placement.address(output)
        copy.output = start + before * plane_bytes
        steps = [copy]
        for count, first in ((before, 0), (after, before + kernel.in_channels)):
            if count:
                clear = Step(kind=Kind.ZERO, channels=count)
                _set_output(clear, placement, output)
                clear.output = start + first * plane_bytes
                steps.append(clear)
        if kernel.activation is not Activation.NONE:
            steps.append(_elementwise_step(kernel, output, None, output, placement))
        return [steps]

    return emit
