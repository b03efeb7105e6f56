"""Single kernels against torch, and the promise that tiles and instruction sets leave the bits alone."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import Activation, ContractError, KernelSpec, Op, PruningScheme, WeightPruning
from device_agent.native.errors import UnsupportedKernelError
from device_agent.native.executor import NativeKernel
from device_agent.native.library import Kind, load_library
from device_agent.synthesis import kernel_inputs, synthesize_weights
from tests.unit.device_agent.native.native_samples import conv, convolutions, each_tiling, other_kernels, torch_kernel

ISAS = [backend.name for backend in load_library().backends if backend.is_supported]
FMA_ISAS = [backend.name for backend in load_library().backends if backend.is_supported and backend.has_fma]


def check_against_torch(kernel: KernelSpec) -> None:
    x, second = kernel_inputs(kernel)
    expected = torch_kernel(kernel, synthesize_weights(kernel), x, second)
    outputs = {}
    for isa in ISAS:
        outputs[isa] = NativeKernel(kernel, isa=isa, tune=False).run(x, second)
        assert outputs[isa].dtype == np.float32
        np.testing.assert_allclose(outputs[isa], expected, rtol=1e-5, atol=1e-5, err_msg=isa)
    assert len({outputs[isa].tobytes() for isa in FMA_ISAS}) <= 1


@settings(max_examples=250, deadline=None)
@given(kernel=convolutions())
def test_convolutions_equal_torch(kernel: KernelSpec) -> None:
    check_against_torch(kernel)


@settings(max_examples=150, deadline=None)
@given(kernel=other_kernels())
def test_other_operators_equal_torch(kernel: KernelSpec) -> None:
    check_against_torch(kernel)


@settings(max_examples=40, deadline=None)
@given(kernel=convolutions())
def test_tuning_leaves_the_bits_alone(kernel: KernelSpec) -> None:
    x, second = kernel_inputs(kernel)
    outputs = {
        NativeKernel(kernel, isa=isa, tune=tune, exact=True).run(x, second).tobytes()
        for isa in FMA_ISAS
        for tune in (False, True)
    }
    assert len(outputs) <= 1


@pytest.mark.parametrize("block_filters", [1, 2, 4])
def test_fully_connected_layers_have_the_same_bits_on_every_instruction_set(block_filters: int) -> None:
    """Single filters are plain numbers, whose products gcc adds with one rounding on one set and two on another."""
    for seed in range(30):
        pruning = WeightPruning(scheme=PruningScheme.GROUP, density=0.3, block_filters=block_filters)
        kernel = KernelSpec(op=Op.FULLY_CONNECTED, in_channels=67, out_channels=21, pruning=pruning, seed=seed)
        x, _ = kernel_inputs(kernel)
        assert len({NativeKernel(kernel, isa=isa, tune=False).run(x).tobytes() for isa in FMA_ISAS}) <= 1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("density", [0.02, 0.3, 0.8])
@pytest.mark.parametrize("block", [(1, 16), (4, 16), (8, 16), (7, 5)])
def test_block_based_pruning_runs_as_its_weights_say(isa: str, density: float, block: tuple[int, int]) -> None:
    pruning = WeightPruning(
        scheme=PruningScheme.BLOCK, density=density, block_filters=block[0], block_channels=block[1]
    )
    kernel = KernelSpec(op=Op.FULLY_CONNECTED, in_channels=67, out_channels=21, pruning=pruning)
    x, _ = kernel_inputs(kernel)
    weights = synthesize_weights(kernel)
    expected = weights["weight"][:, :, 0, 0].astype(np.float64) @ x.reshape(-1) + weights["bias"]
    np.testing.assert_allclose(NativeKernel(kernel, isa=isa).run(x).reshape(-1), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("extent", [7, 8, 11, 14, 16])
@pytest.mark.parametrize("stride", [1, 2])
def test_every_tiling_of_every_backend_gives_the_same_bits(isa: str, extent: int, stride: int) -> None:
    """Group sizes 4, 2 and 1 all occur (7 = 4 + 2 + 1), and all kinds of rows, rests, chunks and packings."""
    kernel = conv(
        7,
        extent,
        stride=stride,
        residual=True,
        pruning=WeightPruning(scheme=PruningScheme.GROUP, block_filters=7, density=0.5),
    )
    x, second = kernel_inputs(kernel)
    expected = NativeKernel(kernel, isa=isa, tune=False).run(x, second).tobytes()
    seen = set()
    for _ in each_tiling():
        native = NativeKernel(kernel, isa=isa, tune=False)
        steps = [step for step in native._run._array if step.kind == Kind.CONV]
        assert {step.group_size for step in steps} == {4, 2, 1}
        seen |= {(s.vector_length, s.row_vectors > 0, s.num_chunks > 1, s.pack_rows > 0, s.block_tiles) for s in steps}
        assert native.run(x, second).tobytes() == expected
    assert len(seen) >= 4
    assert {True, False} == {has_chunks for _, _, has_chunks, *_ in seen}


@pytest.mark.parametrize("isa", ISAS)
def test_blocks_of_tiles_give_the_same_bits(isa: str) -> None:
    kernel = conv(8, 33, kernel_h=1, kernel_w=1, padding=0)
    x, second = kernel_inputs(kernel)
    expected = NativeKernel(kernel, isa=isa, tune=False).run(x, second).tobytes()
    seen = set()
    for _ in each_tiling():
        native = NativeKernel(kernel, isa=isa, tune=False)
        seen |= {step.block_tiles for step in native._run._array if step.kind == Kind.CONV}
        assert native.run(x, second).tobytes() == expected
    assert {0, 1} < seen


@settings(max_examples=80, deadline=None)
@given(
    channels=st.integers(1, 5),
    height=st.integers(1, 40),
    width=st.integers(1, 70),
    extent=st.sampled_from((1, 3, 5)),
    isa=st.sampled_from(FMA_ISAS or ISAS),
)
def test_rows_of_any_length_are_packed_at_stride_2(
    channels: int, height: int, width: int, extent: int, isa: str
) -> None:
    """Vectors of the copies hold parts of one row or of several; what lies around the image must not reach them."""
    kernel = conv(
        channels, height, input_w=width, kernel_h=extent, kernel_w=extent, padding=extent // 2, stride=2,
        activation=Activation.NONE, residual=False,
    )  # fmt: skip
    x, second = kernel_inputs(kernel)
    expected = torch_kernel(kernel, synthesize_weights(kernel), x, second)
    for _ in each_tiling(most=8):
        native = NativeKernel(kernel, isa=isa, tune=False)
        np.testing.assert_allclose(native.run(x, second), expected, rtol=1e-5, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(kernel=convolutions(), isa=st.sampled_from(FMA_ISAS or ISAS))
def test_tilings_of_any_convolution_give_the_same_bits(kernel: KernelSpec, isa: str) -> None:
    x, second = kernel_inputs(kernel)
    outputs = [NativeKernel(kernel, isa=isa, tune=False).run(x, second).tobytes() for _ in each_tiling(most=20)]
    assert len(set(outputs)) == 1


@pytest.mark.parametrize("isa", ISAS)
def test_shares_of_a_convolution_are_the_whole(isa: str) -> None:
    """What several threads would do, one after the other and in any order."""
    library = load_library()
    for stride in (1, 2):
        kernel = conv(12, 30, stride=stride, residual=True)
        x, second = kernel_inputs(kernel)
        expected = NativeKernel(kernel, isa=isa, tune=False).run(x, second).tobytes()
        for _ in each_tiling(most=12):
            native = NativeKernel(kernel, isa=isa, tune=False, threads=3)
            for parts in (2, 3):
                # Other outputs than those that are expected.
                native.run(-x, second)
                native.set_inputs(x, second)
                for part in reversed(range(parts)):
                    for step in native._run.steps:
                        library.run_part(native._backend.index, ctypes.addressof(step), part, parts)
                assert native.output().tobytes() == expected


def test_a_filter_without_weights_gives_its_bias() -> None:
    kernel = conv(4, 5, pruning=WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.5))
    tensors = {"weight": np.zeros(kernel.weight_shape, np.float32), "bias": np.arange(4, dtype=np.float32)}
    output = NativeKernel(kernel, tensors).run(kernel_inputs(kernel)[0])
    np.testing.assert_array_equal(output, np.broadcast_to(np.arange(4)[:, None, None], (4, 5, 5)))


def test_an_infinite_value_stays_where_it_is() -> None:
    """Padding is cleared by a mask of bits: a product with zero would turn infinity into NaN."""
    kernel = conv(1, 6, activation=Activation.NONE)
    tensors = {"weight": np.zeros((1, 1, 3, 3), np.float32), "bias": np.zeros(1, np.float32)}
    tensors["weight"][0, 0, 1, 1] = 1.0
    x = np.zeros((1, 6, 6), np.float32)
    x[0, 2, 5] = np.inf
    output = NativeKernel(kernel, tensors).run(x)
    assert np.isinf(output[0, 2, 5])
    assert not np.isnan(output[:, :, :4]).any()


def test_runs_are_repeatable_and_inputs_can_change() -> None:
    kernel = conv(12, 9, stride=2)
    native = NativeKernel(kernel)
    x, _ = kernel_inputs(kernel)
    first = native.run(x)
    other = native.run(-x)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(native.run(x), first)
    native.invoke()
    np.testing.assert_array_equal(native.output(), first)
    native.repeat(3)
    np.testing.assert_array_equal(native.output(), first)


def test_a_bound_invoke_outlives_its_kernel() -> None:
    kernel = conv()
    native = NativeKernel(kernel, tune=False)
    native.set_inputs(*kernel_inputs(kernel))
    invoke = native.invoke
    del native
    ballast = [np.ones(100_000, np.float32) for _ in range(8)]
    invoke()
    assert all((array == 1).all() for array in ballast)


def test_times_and_memory_are_reported() -> None:
    kernel = conv(stride=2)
    native = NativeKernel(kernel)
    native.set_inputs(*kernel_inputs(kernel))
    times_ns = native.op_ns(rounds=3)
    assert len(times_ns) == 1
    assert times_ns[0] > 0
    assert native.memory_bytes > 4 * kernel.num_weights
    assert native.isa == ISAS[0]
    with pytest.raises(ValueError, match="rounds 0"):
        native.op_ns(rounds=0)


def test_packing_is_part_of_the_timed_run() -> None:
    """A stride-2 kernel follows its input: what is timed starts from the planes that an earlier kernel wrote."""
    native = NativeKernel(conv(stride=2), tune=False)
    assert [step.pack_rows > 0 for step in native._run._array if step.kind == Kind.CONV] == [True]
    assert [step.kind for step in native._load._array] == [Kind.SPLIT]
    native = NativeKernel(conv(extent=16), tune=False)
    assert [step.pack_rows > 0 for step in native._run._array if step.kind == Kind.CONV] == [False]


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        (KernelSpec(op=Op.FULLY_CONNECTED, in_channels=4, out_channels=4, input_h=2, input_w=2), "2x2"),
        (
            KernelSpec(
                op=Op.MAX_POOL, in_channels=4, out_channels=4, input_h=9, input_w=9, kernel_h=1, kernel_w=5, padding=2
            ),
            "padding 2",
        ),
        (
            KernelSpec(
                op=Op.ADD, in_channels=4, out_channels=4, input_h=9, input_w=9, kernel_h=3, kernel_w=3, padding=1
            ),
            "no window",
        ),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(kernel: KernelSpec, message: str) -> None:
    with pytest.raises(UnsupportedKernelError, match=message):
        NativeKernel(kernel)


def test_inputs_that_do_not_fit_are_refused() -> None:
    native = NativeKernel(conv(residual=True), tune=False)
    x, second = kernel_inputs(native.kernel)
    with pytest.raises(ContractError, match="takes 2 inputs"):
        native.run(x)
    with pytest.raises(ContractError, match=r"\(16, 8, 7\)"):
        native.run(x[:, :, :7], second)


def test_tensors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ContractError, match=r"kernel.weight has shape \(1,\)"):
        NativeKernel(conv(), {"weight": np.zeros(1, np.float32), "bias": np.zeros(16, np.float32)})
