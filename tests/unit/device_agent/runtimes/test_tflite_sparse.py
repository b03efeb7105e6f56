"""The sparse path: networks around a kernel, the witness that tells the path, and what is refused."""

from __future__ import annotations

import dataclasses
import platform
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agent.contracts import (
    Activation,
    ContractError,
    KernelSpec,
    NetworkFormat,
    Op,
    PruningScheme,
    RuntimeInfo,
    WeightPruning,
)
from device_agent.formats.packed import write_packed
from device_agent.formats.tflite import plan_to_tflite, read_plan
from device_agent.formats.tflite_tensors import read_plan_tensors
from device_agent.runtimes import RuntimeUnavailable, UnsupportedTask, make_runtime, probe_runtimes
from device_agent.runtimes.litert_profile import profiled_operators
from device_agent.runtimes.reference import run_kernel, run_network
from device_agent.runtimes.sparse_chain import Network, chain_agrees, chain_input, kernel_chain, witness
from device_agent.runtimes.sparse_probe import SparseProbe, conclude, probe_sparse_1x1, with_sparse_probe
from device_agent.runtimes.tflite import TfliteRuntime
from device_agent.runtimes.tflite_sparse import TfliteSparseRuntime, is_sparse_path_taken, why_not_timed
from tests.unit.device_agent.runtimes.sparse_samples import GROUP, mobile_network, mobile_ops, network_of, pointwise

KERNELS = {
    "unstructured": pointwise(),
    "group": pointwise(16, 8, pruning=GROUP, activation=Activation.RELU6),
    "residual": pointwise(residual=True, activation=Activation.RELU),
    "not square": dataclasses.replace(pointwise(), input_h=3, input_w=10),
}
HAS_AVX = platform.machine() == "x86_64" and " avx" in Path("/proc/cpuinfo").read_text()


def real_tflite() -> TfliteRuntime:
    try:
        return TfliteRuntime()
    except RuntimeUnavailable as error:
        pytest.skip(f"no TFLite here: {error}")


class NumpyTflite:
    """A TFLite that runs files in numpy, on the sparse path or not: zeros are never multiplied, or always."""

    def __init__(self, *, takes_sparse_path: bool, scale: float = 1.0) -> None:
        self.takes_sparse_path = takes_sparse_path
        self.scale = scale
        self.loaded = 0

    def load_model(self, model: bytes, threads: int, mode: str = "dense") -> Any:
        self.loaded += 1
        plan = read_plan(model)
        assert plan is not None
        is_sparse = self.takes_sparse_path and b".weight.sparse" in model
        return NumpyExecutable(plan, read_plan_tensors(model, plan), mode, is_sparse, self.scale)

    def load_network(
        self, data: bytes, network_format: NetworkFormat, input_shape: object, threads: int, mode: str
    ) -> Any:
        return self.load_model(data, threads, mode)


class NumpyExecutable:
    findings = ()

    def __init__(self, plan: Any, tensors: Any, mode: str, is_sparse: bool, scale: float) -> None:
        self.plan, self.tensors, self.mode, self.is_sparse, self.scale = plan, tensors, mode, is_sparse, scale

    def run(self, x: np.ndarray, residual: np.ndarray | None = None) -> np.ndarray:
        values = {"input": x}
        for op in self.plan.ops:
            own = {part: self.tensors.get(f"{op.name}.{part}") for part in ("weight", "bias")}
            inputs = [values[name] for name in op.inputs]
            if self.is_sparse and op.kernel.op is Op.CONV2D and op.kernel.kernel_h == 1:
                inputs = [np.where(own["weight"].any(axis=0), inputs[0], 0.0).astype(np.float32)]
            added = values[op.residual] if op.residual is not None else None
            with np.errstate(invalid="ignore"):
                values[op.name] = run_kernel(op.kernel, own, inputs, added)
        return values[self.plan.output_name].reshape(-1) * np.float32(self.scale)


def sparse_runtime(tflite: object) -> TfliteSparseRuntime:
    runtime = TfliteSparseRuntime.__new__(TfliteSparseRuntime)
    runtime._tflite = tflite  # type: ignore[assignment]
    return runtime


# --- networks around a kernel ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_two_chains_differ_in_copies_of_the_kernel_alone(name: str) -> None:
    kernel = KERNELS[name]
    more, fewer = kernel_chain(kernel, 5, 4), kernel_chain(kernel, 2, 4)
    left = [op.kernel for op in more.plan.ops]
    for op in fewer.plan.ops:
        left.remove(op.kernel)
    assert left == [kernel] * 3
    assert more.plan.output_shape == (kernel.out_channels, 1, 1)
    weights = [more.tensors[f"copy{i}.weight"] for i in range(5)]
    assert all((w != 0).tolist() == (weights[0] != 0).tolist() for w in weights)
    assert not any(np.array_equal(weights[0], w) for w in weights[1:])


@pytest.mark.parametrize("name", KERNELS)
@pytest.mark.parametrize("sparse", [False, True])
def test_chains_run_and_are_checked_in_a_few_channels(name: str, sparse: bool) -> None:
    network = kernel_chain(KERNELS[name], 3, 3)
    x = chain_input(network)
    expected = run_network(network.plan, network.tensors, x).reshape(-1)
    model = plan_to_tflite(network.plan, network.tensors, sparse_1x1=sparse)
    output = real_tflite().load_model(model, 1).run(x)
    np.testing.assert_allclose(output, expected, rtol=1e-4, atol=1e-5)
    assert chain_agrees(network, x, output, max_channels=3)
    assert not chain_agrees(network, x, output + 0.01)
    assert not chain_agrees(network, x, output[:-1])
    assert not chain_agrees(network, x, np.full_like(output, np.nan))


# --- the witness ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_the_witness_tells_skipping_from_multiplying(name: str) -> None:
    network = kernel_chain(KERNELS[name], 2, 1)
    assert is_sparse_path_taken(NumpyTflite(takes_sparse_path=True), network) is True  # type: ignore[arg-type]
    assert is_sparse_path_taken(NumpyTflite(takes_sparse_path=False), network) is False  # type: ignore[arg-type]
    dense = is_sparse_path_taken(NumpyTflite(takes_sparse_path=True), network, sparse_1x1=False)  # type: ignore[arg-type]
    assert dense is False


def test_the_witness_of_a_whole_network() -> None:
    plan, tensors = mobile_network()
    network = Network(plan=plan, tensors=tensors)
    assert is_sparse_path_taken(NumpyTflite(takes_sparse_path=True), network) is True  # type: ignore[arg-type]
    assert is_sparse_path_taken(NumpyTflite(takes_sparse_path=False), network) is False  # type: ignore[arg-type]
    poisoned, clean = (witness(plan, tensors, poisoned=p) for p in (True, False))
    changed = [name for name in tensors if not np.array_equal(poisoned.tensors[name], tensors[name])]
    assert changed == ["dw1.bias", "pw1.weight"]
    assert all(op.kernel.activation is Activation.NONE for op in poisoned.plan.ops)
    differing = [name for name in tensors if not np.array_equal(poisoned.tensors[name], clean.tensors[name])]
    assert differing == ["dw1.bias"]


def test_outputs_that_say_nothing_are_no_proof() -> None:
    network = kernel_chain(pointwise(), 2, 1)
    overflowing = NumpyTflite(takes_sparse_path=True, scale=float("inf"))
    with np.errstate(invalid="ignore"):
        assert is_sparse_path_taken(overflowing, network) is None  # type: ignore[arg-type]


def test_a_network_without_a_tensor_for_the_witness() -> None:
    ops = [op for op in mobile_ops() if op.name in ("stem", "pw1")]
    mean = KernelSpec(op=Op.GLOBAL_AVG_POOL, in_channels=8, out_channels=8, input_h=7, input_w=7)
    residual = pointwise(8, 8, 7, residual=True)
    ops = [
        ops[0],
        dataclasses.replace(ops[1], kernel=residual, inputs=("stem",), residual="stem"),
        dataclasses.replace(ops[1], name="mean", kernel=mean, inputs=("pw1",)),
    ]
    plan, tensors = network_of(ops)
    with pytest.raises(ContractError, match="cannot be told"):
        witness(plan, tensors, poisoned=True)


# --- what is timed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_on_the_sparse_path_is_loaded_and_checked(name: str) -> None:
    executable = sparse_runtime(NumpyTflite(takes_sparse_path=True)).load_kernel(KERNELS[name], 1)
    assert executable.mode == "sparse"
    assert executable.copies == 6
    outputs, agree = executable.check()
    assert agree
    assert len(outputs) == 2
    wrong = sparse_runtime(NumpyTflite(takes_sparse_path=True, scale=1.1)).load_kernel(KERNELS[name], 1)
    assert not wrong.check()[1]


def test_nothing_is_loaded_for_timing_where_the_path_is_not_taken() -> None:
    dense = NumpyTflite(takes_sparse_path=False)
    with pytest.raises(UnsupportedTask, match="nothing was timed"):
        sparse_runtime(dense).load_kernel(pointwise(), 1)
    assert dense.loaded == 2  # the two of the witness
    unclear = NumpyTflite(takes_sparse_path=True, scale=float("inf"))
    with np.errstate(invalid="ignore"), pytest.raises(UnsupportedTask, match="cannot be told: nothing was timed"):
        sparse_runtime(unclear).load_kernel(pointwise(), 1)


@pytest.mark.skipif(not HAS_AVX, reason="this machine is no x86 with AVX")
def test_this_machine_refuses_a_real_kernel_and_a_real_network() -> None:
    with pytest.raises(UnsupportedTask, match="multiplies by the zeros"):
        sparse_runtime(real_tflite()).load_kernel(pointwise(), 1)
    plan, tensors = mobile_network()
    model = plan_to_tflite(plan, tensors, sparse_1x1=True)
    with pytest.raises(UnsupportedTask, match="multiplies by the zeros"):
        sparse_runtime(real_tflite()).load_network(model, NetworkFormat.TFLITE, plan.input_shape, 1)


REFUSED = {
    "depthwise": (
        KernelSpec(op=Op.DEPTHWISE_CONV2D, in_channels=8, out_channels=8, input_h=4, input_w=4),
        "times 1x1 convolutions only, not depthwise_conv2d",
    ),
    "3x3": (
        pointwise(kernel_h=3, kernel_w=3, padding=1),
        "times 1x1 convolutions of stride 1 without padding only, not 3x3 with stride 1 and padding 1",
    ),
    "strided": (pointwise(stride=2), "not 1x1 with stride 2 and padding 0"),
    "dense": (pointwise(pruning=WeightPruning()), "times unstructured and group pruning only, not dense"),
    "punched": (
        pointwise(
            pruning=WeightPruning(
                scheme=PruningScheme.BLOCK_PUNCHED, density=0.2, block_filters=4, block_channels=4
            )
        ),
        "times unstructured and group pruning only, not block_punched",
    ),
    "a third": (
        pointwise(pruning=WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=1 / 3)),
        "times densities below 1/3 only, not 0.333333",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_kernels_that_the_path_does_not_run_are_refused(name: str) -> None:
    kernel, words = REFUSED[name]
    assert words in (why_not_timed(kernel) or "")
    tflite = NumpyTflite(takes_sparse_path=True)
    with pytest.raises(UnsupportedTask, match=re.escape(words)):
        sparse_runtime(tflite).load_kernel(kernel, 1)
    assert tflite.loaded == 0


def test_a_density_that_rounds_to_too_few_zeros_is_refused() -> None:
    # 2 of 6 weights stay: exactly two thirds are zero, though the density asks for less than a third.
    kernel = pointwise(2, 3, pruning=WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.3))
    with pytest.raises(UnsupportedTask, match="32 of 48 weights"):
        sparse_runtime(NumpyTflite(takes_sparse_path=True)).load_kernel(kernel, 1)


def test_a_whole_network_is_proved_before_it_is_handed_out() -> None:
    plan, tensors = mobile_network()
    model = plan_to_tflite(plan, tensors, sparse_1x1=True)

    def load(data: bytes, takes_sparse_path: bool = True) -> Any:
        runtime = sparse_runtime(NumpyTflite(takes_sparse_path=takes_sparse_path))
        return runtime.load_network(data, NetworkFormat.TFLITE, plan.input_shape, 1)

    assert load(model).mode == "sparse"
    with pytest.raises(UnsupportedTask, match="nothing was timed"):
        load(model, takes_sparse_path=False)
    with pytest.raises(UnsupportedTask, match="not what its plan is written as"):
        load(plan_to_tflite(plan, tensors))


def test_a_sparse_encoded_file_is_no_dense_baseline() -> None:
    plan, tensors = mobile_network()
    model = plan_to_tflite(plan, tensors, sparse_1x1=True)
    with pytest.raises(UnsupportedTask, match="measure it with the runtime tflite-sparse, or export it dense"):
        real_tflite().load_network(model, NetworkFormat.TFLITE, plan.input_shape, 1)
    with pytest.raises(UnsupportedTask, match="export it as tflite"):
        sparse_runtime(real_tflite()).load_network(
            write_packed(plan, tensors), NetworkFormat.PACKED, plan.input_shape, 1
        )


# --- the probe ------------------------------------------------------------------------------------------------------

SPMM = ("Convolution (NCHW, F32) SPMM",)
GEMM = ("Fully Connected (NC, F32) GEMM",)


@pytest.mark.parametrize(
    ("sparse", "dense", "tags", "taken"),
    [
        (True, False, SPMM, True),
        (True, False, None, True),
        (True, False, GEMM, False),
        (False, False, GEMM, False),
        (False, False, None, False),
        (None, False, None, None),
        (True, True, SPMM, None),
        (True, None, None, None),
    ],
)
def test_what_the_probe_concludes(
    sparse: bool | None, dense: bool | None, tags: tuple[str, ...] | None, taken: bool | None
) -> None:
    probe = conclude(sparse, dense, tags)
    assert probe.taken is taken
    assert bool(probe.reason) == (taken is not True)


def test_the_probe_on_this_machine() -> None:
    real_tflite()
    probe = probe_sparse_1x1()
    assert probe.taken is not None, probe.reason
    if probe.tags is not None:
        assert probe.taken == any("SPMM" in tag for tag in probe.tags)
    if HAS_AVX:
        assert probe.taken is False
        assert "aarch64" in probe.reason


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("import time; time.sleep(60)", "deadline"),
        ("raise ImportError('no such library')", "no such library"),
        ("print('hello')", "nonsense"),
    ],
)
def test_a_probe_that_crashes_or_hangs_tells_nothing(program: str, words: str) -> None:
    timeout_s = 0.2 if "sleep" in program else 60.0
    probe = probe_sparse_1x1(timeout_s, (sys.executable, "-c", program))
    assert probe.taken is None
    assert words in probe.reason


def test_the_profile_names_what_ran(tmp_path: Path) -> None:
    network = kernel_chain(pointwise(), 2, 1)
    model = tmp_path / "chain.tflite"
    model.write_bytes(plan_to_tflite(network.plan, network.tensors, sparse_1x1=True))
    tags = profiled_operators(model, real_tflite().library_folder)
    if tags is None:
        pytest.skip("this TFLite exports no profiler")
    assert sum("Convolution" in tag or "Fully Connected" in tag for tag in tags) == 3
    assert profiled_operators(model, tmp_path) is None
    model.write_bytes(b"not a model")
    assert profiled_operators(model, real_tflite().library_folder) is None


def test_what_is_announced() -> None:
    tflite, sparse = RuntimeInfo(name="tflite", version="1"), RuntimeInfo(name="tflite-sparse", version="1")
    taken = SparseProbe(taken=True)
    assert with_sparse_probe(tflite, taken) == dataclasses.replace(tflite, sparse_1x1=True)
    assert with_sparse_probe(sparse, taken) == dataclasses.replace(sparse, sparse_1x1=True)
    for answer in (False, None):
        probe = SparseProbe(taken=answer, reason="because")
        assert with_sparse_probe(tflite, probe) == dataclasses.replace(tflite, sparse_1x1=answer)
        announced = dataclasses.replace(sparse, sparse_1x1=answer, unavailable="because")
        assert with_sparse_probe(sparse, probe) == announced
    native = RuntimeInfo(name="native", version="1")
    assert with_sparse_probe(native, taken) == native


def test_both_tflite_runtimes_announce_what_was_seen() -> None:
    real_tflite()
    infos = {info.name: info for info in probe_runtimes()}
    tflite, sparse = infos["tflite"], infos["tflite-sparse"]
    assert tflite.sparse_1x1 == sparse.sparse_1x1
    assert tflite.sparse_1x1 is not None
    assert (sparse.unavailable is None) == sparse.sparse_1x1
    assert tflite.unavailable is None


def test_info_is_that_of_the_library_under_another_name() -> None:
    real_tflite()
    info = make_runtime("tflite-sparse").info()
    assert info == dataclasses.replace(make_runtime("tflite").info(), name="tflite-sparse")
