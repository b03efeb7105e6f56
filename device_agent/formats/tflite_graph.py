"""A TFLite model as a flatbuffer, written by slot number: numpy and flatbuffers, no generated schema.

Only the tables and fields that Kerf's networks need are here. Slot numbers, operator codes and option types are those
of TensorFlow Lite's `schema.fbs`, version 3 (file identifier TFL3); a test checks each against the schema that
ai-edge-litert ships.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum

import flatbuffers
import numpy as np
from numpy.typing import NDArray

from device_agent.contracts.codec import ContractError
from device_agent.formats.flatbuffer_tables import OffsetField, int_vector, offset_vector, write_table
from device_agent.formats.tflite_sparsity import BlockSparseRows, write_sparsity

SCHEMA_VERSION = 3
FILE_IDENTIFIER = b"TFL3"

#: Flatbuffers are addressed with signed 32-bit offsets.
MAX_MODEL_BYTES = (1 << 31) - (1 << 20)

#: The schema forces this alignment on buffers: XNNPACK reads the weights in place.
WEIGHT_ALIGNMENT = 16


class BuiltinOperator(IntEnum):
    """Operator codes that Kerf writes."""

    ADD = 0
    AVERAGE_POOL_2D = 1
    CONCATENATION = 2
    CONV_2D = 3
    DEPTHWISE_CONV_2D = 4
    FULLY_CONNECTED = 9
    LOGISTIC = 14
    MAX_POOL_2D = 17
    MUL = 18
    RELU = 19
    RELU6 = 21
    RESHAPE = 22
    PAD = 34
    TRANSPOSE = 39
    MEAN = 40
    STRIDED_SLICE = 45
    PADV2 = 60
    SLICE = 65
    HARD_SWISH = 117
    DENSIFY = 124


class BuiltinOptions(IntEnum):
    """Tags of the options union."""

    NONE = 0
    CONV_2D = 1
    DEPTHWISE_CONV_2D = 2
    POOL_2D = 5
    FULLY_CONNECTED = 8
    CONCATENATION = 10
    ADD = 11
    RESHAPE = 17
    MUL = 21
    PAD = 22
    TRANSPOSE = 26
    REDUCER = 27
    STRIDED_SLICE = 32
    PADV2 = 43
    SLICE = 48
    HARD_SWISH = 91
    DENSIFY = 99


class TensorType(IntEnum):
    """Element types of tensors."""

    FLOAT32 = 0
    INT32 = 2


class Padding(IntEnum):
    """TFLite's own two paddings; anything else is an explicit PAD."""

    SAME = 0
    VALID = 1


class Slot(IntEnum):
    """The kind of an option field, which decides how it is written."""

    INT8 = 0
    INT32 = 1
    BOOL = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """An options table: `fields` holds (slot, kind, value); a field left out keeps the schema's default."""

    kind: BuiltinOptions
    fields: tuple[tuple[int, Slot, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    type: TensorType
    buffer: int
    sparsity: BlockSparseRows | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Operator:
    code: BuiltinOperator
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    options: Options


class GraphWriter:
    """Collects tensors and operators of one subgraph, then serialises them. Tensors are named by index."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._tensors: list[_Tensor] = []
        self._operators: list[_Operator] = []
        # The schema keeps buffer 0 empty: tensors without data point to it.
        self._buffers: list[bytes] = [b""]
        self._metadata: list[tuple[str, int]] = []

    def activation(self, name: str, shape: tuple[int, ...]) -> int:
        """A float32 tensor that is computed at run time, NHWC or (n, c)."""
        return self._add_tensor(name, shape, TensorType.FLOAT32, 0)

    def constant(self, name: str, values: NDArray[np.float32] | NDArray[np.int32]) -> int:
        """A float32 or int32 tensor with its values."""
        kind = TensorType.INT32 if values.dtype == np.int32 else TensorType.FLOAT32
        little_endian = values.astype("<i4" if kind is TensorType.INT32 else "<f4", copy=False)
        self._buffers.append(little_endian.tobytes())
        return self._add_tensor(name, values.shape, kind, len(self._buffers) - 1)

    def densified(self, name: str, values: NDArray[np.float32], block: int) -> int:
        """A float32 constant that is stored without its zeros, and made dense by an operator of its own.

        `values` is (rows, ..., columns); `block` consecutive rows share their columns.
        """
        rows = BlockSparseRows.of(values, block)
        self._buffers.append(rows.values.astype("<f4", copy=False).tobytes())
        kind = TensorType.FLOAT32
        stored = self._add_tensor(f"{name}.sparse", values.shape, kind, len(self._buffers) - 1, rows)
        result = self._add_tensor(name, values.shape, kind, 0)
        return self.operator(BuiltinOperator.DENSIFY, [stored], result, Options(kind=BuiltinOptions.DENSIFY))

    def operator(self, code: BuiltinOperator, inputs: Sequence[int], output: int, options: Options) -> int:
        """Append one operator; returns its output."""
        self._operators.append(_Operator(code=code, inputs=tuple(inputs), outputs=(output,), options=options))
        return output

    def metadata(self, name: str, content: bytes) -> None:
        """A named blob that runtimes ignore."""
        self._buffers.append(content)
        self._metadata.append((name, len(self._buffers) - 1))

    def shape(self, tensor: int) -> tuple[int, ...]:
        return self._tensors[tensor].shape

    def finish(self, inputs: Sequence[int], outputs: Sequence[int]) -> bytes:
        """The model file. Raises `ContractError` when it would exceed what a flatbuffer can address."""
        payload = sum(len(b) for b in self._buffers)
        if payload > MAX_MODEL_BYTES:
            raise ContractError(
                f"the weights of {self._name!r} take {payload} bytes; a .tflite file holds at most {MAX_MODEL_BYTES}: "
                "export it as a packed network"
            )
        builder = flatbuffers.Builder(payload + 4096 + 256 * (len(self._tensors) + len(self._operators)))
        codes = sorted({operator.code for operator in self._operators})
        code_index = {code: i for i, code in enumerate(codes)}

        buffers = offset_vector(builder, [_write_buffer(builder, b) for b in self._buffers])
        tensors = offset_vector(builder, [_write_tensor(builder, t) for t in self._tensors])
        operators = offset_vector(
            builder, [_write_operator(builder, op, code_index[op.code]) for op in self._operators]
        )
        subgraph = write_table(
            builder,
            6,
            OffsetField(0, tensors),
            OffsetField(1, int_vector(builder, inputs)),
            OffsetField(2, int_vector(builder, outputs)),
            OffsetField(3, operators),
            OffsetField(4, builder.CreateString(self._name)),
        )
        subgraphs = offset_vector(builder, [subgraph])
        operator_codes = offset_vector(builder, [_write_operator_code(builder, code) for code in codes])
        metadata = offset_vector(builder, [_write_metadata(builder, name, b) for name, b in self._metadata])
        model = write_table(
            builder,
            10,
            lambda: builder.PrependUint32Slot(0, SCHEMA_VERSION, 0),
            OffsetField(1, operator_codes),
            OffsetField(2, subgraphs),
            OffsetField(3, builder.CreateString("written by Kerf")),
            OffsetField(4, buffers),
            OffsetField(6, metadata),
        )
        builder.Finish(model, FILE_IDENTIFIER)
        return bytes(builder.Output())

    def _add_tensor(
        self,
        name: str,
        shape: tuple[int, ...],
        kind: TensorType,
        buffer: int,
        sparsity: BlockSparseRows | None = None,
    ) -> int:
        self._tensors.append(_Tensor(name=name, shape=shape, type=kind, buffer=buffer, sparsity=sparsity))
        return len(self._tensors) - 1


def _write_buffer(builder: flatbuffers.Builder, content: bytes) -> int:
    if not content:
        return write_table(builder, 3)
    # Flatbuffers grow towards lower addresses: padding first makes the start of the bytes aligned.
    builder.Prep(WEIGHT_ALIGNMENT, len(content))
    return write_table(builder, 3, OffsetField(0, builder.CreateByteVector(content)))


def _write_tensor(builder: flatbuffers.Builder, tensor: _Tensor) -> int:
    shape = int_vector(builder, tensor.shape)
    name = builder.CreateString(tensor.name)
    fields: list[Callable[[], None] | OffsetField] = [
        OffsetField(0, shape),
        lambda: builder.PrependInt8Slot(1, int(tensor.type), 0),
        lambda: builder.PrependUint32Slot(2, tensor.buffer, 0),
        OffsetField(3, name),
    ]
    if tensor.sparsity is not None:
        fields.append(OffsetField(6, write_sparsity(builder, tensor.sparsity, tensor.shape)))
    return write_table(builder, 11, *fields)


def _write_operator(builder: flatbuffers.Builder, operator: _Operator, code_index: int) -> int:
    inputs = int_vector(builder, operator.inputs)
    outputs = int_vector(builder, operator.outputs)
    options = _write_options(builder, operator.options)
    fields: list[Callable[[], None] | OffsetField] = [
        lambda: builder.PrependUint32Slot(0, code_index, 0),
        OffsetField(1, inputs),
        OffsetField(2, outputs),
    ]
    if operator.options.kind is not BuiltinOptions.NONE:
        fields.append(lambda: builder.PrependUint8Slot(3, int(operator.options.kind), 0))
        fields.append(OffsetField(4, options))
    return write_table(builder, 14, *fields)


def _write_options(builder: flatbuffers.Builder, options: Options) -> int:
    # Slots are forced to be written, so that the defaults of the schema need not be repeated here.
    builder.StartObject(8)
    for slot, kind, value in options.fields:
        if kind is Slot.INT8:
            builder.PrependInt8(value)
        elif kind is Slot.INT32:
            builder.PrependInt32(value)
        else:
            builder.PrependBool(bool(value))
        builder.Slot(slot)
    return int(builder.EndObject())


def _write_operator_code(builder: flatbuffers.Builder, code: BuiltinOperator) -> int:
    # `deprecated_builtin_code` (slot 0) is what readers older than schema 3a look at.
    return write_table(
        builder,
        4,
        lambda: builder.PrependInt8Slot(0, int(code), 0),
        lambda: builder.PrependInt32Slot(3, int(code), 0),
    )


def _write_metadata(builder: flatbuffers.Builder, name: str, buffer: int) -> int:
    return write_table(
        builder, 2, OffsetField(0, builder.CreateString(name)), lambda: builder.PrependUint32Slot(1, buffer, 0)
    )
