"""Reading back the weights of a TFLite file that Kerf wrote. Any bytes may come; nothing is trusted."""

from __future__ import annotations

import struct

import flatbuffers.number_types
import numpy as np
from flatbuffers.table import Table
from numpy.typing import NDArray

from device_agent.contracts.codec import ContractError
from device_agent.contracts.kernel import Op
from device_agent.contracts.network import NetworkPlan, PlanOp
from device_agent.formats.tflite_reader import read_bytes, read_root, read_tables
from device_agent.formats.tflite_sparsity import BlockSparseRows

#: Stored axes -> those of `KernelSpec.weight_shape`.
_AXES = {Op.CONV2D: (0, 3, 1, 2), Op.DEPTHWISE_CONV2D: (3, 0, 1, 2)}


def read_plan_tensors(model: bytes, plan: NetworkPlan) -> dict[str, NDArray[np.float32]]:
    """The tensors that `plan_to_tflite` was given with `plan`, stored with or without their zeros.

    Raises `ContractError` when `model` is no TFLite file, is damaged, or lacks a tensor of the plan.
    """
    root = read_root(model)
    try:
        stored = {
            read_bytes(tensor, 3).decode(): tensor for graph in read_tables(root, 2) for tensor in read_tables(graph, 0)
        }
        buffers = read_tables(root, 4)
        return {
            f"{op.name}.{part}": _read(op, part, stored, buffers)
            for op in plan.ops
            if op.kernel.op.has_weights
            for part in ("weight", "bias")
        }
    except ContractError:
        raise
    except (IndexError, ValueError, TypeError, OverflowError, struct.error) as error:
        raise ContractError(f"the TFLite file is damaged: {error}") from None


def _read(op: PlanOp, part: str, stored: dict[str, Table], buffers: list[Table]) -> NDArray[np.float32]:
    name = f"{op.name}.{part}"
    filters, channels, height, width = op.kernel.weight_shape
    shape = (filters, channels, height, width) if part == "weight" else (filters,)
    sparse = stored.get(f"{name}.sparse")
    tensor = stored.get(name) if sparse is None else sparse
    if tensor is None:
        raise ContractError(f"the TFLite file has no tensor {name!r} of its plan")
    content = np.frombuffer(read_bytes(buffers[_integer(tensor, 2)], 0), "<f4")
    values = content if sparse is None else _read_rows(sparse, content).to_dense(filters, channels)
    if values.size != int(np.prod(shape)):
        raise ContractError(f"the tensor {name!r} holds {values.size} values, but the plan needs {shape}")
    if part == "bias" or op.kernel.op is Op.FULLY_CONNECTED:
        return np.array(values, np.float32).reshape(shape)
    axes = _AXES[op.kernel.op]
    stored_shape = tuple(shape[axes.index(axis)] for axis in range(4))
    return np.ascontiguousarray(values.reshape(stored_shape).transpose(axes), np.float32)


def _read_rows(tensor: Table, values: NDArray[np.float32]) -> BlockSparseRows:
    dimensions = read_tables(_child(tensor, 6), 2)
    if len(dimensions) not in (4, 5):
        raise ValueError(f"a sparse tensor has {len(dimensions)} dimensions")
    return BlockSparseRows(
        values=values,
        segments=_integers(_child(dimensions[3], 3), 0),
        columns=_integers(_child(dimensions[3], 5), 0),
        block=_integer(dimensions[4], 1) if len(dimensions) == 5 else 1,
    )


def _child(table: Table, slot: int) -> Table:
    offset = table.Offset(4 + 2 * slot)
    if not offset:
        raise ValueError(f"a table lacks its field {slot}")
    return Table(table.Bytes, table.Indirect(table.Pos + offset))


def _integer(table: Table, slot: int) -> int:
    offset = table.Offset(4 + 2 * slot)
    return int(table.Get(flatbuffers.number_types.Int32Flags, table.Pos + offset)) if offset else 0


def _integers(table: Table, slot: int) -> NDArray[np.int32]:
    offset = table.Offset(4 + 2 * slot)
    if not offset:
        return np.zeros(0, np.int32)
    length = table.VectorLen(offset)
    return np.frombuffer(table.Bytes, "<i4", length, table.Vector(offset))
