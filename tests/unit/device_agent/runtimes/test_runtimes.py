"""What every runtime must do, and what is special about each."""

from __future__ import annotations

import numpy as np
import pytest

from device_agent.contracts import ContractError, NetworkFormat, Op, VerdictReason
from device_agent.formats.packed import write_packed
from device_agent.formats.tflite import plan_to_tflite
from device_agent.native.executor import NativeKernel, NativeNetwork
from device_agent.native.library import BackendInfo, Library, load_library
from device_agent.native.planner import Program
from device_agent.native.steps import Way
from device_agent.native.team import available_cores
from device_agent.native.tuner import choose_ways
from device_agent.runtimes import (
    RUNTIMES,
    Runtime,
    RuntimeUnavailable,
    UnsupportedTask,
    make_runtime,
    probe_runtimes,
)
from device_agent.runtimes.native import NativeRuntime
from device_agent.runtimes.reference import output_agrees, run_network
from device_agent.runtimes.simulated import CORE_VARIABLE, kernel_latency_ns, network_latency_ns
from device_agent.synthesis import kernel_inputs, synthesize_input, synthesize_weights
from tests.unit.device_agent.runtimes.runtime_samples import GROUP, KERNELS, conv, same, small_network


def runtime_or_skip(name: str) -> Runtime:
    try:
        return make_runtime(name)
    except RuntimeUnavailable as error:
        pytest.skip(f"the runtime {name} cannot run here: {error}")


#: Runs no kernel but those of XNNPACK's sparse path: it has tests of its own.
OF_ALL_KERNELS = sorted(set(RUNTIMES) - {"tflite-sparse"})


@pytest.fixture(params=OF_ALL_KERNELS)
def runtime(request: pytest.FixtureRequest) -> Runtime:
    return runtime_or_skip(request.param)


def network_files() -> list[tuple[str, NetworkFormat, bytes]]:
    plan, tensors = small_network()
    packed, tflite = write_packed(plan, tensors), plan_to_tflite(plan, tensors)
    return [
        ("native", NetworkFormat.PACKED, packed),
        ("tflite", NetworkFormat.TFLITE, tflite),
        ("ncnn", NetworkFormat.PACKED, packed),
        ("simulated", NetworkFormat.PACKED, packed),
        ("simulated", NetworkFormat.TFLITE, tflite),
    ]


def test_the_native_runtime_can_be_held_to_another_instruction_set() -> None:
    runtime_or_skip("native")
    usable = [backend.name for backend in load_library().backends if backend.is_supported]
    runtime = NativeRuntime(isa=usable[-1], exact=True)
    assert runtime.info().isa == usable[-1]
    executable = runtime.load_kernel(KERNELS["conv group"], 1)
    assert isinstance(executable._program, NativeKernel)
    assert executable._program.isa == usable[-1]
    with pytest.raises(RuntimeUnavailable, match="no backend 'abacus'"):
        NativeRuntime(isa="abacus")


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_compute_what_the_reference_does(runtime: Runtime, name: str) -> None:
    kernel = KERNELS[name]
    x, second = kernel_inputs(kernel)
    executable = runtime.load_kernel(kernel, 1)
    output = executable.run(x, second)
    inputs, residual = ([x, second], None) if len(kernel.input_shapes) > 1 else ([x], second)
    assert output.shape == (kernel.out_channels * kernel.output_h * kernel.output_w,)
    assert output_agrees(kernel, synthesize_weights(kernel), inputs, residual, output, min_channels=100)
    assert executable.findings == ()
    executable.repeat(3)
    np.testing.assert_array_equal(executable.run(x, second), output)


@pytest.mark.parametrize(("name", "network_format", "data"), network_files())
def test_networks_compute_what_the_reference_does(name: str, network_format: NetworkFormat, data: bytes) -> None:
    plan, tensors = small_network()
    executable = runtime_or_skip(name).load_network(data, network_format, plan.input_shape, 1)
    for seed in range(3):
        x = synthesize_input(plan.input_shape, seed)
        expected = run_network(plan, tensors, x).reshape(-1)
        np.testing.assert_allclose(executable.run(x), expected, rtol=1e-4, atol=1e-5)
    executable.repeat(2)
    assert len(executable.op_ns(3)) in (0, len(plan.ops))


@pytest.mark.parametrize(("name", "network_format", "data"), network_files())
def test_a_task_of_another_shape_is_unsupported(name: str, network_format: NetworkFormat, data: bytes) -> None:
    with pytest.raises(UnsupportedTask, match="the network reads"):
        runtime_or_skip(name).load_network(data, network_format, (3, 11, 10), 1)


@pytest.mark.parametrize(
    ("name", "other"),
    [("native", NetworkFormat.TFLITE), ("tflite", NetworkFormat.PACKED), ("ncnn", NetworkFormat.TFLITE)],
)
def test_a_file_of_another_format_is_unsupported(name: str, other: NetworkFormat) -> None:
    with pytest.raises(UnsupportedTask, match="export it as"):
        runtime_or_skip(name).load_network(b"", other, (3, 10, 10), 1)


@pytest.mark.parametrize(
    ("name", "network_format"),
    [("native", NetworkFormat.PACKED), ("tflite", NetworkFormat.TFLITE), ("ncnn", NetworkFormat.PACKED)],
)
def test_a_damaged_file_is_refused(name: str, network_format: NetworkFormat) -> None:
    with pytest.raises((UnsupportedTask, ContractError)):
        runtime_or_skip(name).load_network(b"not a network" * 20, network_format, (3, 10, 10), 1)


def test_inputs_of_another_shape_are_refused(runtime: Runtime) -> None:
    executable = runtime.load_kernel(conv(), 1)
    with pytest.raises(ValueError, match="shape"):
        executable.run(np.zeros((5, 9, 8), np.float32))


def test_info_names_version_and_binary(runtime: Runtime) -> None:
    info = runtime.info()
    assert info.name in RUNTIMES
    assert info.version
    assert info.isa
    assert info.unavailable is None
    assert info.name == "simulated" or len(info.binary_sha256) == 64


def test_an_unknown_runtime_is_unavailable() -> None:
    with pytest.raises(RuntimeUnavailable, match=f"'gpu'; this agent knows {', '.join(RUNTIMES)}"):
        make_runtime("gpu")


def test_a_simulated_device_has_no_real_runtime_and_the_other_way_round() -> None:
    assert [info.name for info in probe_runtimes(simulated=True)] == ["simulated"]
    assert [info.name for info in probe_runtimes()] == ["native", "tflite", "tflite-sparse", "ncnn"]


def test_a_runtime_that_cannot_be_loaded_is_listed_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("device_agent.runtimes.tflite._IMPLEMENTATIONS", (("no_such_package", "no-such-package", ()),))
    _, tflite, sparse, _ = probe_runtimes()
    assert "pip install ai-edge-litert" in (tflite.unavailable or "")
    assert (sparse.unavailable, sparse.sparse_1x1) == (tflite.unavailable, None)


def test_threads_where_there_are_none_are_unsupported() -> None:
    with pytest.raises(UnsupportedTask, match="set threads to 1"):
        runtime_or_skip("simulated").load_kernel(conv(), 2)
    cores = len(available_cores())
    with pytest.raises(UnsupportedTask, match=rf"set threads to 1\.\.\d+, not {cores + 1}"):
        runtime_or_skip("native").load_kernel(conv(), cores + 1)


def test_native_threads_leave_the_output_alone() -> None:
    if len(available_cores()) < 2:
        pytest.skip("one core")
    x, second = kernel_inputs(conv())
    outputs = [runtime_or_skip("native").load_kernel(conv(), threads).run(x, second) for threads in (1, 2)]
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_modes_tell_whether_zeros_are_skipped() -> None:
    sparse = conv(pruning=GROUP)
    assert runtime_or_skip("simulated").load_kernel(sparse, 1).mode == "sparse"
    assert runtime_or_skip("simulated").load_kernel(conv(), 1).mode == "dense"
    assert runtime_or_skip("tflite").load_kernel(sparse, 1).mode == "dense"
    assert runtime_or_skip("native").load_kernel(sparse, 1).mode == "sparse"


def test_heavy_operators_outside_of_a_delegate_are_found() -> None:
    from device_agent.runtimes.tflite import _findings, _operators

    class Interpreter:
        def __init__(self, *delegated: int) -> None:
            self.delegated = delegated

        def _get_ops_details(self) -> list[dict[str, object]]:
            operators: list[dict[str, object]] = [
                {"op_name": "CONV_2D", "inputs": [0, 1, 2]},
                {"op_name": "PAD", "inputs": [3, 4]},
            ]
            return [*operators, {"op_name": "DELEGATE", "inputs": list(self.delegated)}]

    assert _findings(_operators(Interpreter(0, 1, 2))) == ()
    assert _findings(_operators(Interpreter(3))) == (VerdictReason.WRONG_DELEGATE,)
    assert _findings(_operators(object())) == ()


def test_weights_stored_without_zeros_are_delegated_as_they_are_stored() -> None:
    from device_agent.runtimes.tflite import _findings

    stored, dense = 7, 8
    operators = [
        {"op_name": "DENSIFY", "inputs": [stored], "outputs": [dense]},
        {"op_name": "CONV_2D", "inputs": [0, dense, 2]},
    ]
    assert _findings([*operators, {"op_name": "DELEGATE", "inputs": [0, stored, 2]}]) == ()
    assert _findings([*operators, {"op_name": "DELEGATE", "inputs": [0, 2]}]) == (VerdictReason.WRONG_DELEGATE,)


# --- the simulated device -------------------------------------------------------------------------------------------


def test_simulated_latency_falls_with_density_and_channels() -> None:
    dense = kernel_latency_ns(conv(64, 64, 16))
    assert kernel_latency_ns(conv(64, 32, 16)) < dense
    sparse = conv(64, 64, 16, pruning=GROUP)
    assert kernel_latency_ns(sparse) < dense
    assert kernel_latency_ns(sparse, skips_zeros=False) == dense
    assert kernel_latency_ns(same(Op.ADD)) > 0


def test_a_simulated_network_is_an_affine_map_of_its_kernels() -> None:
    plan, tensors = small_network()
    total = sum(kernel_latency_ns(k) for k in plan.kernels)
    assert network_latency_ns(plan) == pytest.approx(1.05 * total + 5000)
    simulated = make_runtime("simulated")
    packed = simulated.load_network(write_packed(plan, tensors), NetworkFormat.PACKED, plan.input_shape, 1)
    assert sum(packed.op_ns(1)) == pytest.approx(total)


def test_a_tflite_file_without_a_plan_cannot_be_simulated() -> None:
    from device_agent.formats import tflite_graph

    writer = tflite_graph.GraphWriter("other")
    x, y = writer.activation("x", (1, 2, 2, 1)), writer.activation("y", (1, 2, 2, 1))
    none = tflite_graph.Options(kind=tflite_graph.BuiltinOptions.NONE)
    writer.operator(tflite_graph.BuiltinOperator.RELU, [x], y, none)
    with pytest.raises(UnsupportedTask, match="no plan"):
        make_runtime("simulated").load_network(writer.finish([x], [y]), NetworkFormat.TFLITE, (1, 2, 2), 1)


def test_simulated_cores_differ_in_latency_and_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    wide, tiny = conv(64, 64, 16), conv(4, 4, 4)
    phone = make_runtime("simulated")
    assert phone.load_kernel(wide, 1).latency_ns == kernel_latency_ns(wide)
    monkeypatch.setenv(CORE_VARIABLE, "board")
    board = make_runtime("simulated")
    assert board.load_kernel(wide, 1).latency_ns > phone.load_kernel(wide, 1).latency_ns
    assert board.load_kernel(tiny, 1).latency_ns < phone.load_kernel(tiny, 1).latency_ns
    assert board.info().version != phone.info().version
    plan, tensors = small_network()
    networks = [
        r.load_network(write_packed(plan, tensors), NetworkFormat.PACKED, plan.input_shape, 1) for r in (phone, board)
    ]
    assert networks[0].latency_ns != networks[1].latency_ns
    monkeypatch.setenv(CORE_VARIABLE, "toaster")
    with pytest.raises(RuntimeUnavailable, match="'toaster' is not one of phone, board"):
        make_runtime("simulated")


def test_packed_outputs_of_a_simulated_network_do_not_need_the_native_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def unavailable(*, exact: bool) -> Runtime:
        raise RuntimeUnavailable("no compiler")

    monkeypatch.setattr("device_agent.runtimes.native.NativeRuntime", unavailable)
    from device_agent.runtimes.simulated import SimulatedRuntime

    plan, tensors = small_network()
    data = write_packed(plan, tensors)
    executable = SimulatedRuntime().load_network(data, NetworkFormat.PACKED, plan.input_shape, 1)
    x = synthesize_input(plan.input_shape, 5)
    np.testing.assert_array_equal(executable.run(x), run_network(plan, tensors, x).reshape(-1))


def test_packed_outputs_of_a_simulated_network_do_not_depend_on_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, tensors = small_network()
    data = write_packed(plan, tensors)
    x = synthesize_input(plan.input_shape, 5)
    exact = NativeNetwork(plan, tensors, tune=False, exact=True)
    tuned = []

    def watched(program: Program, library: Library, backend: BackendInfo, *, tune: bool) -> list[Way]:
        tuned.append(tune)
        return choose_ways(program, library, backend, tune=tune)

    monkeypatch.setattr("device_agent.native.executor.choose_ways", watched)
    simulated = make_runtime("simulated").load_network(data, NetworkFormat.PACKED, plan.input_shape, 1)
    np.testing.assert_array_equal(simulated.run(x), exact.run(x).reshape(-1))
    assert tuned == [False]
