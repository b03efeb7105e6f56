"""What a kernel's time depends on, as numbers: the work that pruning leaves, staircases of registers, bytes, modes.

Terms are amounts that take time, each growing with channels and density: products of what remains, vectors that are
written, weights that are read. They know how sparse kernels are laid out: output channels in groups of four, two and
one that share a list of columns, and whole vectors of positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from device_agent.contracts import TFLITE_SPARSE_RUNTIME, KernelSpec, Op, PruningScheme, WeightPruning
from search.pareto import FloatArray

#: Positions are computed in whole vectors of so many elements: the longest of any instruction set that is supported.
VECTOR = 16
#: The sizes of groups of output channels that share their columns.
_GROUP_SIZES = (4, 2, 1)
_FLOAT_BYTES, _INDEX_BYTES = 4, 2
#: What a kernel touches beyond these comes from a further cache, if the device's is about as large: second-level caches
#: have 256 KiB to 2 MiB. Each device finds its own price for either.
_CACHE_BYTES = (384 * 1024, 1536 * 1024)

#: XNNPACK computes with zeros left out only where more than two thirds of 1x1 weights are zeros
#: (`num_zeroes * 3 <= num_params * 2` disables it: XNNPACK, src/subgraph.c), and where it is asked to: by the runtime
#: `tflite-sparse`.
_XNNPACK_MOST_DENSITY = 1 / 3
#: Runtimes that compute zeros like any weight, but for XNNPACK's rule in the last.
_DENSE_RUNTIMES = frozenset({"tflite", "ncnn", TFLITE_SPARSE_RUNTIME})
#: Runtimes whose 3x3 kernels are never Winograd's.
_DIRECT_RUNTIMES = frozenset({"tflite", TFLITE_SPARSE_RUNTIME})

#: Winograd's algorithm is tried for 3x3 kernels of stride 1 with so many channels and so many weights left; its outputs
#: come in blocks of 16 channels and tiles of 4x4 positions from 6x6 inputs (Lavin and Gray 2015, arXiv 1509.09308).
_WINOGRAD_LEAST_CHANNELS = 8
_WINOGRAD_LEAST_DENSITY = 0.3
_WINOGRAD_TILE = 4

#: The names of the terms, in the order of their columns. Those of WINOGRAD replace the others where it is used.
TERMS = (
    "once",
    "products_by_4",
    "products_by_2",
    "products_by_1",
    "row_groups",
    "weight_bytes",
    "input_elements",
    "output_elements",
    "residual_elements",
    "window_reads",
    "padded_products",
    "spilled_bytes",
    "far_spilled_bytes",
)
#: What the name of a mode ends with where Winograd's algorithm may be chosen.
WINOGRAD_SUFFIX = " winograd"
WINOGRAD_TERMS = ("once", "products", "input_tiles", "output_tiles", "weight_bytes", "residual_elements")


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelFeatures:
    """A kernel for the model. Kernels of one `mode` run the same kind of code.

    `ways` are amounts of work (those of `TERMS`) for each way to group output channels, of which a runtime takes the
    fastest; `winograd` the same for the other algorithm (`WINOGRAD_TERMS`), where it may be chosen; `coordinates` place
    the kernel among others for the residual: kernels near to each other have similar errors.
    """

    mode: str
    ways: tuple[tuple[float, ...], ...]
    winograd: tuple[float, ...] | None
    coordinates: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureTable:
    """The features of n kernels as arrays: `ways` (n, 3, 13), `winograd` (n, 6), `has_winograd` (n,) and `coordinates`
    (n, c).
    """

    modes: tuple[str, ...]
    ways: FloatArray
    winograd: FloatArray
    has_winograd: np.ndarray
    coordinates: FloatArray

    def __len__(self) -> int:
        return len(self.modes)

    def part(self, which: np.ndarray) -> FeatureTable:
        """The kernels that `which` (n,) is true for."""
        return FeatureTable(
            modes=tuple(mode for mode, is_in in zip(self.modes, which.tolist(), strict=True) if is_in),
            ways=self.ways[which],
            winograd=self.winograd[which],
            has_winograd=self.has_winograd[which],
            coordinates=self.coordinates[which],
        )


def feature_table(features: Sequence[KernelFeatures]) -> FeatureTable:
    """The features of many kernels, stacked. Raises `ValueError` for none."""
    if not features:
        raise ValueError("features of no kernels have no shape: give at least one")
    nothing = (0.0,) * len(WINOGRAD_TERMS)
    return FeatureTable(
        modes=tuple(f.mode for f in features),
        ways=np.array([f.ways for f in features]),
        winograd=np.array([f.winograd or nothing for f in features]),
        has_winograd=np.array([f.winograd is not None for f in features]),
        coordinates=np.array([f.coordinates for f in features]),
    )


def kernel_features(kernel: KernelSpec, runtime: str) -> KernelFeatures:
    """The features of `kernel` on `runtime`: "native" and unknown ones leave zeros out, "tflite-sparse" by XNNPACK's
    rule, others not at all.
    """
    kernel = as_computed(kernel, runtime)
    density = kernel.pruning.density
    ways = tuple(_terms(kernel, density, largest) for largest in _GROUP_SIZES)
    winograd = _winograd_terms(kernel) if _may_be_winograd(kernel, density, runtime) else None
    return KernelFeatures(
        mode=_mode(kernel, density, has_winograd=winograd is not None),
        ways=ways,
        winograd=winograd,
        coordinates=_coordinates(kernel, density, ways[0]),
    )


def effective_density(kernel: KernelSpec, runtime: str) -> float:
    """The part of the weights that `runtime` computes with: all of them, where it makes no use of the zeros."""
    density = kernel.pruning.density
    if runtime not in _DENSE_RUNTIMES:
        return density
    is_matrix = kernel.kernel_h == kernel.kernel_w == kernel.stride == 1
    leaves_zeros_out = runtime == TFLITE_SPARSE_RUNTIME and is_matrix and density < _XNNPACK_MOST_DENSITY
    return density if leaves_zeros_out else 1.0


def as_computed(kernel: KernelSpec, runtime: str) -> KernelSpec:
    """`kernel` as `runtime` computes it: a dense one, where it makes no use of the zeros."""
    if kernel.pruning.density == 1.0 or effective_density(kernel, runtime) < 1.0:
        return kernel
    return replace(kernel, pruning=WeightPruning())


def _mode(kernel: KernelSpec, density: float, *, has_winograd: bool) -> str:
    if kernel.op is Op.CONV2D and kernel.groups > 1:
        return f"grouped conv s{min(kernel.stride, 2)}"
    if kernel.op is Op.CONV2D:
        window = "1x1" if kernel.kernel_h == kernel.kernel_w == 1 else "kxk"
        stride = "s1" if kernel.stride == 1 else "s2"
        scheme = kernel.pruning.scheme
        if density == 1.0:
            zeros = "dense"
        elif scheme in (PruningScheme.UNSTRUCTURED, PruningScheme.PATTERN):
            zeros = scheme.value
        else:
            zeros = "blocks"
        return f"conv {window} {stride} {zeros}" + (WINOGRAD_SUFFIX if has_winograd else "")
    if kernel.op is Op.DEPTHWISE_CONV2D:
        return f"depthwise s{kernel.stride}"
    return kernel.op.value


def _terms(kernel: KernelSpec, density: float, largest: int) -> tuple[float, ...]:
    """The terms with output channels in groups of at most `largest`."""
    out_positions = kernel.output_h * kernel.output_w
    positions = -(-out_positions // VECTOR) * VECTOR if out_positions > 1 else 1
    input_elements = float(kernel.in_channels * kernel.input_h * kernel.input_w)
    output_elements = float(kernel.out_channels * out_positions)
    window = kernel.kernel_h * kernel.kernel_w
    work = {4: 0.0, 2: 0.0, 1: 0.0}
    row_groups = weight_bytes = window_reads = padded = 0.0
    if kernel.op in (Op.CONV2D, Op.FULLY_CONNECTED):
        columns = kernel.in_channels // kernel.groups * window
        entries, row_groups = _entries(kernel, density, columns, largest)
        for size, count in entries.items():
            work[size] = size * count * positions
            weight_bytes += count * (size * _FLOAT_BYTES + _INDEX_BYTES)
        row_groups *= positions
        padded = sum(size * count for size, count in entries.items()) * _padded_positions(kernel)
    elif kernel.op is Op.DEPTHWISE_CONV2D:
        window_reads = float(kernel.out_channels * window * positions) * max(density, 0.5)
        weight_bytes = float(kernel.out_channels * window * _FLOAT_BYTES)
        row_groups = float(kernel.out_channels * kernel.output_h)
    elif kernel.op in (Op.MAX_POOL, Op.AVG_POOL):
        window_reads = float(kernel.out_channels * window * positions)
        row_groups = float(kernel.out_channels * kernel.output_h)
    elif kernel.op in (Op.CONCAT, Op.FIRST_CHANNELS, Op.LAST_CHANNELS):
        input_elements = output_elements
    # A residual reads another tensor of the output's size; an activation that nothing fuses reads the output again.
    passes = float(kernel.residual or kernel.op is Op.ADD) + float(not kernel.activation.is_clamp)
    touched = weight_bytes + _FLOAT_BYTES * (input_elements + output_elements)
    return (
        1.0,
        work[4],
        work[2],
        work[1],
        row_groups,
        weight_bytes,
        input_elements,
        output_elements,
        output_elements * passes,
        window_reads,
        padded,
        *(max(0.0, touched - cache) for cache in _CACHE_BYTES),
    )


def _padded_positions(kernel: KernelSpec) -> float:
    """Positions where each row is filled up to whole vectors, or to the padding that rows share."""
    row = kernel.output_w + kernel.padding
    return float(min(-(-kernel.output_w // VECTOR) * VECTOR, row) * kernel.output_h)


def _entries(kernel: KernelSpec, density: float, columns: int, largest: int) -> tuple[dict[int, float], float]:
    """Expected entries by the size of their groups, with groups of at most `largest`; and how many groups there are."""
    filters = _shared_filters(kernel)
    block = max(filters, largest)
    entries: dict[int, float] = {}
    groups = 0.0
    for length, blocks in ((block, kernel.out_channels // block), (kernel.out_channels % block, 1)):
        left = length
        for size in _GROUP_SIZES:
            if size > largest or not left or not blocks:
                continue
            count = left // size * blocks
            left %= size
            # A column stays if any of the independent masks in the group keeps it.
            kept = 1.0 - (1.0 - density) ** (size / min(size, filters))
            entries[size] = entries.get(size, 0.0) + count * kept * columns
            groups += count
    return entries, groups


def _shared_filters(kernel: KernelSpec) -> int:
    """How many consecutive filters share their zeros."""
    pruning = kernel.pruning
    if pruning.scheme is PruningScheme.DENSE:
        return max(_GROUP_SIZES)
    return pruning.block_filters


def _may_be_winograd(kernel: KernelSpec, density: float, runtime: str) -> bool:
    return (
        runtime not in _DIRECT_RUNTIMES
        and kernel.op is Op.CONV2D
        and kernel.groups == 1
        and (kernel.kernel_h, kernel.kernel_w, kernel.stride) == (3, 3, 1)
        and min(kernel.in_channels, kernel.out_channels) >= _WINOGRAD_LEAST_CHANNELS
        and density >= _WINOGRAD_LEAST_DENSITY
        and kernel.output_h * kernel.output_w > _WINOGRAD_TILE
    )


def _winograd_terms(kernel: KernelSpec) -> tuple[float, ...]:
    side = _WINOGRAD_TILE
    tiles = -(-kernel.output_h // side) * -(-kernel.output_w // side)
    outputs = -(-kernel.out_channels // VECTOR) * VECTOR
    points = (side + 2) ** 2
    return (
        1.0,
        float(points * kernel.in_channels * outputs * tiles),
        float(points * kernel.in_channels * tiles),
        float(points * outputs * tiles),
        float(points * kernel.in_channels * outputs * _FLOAT_BYTES),
        float(kernel.out_channels * kernel.output_h * kernel.output_w) if kernel.residual else 0.0,
    )


def _coordinates(kernel: KernelSpec, density: float, terms: tuple[float, ...]) -> tuple[float, ...]:
    out_positions = kernel.output_h * kernel.output_w
    remainder = kernel.out_channels % 4
    return (
        math.log(kernel.in_channels),
        math.log(kernel.out_channels),
        math.log(density),
        math.log(out_positions),
        math.log(kernel.output_w),
        math.log(kernel.kernel_h * kernel.kernel_w),
        math.log(kernel.stride),
        # Steps of registers: channels beside whole groups of 4 and 16, positions beside whole vectors.
        0.0 if remainder == 0 else 4.0 / kernel.out_channels,
        -(-kernel.out_channels // VECTOR) * VECTOR / kernel.out_channels - 1.0,
        -(-out_positions // VECTOR) * VECTOR / out_positions - 1.0,
        math.log(_shared_filters(kernel)) if density < 1.0 else math.log(32.0),
        math.log(max(kernel.pruning.block_channels, 1)),
        math.log1p(terms[5]),
        math.log1p(terms[6]),
        math.log1p(terms[7]),
        1.0 if kernel.residual else 0.0,
    )
