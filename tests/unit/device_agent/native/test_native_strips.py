"""Strips: where they are offered, and that they give the bits of other tiles."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import DENSE, Activation, ContractError, KernelSpec, PruningScheme, WeightPruning
from device_agent.native import strips, tiling
from device_agent.native.executor import NativeKernel, NativeNetwork
from device_agent.native.image import ImageNetwork, check_image
from device_agent.native.layout import VECTOR, Form, Tensor
from device_agent.native.library import load_library
from device_agent.native.tiling import ConvShape, TileLimit, Tiling
from device_agent.synthesis import kernel_inputs, kernel_plan, synthesize_input
from tests.unit.device_agent.native import image_samples as samples
from tests.unit.device_agent.native.native_samples import CLAMPS, conv

#: The backends whose vectors are long enough.
ISAS = [
    backend.name
    for backend in load_library().backends
    if backend.is_supported and load_library().max_vectors(backend, VECTOR, 1)
]
needs_strips = pytest.mark.skipif(not ISAS, reason="no backend of this machine has strips: they need AVX-512")

HALF = WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.5)


@contextlib.contextmanager
def only(index: int | None) -> Iterator[list[Tiling]]:
    """The tiling of strips with this index, small chunks included, or for None the best without strips. Gives the list
    of those that were used.
    """
    used: list[Tiling] = []

    def one(shape: ConvShape, tile_limit: TileLimit, _: int) -> list[Tiling]:
        found = tiling.tilings(shape, tile_limit, 10_000)
        chosen = [entry for entry in found if (entry.strips is None) == (index is None)]
        used.append(chosen[(index or 0) % len(chosen)])
        return used[-1:]

    with (
        mock.patch.object(strips, "_CHUNK_BYTES", (2000, 6000, 41_000)),
        mock.patch.object(tiling, "_MOST_STRIPS", 10_000),
        mock.patch("device_agent.native.steps.conv.tilings", one),
        # Dense filters, too, are single ones.
        mock.patch("device_agent.native.steps.conv.groupings", return_value=[1]),
    ):
        yield used


def unstructured(
    extent: tuple[int, int], window: tuple[int, int], channels: tuple[int, int], **changes: object
) -> KernelSpec:
    return replace(
        conv(),
        input_h=extent[0],
        input_w=extent[1],
        kernel_h=window[0],
        kernel_w=window[1],
        in_channels=channels[0],
        out_channels=channels[1],
        **{"pruning": HALF, **changes},  # type: ignore[arg-type]
    )


@needs_strips
@settings(max_examples=150, deadline=None)
@given(
    extent=st.tuples(st.integers(7, 35), st.integers(7, 35)),
    window=st.sampled_from([(3, 3), (3, 3), (3, 3), (5, 5), (1, 7), (5, 3), (2, 2)]),
    padding=st.integers(0, 3),
    channels=st.tuples(st.integers(1, 20), st.integers(1, 9)),
    residual=st.booleans(),
    activation=st.sampled_from(CLAMPS),
    density=st.floats(0.05, 1.0),
    index=st.integers(0, 100),
)
def test_strips_give_the_bits_of_other_tiles(
    extent: tuple[int, int],
    window: tuple[int, int],
    padding: int,
    channels: tuple[int, int],
    residual: bool,
    activation: Activation,
    density: float,
    index: int,
) -> None:
    kernel = unstructured(
        extent,
        window,
        channels,
        padding=min(padding, max(window) // 2),
        residual=residual,
        activation=activation,
        pruning=WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=density),
    )
    x, second = kernel_inputs(kernel)
    with only(None):
        expected = NativeKernel(kernel, isa=ISAS[0], tune=False, exact=True).run(x, second)
    with only(index) as used:
        output = NativeKernel(kernel, isa=ISAS[0], tune=False, exact=True).run(x, second)
    assert used[-1].strips is not None
    np.testing.assert_array_equal(output.view(np.uint32), expected.view(np.uint32))


@needs_strips
@pytest.mark.parametrize("extent", [7, 8, 14, 28, 30])
def test_all_strips_of_common_extents_give_the_same_bits(extent: int) -> None:
    kernel = unstructured((extent, extent), (3, 3), (11, 5), residual=True)
    x, second = kernel_inputs(kernel)
    with only(None):
        expected = NativeKernel(kernel, isa=ISAS[0], tune=False, exact=True).run(x, second).tobytes()
    seen = set[Tiling]()
    for index in range(200):
        with only(index) as used:
            native = NativeKernel(kernel, isa=ISAS[0], tune=False, exact=True)
        if used[-1] in seen:
            break
        seen.add(used[-1])
        assert native.run(x, second).tobytes() == expected
    shapes = {entry.strips for entry in seen if entry.strips is not None}
    assert {shape.blocks for shape in shapes} == {1, 2, 4}
    assert {shape.strips for shape in shapes} >= {1, 2}
    assert len({entry.chunk_channels for entry in seen}) > 1


@needs_strips
@pytest.mark.parametrize("extent", [9, 30])
def test_shares_of_strips_are_the_whole(extent: int) -> None:
    """Few tiles are shared by filters, many by tiles."""
    library = load_library()
    kernel = unstructured((extent, extent), (3, 3), (6, 7), residual=True)
    x, second = kernel_inputs(kernel)
    with only(None):
        expected = NativeKernel(kernel, isa=ISAS[0], tune=False, exact=True).run(x, second).tobytes()
    for index in (0, 7, 15):
        with only(index):
            native = NativeKernel(kernel, isa=ISAS[0], tune=False, exact=True, threads=3)
        for parts in (2, 3):
            native.run(-x, second)  # other outputs than those that are expected
            native.set_inputs(x, second)
            for part in reversed(range(parts)):
                for step in native._run.steps:
                    library.run_part(native._backend.index, ctypes.addressof(step), part, parts)
            assert native.output().tobytes() == expected


def test_strips_leave_room_for_other_tiles() -> None:
    found = tiling.tilings(shape_of(conv(64, 28, pruning=HALF), 1), lambda _length, _size: 14, 6)
    assert {entry.strips is None for entry in found} == {True, False}


@needs_strips
@pytest.mark.parametrize("index", range(12))
def test_an_image_with_strips_gives_the_same_bits_on_every_instruction_set(index: int) -> None:
    """Also on those that the planner does not offer strips to."""
    plan = kernel_plan(unstructured((13, 30), (3, 3), (11, 5)))
    with only(index):
        image = NativeNetwork(plan, samples.weights_of(plan), isa=ISAS[0], tune=False, exact=True).image()
    x = synthesize_input((11, 13, 30), 3)
    backends = [backend for backend in load_library().backends if backend.is_supported]
    outputs = {backend.name: ImageNetwork(image, isa=backend.name).run(x) for backend in backends}
    assert len({outputs[backend.name].tobytes() for backend in backends if backend.has_fma}) == 1
    for output in outputs.values():
        np.testing.assert_allclose(output, outputs[ISAS[0]], rtol=1e-5, atol=1e-5)


@needs_strips
def test_an_infinite_value_stays_where_it_is() -> None:
    """Lanes outside of the image and rows above it are cleared, not multiplied by zero."""
    kernel = unstructured((9, 9), (3, 3), (1, 1), activation=Activation.NONE, pruning=DENSE)
    tensors = {"weight": np.ones((1, 1, 3, 3), np.float32), "bias": np.zeros(1, np.float32)}
    x = np.zeros((1, 9, 9), np.float32)
    x[0, 4, 8] = np.inf
    for index in range(8):
        with only(index):
            output = NativeKernel(kernel, tensors, isa=ISAS[0], tune=False, exact=True).run(x)
        assert np.isinf(output[0, 3:6, 7:]).all()
        output[0, 3:6, 7:] = 0
        assert (output == 0).all()


def shape_of(kernel: KernelSpec, group_size: int) -> ConvShape:
    source = Tensor(kernel.in_channels, kernel.input_h, kernel.input_w, Form.PLANES)
    target = Tensor(kernel.out_channels, kernel.output_h, kernel.output_w, Form.PLANES)
    return ConvShape(
        kernel=kernel,
        source=source.layout(),
        target=target.layout(),
        group_size=group_size,
        num_groups=kernel.out_channels // group_size,
        num_entries=kernel.num_weights // 2 // group_size,
        can_read_directly=False,
        can_pack=True,
    )


def has_strips(kernel: KernelSpec, group_size: int, longest: int = VECTOR) -> bool:
    found = tiling.tilings(shape_of(kernel, group_size), lambda length, _: 12 if length <= longest else 0, 10_000)
    return any(entry.strips is not None for entry in found)


def test_strips_are_offered_to_single_filters_with_a_window_and_long_vectors() -> None:
    kernel = conv(pruning=HALF)
    assert has_strips(kernel, 1)
    assert not has_strips(kernel, 1, longest=8)
    assert not has_strips(kernel, 2)
    assert not has_strips(kernel, 4)
    assert not has_strips(replace(kernel, stride=2), 1)
    assert not has_strips(replace(kernel, kernel_h=1, kernel_w=1, padding=0), 1)


@needs_strips
def test_steps_of_strips_that_would_leave_their_memory_are_refused() -> None:
    plan = kernel_plan(unstructured((9, 9), (3, 3), (6, 7)))
    with only(0):
        image = NativeNetwork(plan, samples.weights_of(plan), isa=ISAS[0], tune=False, exact=True).image()
    index, step = next((i, step) for i, step in enumerate(samples.steps(image)) if step.row_blocks)
    check_image(image)
    for changes in (
        {"row_blocks": 3},
        {"row_blocks": 8},
        {"row_vectors": 3},
        {"pack_rows": 17, "max_vectors": 17, "row_vectors": 1},
        {"pack_rows": step.pack_rows + 1},
        {"pack_plane": step.pack_plane - VECTOR},
        {"kernel_w": 9},
        {"kernel_h": 5},
        {"scratch_size": step.scratch_size - 1},
        {"stride": 2},
        {"group_size": 2},
        {"padding": 1 << 12},
        {"num_chunks": step.num_chunks + 1},
        {"channels": 1 << 20},
        {"input_h": 1 << 20},
        {"output_w": 1 << 20},
        {"pack_parts": 1000},
        {"pack_mask": samples.NULL},
    ):
        with pytest.raises(ContractError, match="not a sound program image"):
            check_image(samples.with_step(image, index, **changes))
