"""Program images for tests, and ways to take them apart and damage them."""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np

from device_agent.contracts import DENSE, Activation, KernelSpec, NetworkPlan, Op, PlanOp, PruningScheme, WeightPruning
from device_agent.native.executor import NativeNetwork
from device_agent.native.image import with_checksum
from device_agent.native.library import Step
from device_agent.synthesis import synthesize_weights
from tests.unit.device_agent.native.native_samples import winograd_first

HEADER_BYTES = 192
#: Offsets in the header of what tests change.
HEADER = {
    "magic": (0, "<Q"),
    "format_version": (8, "<I"),
    "abi_version": (12, "<I"),
    "image_bytes": (16, "<Q"),
    "checksum": (24, "<Q"),
    "workspace_bytes": (32, "<Q"),
    "num_regions": (40, "<I"),
    "num_constants": (44, "<I"),
    "num_steps": (48, "<I"),
    "step_bytes": (52, "<I"),
    "input": (56, "<Q"),
    "input_channels": (64, "<i"),
    "input_height": (68, "<i"),
    "input_width": (72, "<i"),
    "input_reserved": (76, "<i"),
    "output": (80, "<Q"),
    "output_channels": (88, "<i"),
    "output_height": (92, "<i"),
    "output_width": (96, "<i"),
}
ISA_OFFSET, NAME_OFFSET, RESERVED_OFFSET = 104, 120, 184
STEP_BYTES = ctypes.sizeof(Step)
NULL = 0


@dataclass(frozen=True, slots=True)
class Region:
    offset: int
    num_bytes: int


def header(image: bytes, name: str) -> int:
    offset, form = HEADER[name]
    return struct.unpack_from(form, image, offset)[0]


def with_header(image: bytes, name: str, value: int) -> bytes:
    offset, form = HEADER[name]
    return patched(image, offset, struct.pack(form, value))


def patched(image: bytes, offset: int, data: bytes) -> bytes:
    """`image` with `data` at `offset`, and the checksum right again."""
    return with_checksum(image[:offset] + data + image[offset + len(data) :])


def regions(image: bytes) -> list[Region]:
    return [
        Region(*struct.unpack_from("<2Q", image, HEADER_BYTES + 16 * i)) for i in range(header(image, "num_regions"))
    ]


def steps(image: bytes) -> list[Step]:
    """The records as steps, with references where pointers are."""
    start = HEADER_BYTES + 16 * header(image, "num_regions")
    return [Step.from_buffer_copy(image, start + STEP_BYTES * i) for i in range(header(image, "num_steps"))]


def with_step(image: bytes, index: int, **fields: int) -> bytes:
    step = steps(image)[index]
    for name, value in fields.items():
        setattr(step, name, value)
    return patched(image, HEADER_BYTES + 16 * header(image, "num_regions") + STEP_BYTES * index, bytes(step))


def first_step(image: bytes, kind: int) -> int:
    return next(index for index, step in enumerate(steps(image)) if step.kind == kind)


def sample_steps(image: bytes, kind: int) -> list[int]:
    """The first step of `kind`, and the first that packs its input, if one does."""
    found = [index for index, step in enumerate(steps(image)) if step.kind == kind]
    return sorted({found[0], *[index for index in found if steps(image)[index].pack_rows][:1]})


def reference(region: int, byte: int = 0) -> int:
    return (region + 1 << 40) + byte


def region_of(value: int) -> int:
    return (value >> 40) - 1


def indices(image: bytes, value: int) -> np.ndarray:
    """The int32 list that the reference `value` names."""
    region = regions(image)[region_of(value)]
    return np.frombuffer(image[region.offset : region.offset + region.num_bytes], dtype=np.int32)


def with_index(image: bytes, value: int, position: int, new: int) -> bytes:
    """`image` with entry `position` of the list that the reference `value` names changed."""
    return patched(image, regions(image)[region_of(value)].offset + 4 * position, struct.pack("<i", new))


def spread(image: bytes, gap_bytes: int = 512) -> bytes:
    """The same program with `gap_bytes` between all regions: what reads past the end of one is found by a sanitiser."""
    places = regions(image)
    num_constants = header(image, "num_constants")
    start = places[0].offset if num_constants else header(image, "image_bytes")
    result, offsets = bytearray(image[:start]), []
    for region in places[:num_constants]:
        result += bytes(gap_bytes)
        offsets.append(len(result))
        result += image[region.offset : region.offset + region.num_bytes]
        result += bytes(-len(result) % 64)
    workspace = 0
    for region in places[num_constants:]:
        offsets.append(workspace + gap_bytes)
        workspace = -(-(offsets[-1] + region.num_bytes) // 64) * 64
    for index, (offset, region) in enumerate(zip(offsets, places, strict=True)):
        struct.pack_into("<2Q", result, HEADER_BYTES + 16 * index, offset, region.num_bytes)
    for name, value in (("image_bytes", len(result)), ("workspace_bytes", workspace)):
        struct.pack_into(HEADER[name][1], result, HEADER[name][0], value)
    return with_checksum(result)


def weights_of(plan: NetworkPlan) -> dict[str, np.ndarray]:
    return {f"{op.name}.{name}": tensor for op in plan.ops for name, tensor in synthesize_weights(op.kernel).items()}


def image_of(plan: NetworkPlan, isa: str | None = None) -> bytes:
    with winograd_first():
        return NativeNetwork(plan, weights_of(plan), isa=isa, tune=False).image()


def chain(kernels: Iterable[KernelSpec], name: str = "chain") -> NetworkPlan:
    """Operators that each read the one before."""
    ops: list[PlanOp] = []
    for kernel in kernels:
        previous = ops[-1].name if ops else "input"
        inputs = (previous,) * len(kernel.input_shapes)
        ops.append(PlanOp(name=f"{kernel.op.value}{len(ops)}", kernel=kernel, inputs=inputs))
    first = ops[0].kernel
    return NetworkPlan(name=name, input_shape=(first.in_channels, first.input_h, first.input_w), ops=tuple(ops))


_SPARSE = WeightPruning(scheme=PruningScheme.GROUP, density=0.4, block_filters=4)
_CONV = KernelSpec(
    op=Op.CONV2D,
    in_channels=6,
    out_channels=6,
    input_h=9,
    input_w=9,
    kernel_h=3,
    kernel_w=3,
    padding=1,
    activation=Activation.RELU,
    pruning=_SPARSE,
)


def every_kind() -> NetworkPlan:
    """A network with a step of every kind that a small one can have."""
    pool = replace(_CONV, op=Op.MAX_POOL, pruning=DENSE, activation=Activation.NONE)
    dense = KernelSpec(op=Op.FULLY_CONNECTED, in_channels=16, out_channels=20)
    return chain(
        (
            _CONV,
            replace(_CONV, out_channels=8),
            replace(_CONV, in_channels=8, out_channels=8, pruning=DENSE),
            replace(_CONV, in_channels=8),
            replace(_CONV, op=Op.DEPTHWISE_CONV2D, pruning=DENSE),
            replace(_CONV, stride=2),
            replace(pool, input_h=5, input_w=5),
            replace(pool, op=Op.AVG_POOL, input_h=5, input_w=5, kernel_h=2, kernel_w=2, padding=0),
            KernelSpec(op=Op.ADD, in_channels=6, out_channels=6, input_h=4, input_w=4),
            replace(
                pool,
                op=Op.SHORTCUT_PAD,
                out_channels=8,
                pad_channels_before=1,
                input_h=4,
                input_w=4,
                kernel_h=1,
                kernel_w=1,
                padding=0,
                stride=2,
            ),
            KernelSpec(op=Op.GLOBAL_AVG_POOL, in_channels=8, out_channels=8, input_h=2, input_w=2),
            KernelSpec(op=Op.MUL, in_channels=8, out_channels=8, activation=Activation.SIGMOID),
            KernelSpec(op=Op.CONCAT, in_channels=8, out_channels=16, activation=Activation.HARDSIGMOID),
            replace(dense, activation=Activation.SILU),
            replace(
                dense,
                in_channels=20,
                out_channels=10,
                pruning=replace(_SPARSE, density=0.2),
                activation=Activation.HARDSWISH,
            ),
        ),
        "every kind",
    )
