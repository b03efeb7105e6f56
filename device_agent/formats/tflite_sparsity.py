"""A matrix without its zeros, as TensorFlow Lite's `SparsityParameters` describe it.

Rows are compressed (CSR); with a block of k, k consecutive rows share their columns and their values lie together
(k x 1 block CSR). Slot numbers are those of `schema.fbs`; a test reads them back through the published schema.
"""

from __future__ import annotations

from dataclasses import dataclass

import flatbuffers
import numpy as np
from numpy.typing import NDArray

from device_agent.contracts.codec import ContractError
from device_agent.formats.flatbuffer_tables import OffsetField, int_vector, offset_vector, write_table

#: DimensionType and SparseIndexVector of the schema.
DIMENSION_DENSE, DIMENSION_SPARSE_CSR = 0, 1
INT32_VECTOR = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BlockSparseRows:
    """The kept values of a (rows, ..., columns) tensor whose middle axes are 1.

    `segments` (rows / block + 1) are the starts of the rows of blocks in `columns`; `values` holds `block` values for
    each entry of `columns`.
    """

    values: NDArray[np.float32]
    segments: NDArray[np.int32]
    columns: NDArray[np.int32]
    block: int

    @classmethod
    def of(cls, dense: NDArray[np.float32], block: int) -> BlockSparseRows:
        """Leave out the columns of each row of blocks that are zero in all of its rows.

        Raises `ContractError` where `block` does not divide the rows, or a middle axis is not 1.
        """
        if any(extent != 1 for extent in dense.shape[1:-1]):
            raise ContractError(f"sparse rows need a (rows, 1, 1, columns) tensor, not {dense.shape}")
        rows, num_columns = dense.shape[0], dense.shape[-1]
        if block < 1 or rows % block:
            raise ContractError(f"blocks of {block} rows do not divide {rows} rows")
        # (rows of blocks, columns, block): the values of one block lie together.
        blocks = dense.reshape(rows // block, block, num_columns).transpose(0, 2, 1)
        kept = (blocks != 0).any(axis=2)
        return cls(
            values=np.ascontiguousarray(blocks[kept], np.float32).reshape(-1),
            segments=np.concatenate([[0], np.cumsum(kept.sum(axis=1))]).astype(np.int32),
            columns=np.nonzero(kept)[1].astype(np.int32),
            block=block,
        )

    def to_dense(self, num_rows: int, num_columns: int) -> NDArray[np.float32]:
        """The (num_rows, num_columns) matrix. Raises `ContractError` where the indices are not those of one."""
        num_blocks = self.columns.size
        starts = self.segments.astype(np.int64)
        sound = (
            self.block >= 1
            and num_rows == (starts.size - 1) * self.block
            and starts.size > 1
            and (starts[0], starts[-1]) == (0, num_blocks)
            and bool((np.diff(starts) >= 0).all())
            and self.values.size == num_blocks * self.block
            and bool(((self.columns >= 0) & (self.columns < num_columns)).all())
        )
        if not sound:
            raise ContractError(f"the indices of a sparse tensor do not fit {num_rows} x {num_columns} values")
        dense = np.zeros((num_rows // self.block, num_columns, self.block), np.float32)
        dense[np.repeat(np.arange(starts.size - 1), np.diff(starts)), self.columns] = self.values.reshape(
            num_blocks, self.block
        )
        return dense.transpose(0, 2, 1).reshape(num_rows, num_columns)


def write_sparsity(builder: flatbuffers.Builder, rows: BlockSparseRows, shape: tuple[int, ...]) -> int:
    """The `SparsityParameters` of a tensor of `shape` that holds `rows`; returns the table's offset."""
    num_axes = len(shape)
    dimensions = [_dense_dimension(builder, shape[0] // rows.block)]
    dimensions += [_dense_dimension(builder, 1) for _ in range(num_axes - 2)]
    dimensions.append(_csr_dimension(builder, rows))
    if rows.block > 1:
        # The block is one more axis, traversed last; the block map says that it belongs to axis 0.
        dimensions.append(_dense_dimension(builder, rows.block))
    order = int_vector(builder, range(len(dimensions)))
    block_map = int_vector(builder, [0] if rows.block > 1 else [])
    metadata = offset_vector(builder, dimensions)
    return write_table(builder, 3, OffsetField(0, order), OffsetField(1, block_map), OffsetField(2, metadata))


def _dense_dimension(builder: flatbuffers.Builder, size: int) -> int:
    return write_table(
        builder,
        6,
        lambda: builder.PrependInt8Slot(0, DIMENSION_DENSE, 0),
        lambda: builder.PrependInt32Slot(1, size, 0),
    )


def _csr_dimension(builder: flatbuffers.Builder, rows: BlockSparseRows) -> int:
    segments, columns = _index_vector(builder, rows.segments), _index_vector(builder, rows.columns)
    return write_table(
        builder,
        6,
        lambda: builder.PrependInt8Slot(0, DIMENSION_SPARSE_CSR, 0),
        lambda: builder.PrependUint8Slot(2, INT32_VECTOR, 0),
        OffsetField(3, segments),
        lambda: builder.PrependUint8Slot(4, INT32_VECTOR, 0),
        OffsetField(5, columns),
    )


def _index_vector(builder: flatbuffers.Builder, indices: NDArray[np.int32]) -> int:
    return write_table(builder, 1, OffsetField(0, builder.CreateNumpyVector(indices.astype("<i4", copy=False))))
