"""What is special about ncnn: its options, its extractor, and its errors. See test_runtimes.py for the rest."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from device_agent.contracts import Activation, KernelSpec, NetworkFormat, Op
from device_agent.formats.packed import write_packed
from device_agent.runtimes import RuntimeUnavailable, UnsupportedTask, make_runtime, probe_runtimes
from device_agent.runtimes.ncnn import NcnnExecutable, NcnnRuntime
from device_agent.runtimes.reference import output_agrees, run_network
from device_agent.synthesis import kernel_inputs, synthesize_input, synthesize_weights
from tests.unit.device_agent.runtimes.runtime_samples import conv, same, small_network


@pytest.fixture
def runtime() -> NcnnRuntime:
    try:
        found = make_runtime("ncnn")
    except RuntimeUnavailable as error:
        pytest.skip(f"the runtime ncnn cannot run here: {error}")
    assert isinstance(found, NcnnRuntime)
    return found


def test_without_ncnn_the_probe_tells_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None)
    (info,) = (info for info in probe_runtimes() if info.name == "ncnn")
    assert "pip install 'kerf[ncnn]'" in (info.unavailable or "")


def test_nothing_runs_below_float32(runtime: NcnnRuntime) -> None:
    options = runtime.load_kernel(conv(), 1)._net.opt
    names = [name for name in dir(options) if name.startswith(("use_fp16", "use_bf16", "use_int8"))]
    assert names
    assert not any(getattr(options, name) for name in names)
    assert not options.use_vulkan_compute
    assert options.use_winograd_convolution
    assert options.use_sgemm_convolution
    assert options.use_packing_layout


@pytest.mark.parametrize("channels", [64, 24, 7])
def test_winograd_stays_within_the_tolerance(runtime: NcnnRuntime, channels: int) -> None:
    kernel = conv(channels, channels, 28, activation=Activation.RELU)
    x, _ = kernel_inputs(kernel)
    output = runtime.load_kernel(kernel, 1).run(x)
    assert output_agrees(kernel, synthesize_weights(kernel), [x], None, output, min_channels=channels)


def test_every_repetition_computes_anew(runtime: NcnnRuntime) -> None:
    # An extractor remembers outputs: asked again without care, it would do nothing.
    kernel = same(Op.MAX_POOL, 5, 6, kernel_h=2, kernel_w=2, stride=2)
    executable = runtime.load_kernel(kernel, 1)
    x, _ = kernel_inputs(kernel)
    first = executable.run(x)
    extractor = executable._net.create_extractor()
    np.testing.assert_array_equal(np.array(executable._forward(extractor, 0)).reshape(-1), first)
    other = NcnnExecutable._mat(executable, np.ascontiguousarray(-x))
    executable._inputs = [(executable._inputs[0][0], other)]
    again = np.array(executable._forward(extractor, 0)).reshape(-1)
    del extractor
    assert not np.array_equal(again, first)
    np.testing.assert_array_equal(again, executable.run(np.ascontiguousarray(-x)))


def test_two_threads_give_the_same_output(runtime: NcnnRuntime) -> None:
    plan, tensors = small_network()
    data = write_packed(plan, tensors)
    x = synthesize_input(plan.input_shape, 3)
    outputs = [runtime.load_network(data, NetworkFormat.PACKED, plan.input_shape, threads).run(x) for threads in (1, 2)]
    np.testing.assert_allclose(outputs[1], outputs[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(outputs[0], run_network(plan, tensors, x).reshape(-1), rtol=1e-4, atol=1e-5)


def test_a_second_input_must_be_given_where_there_is_one(runtime: NcnnRuntime) -> None:
    executable = runtime.load_kernel(conv(residual=True), 1)
    with pytest.raises(ValueError, match="has 2 inputs, but 1 were given"):
        executable.run(np.zeros((5, 9, 9), np.float32))


def test_a_plan_without_an_ncnn_form_is_unsupported(runtime: NcnnRuntime) -> None:
    kernel = KernelSpec(op=Op.FULLY_CONNECTED, in_channels=3, out_channels=4, input_h=2, input_w=2)
    with pytest.raises(UnsupportedTask, match="reads a 1x1 input"):
        runtime.load_kernel(kernel, 1)


def test_memory_and_operator_times_are_not_told(runtime: NcnnRuntime) -> None:
    executable = runtime.load_kernel(conv(), 1)
    assert executable.memory_bytes is None
    assert executable.op_ns(3) == ()
    assert executable.mode == "dense"
