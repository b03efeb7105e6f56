"""Real child processes on the runtimes of this machine, and signals to the agent's own."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest

from device_agent.contracts import (
    FailureReason,
    KernelTask,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    RuntimeInfo,
    Source,
)
from device_agent.contracts.statistics import summarize
from device_agent.measuring.preflight import CoolingGate
from device_agent.runner import ChildRunner
from device_agent.runtimes.sparse_probe import probe_sparse_1x1
from device_agent.service import log_unavailable
from device_agent.stopping import PollInterrupted, StopRequest
from tests.unit.device_agent.agent.agent_samples import kernel, kernel_task
from tests.unit.device_agent.runtimes.sparse_samples import pointwise

SIMULATED = RuntimeInfo(name="simulated", version="1")
NATIVE = RuntimeInfo(name="native", version="1")


def test_a_simulated_kernel_is_measured() -> None:
    result = ChildRunner((SIMULATED,)).run_task(kernel_task(0, "simulated"), deadline_s=60.0)
    assert isinstance(result, Measurement)
    assert result.provenance.source is Source.SIMULATED
    assert result == ChildRunner((SIMULATED,)).run_task(kernel_task(0, "simulated"), deadline_s=60.0)


@pytest.mark.parametrize(
    ("runtimes", "wanted"),
    [
        ((NATIVE,), "simulated"),
        ((SIMULATED,), "native"),
        ((RuntimeInfo(name="tflite", unavailable="not installed"),), "tflite"),
        ((), "native"),
    ],
)
def test_only_announced_runtimes_are_used(runtimes: tuple[RuntimeInfo, ...], wanted: str) -> None:
    result = ChildRunner(runtimes).run_task(kernel_task(0, wanted), deadline_s=60.0)
    assert isinstance(result, MeasurementFailure)
    assert result.reason is FailureReason.UNSUPPORTED
    assert repr(wanted) in result.detail


def test_the_agent_says_which_runtimes_it_cannot_use(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_unavailable((NATIVE, RuntimeInfo(name="tflite-sparse", unavailable="zeros are multiplied here")))
    fields = [record.__dict__["fields"] for record in caplog.records]
    assert fields == [{"runtime": "tflite-sparse", "reason": "zeros are multiplied here"}]


@pytest.mark.parametrize("seen", [False, None])
@pytest.mark.parametrize("unavailable", ["zeros are multiplied here", None])
def test_a_device_that_does_not_take_the_sparse_path_times_nothing_as_if(
    seen: bool | None, unavailable: str | None
) -> None:
    sparse = RuntimeInfo(name="tflite-sparse", version="1", sparse_1x1=seen, unavailable=unavailable)
    result = ChildRunner((NATIVE, sparse)).run_task(kernel_task(0, "tflite-sparse"), deadline_s=60.0)
    assert isinstance(result, MeasurementFailure)
    assert result.reason is FailureReason.UNSUPPORTED
    assert (unavailable or "was not seen to take XNNPACK's sparse path") in result.detail


def test_a_child_does_not_trust_the_announcement() -> None:
    """The announcement says yes, and the machine does otherwise: the child finds out by itself."""
    sparse = RuntimeInfo(name="tflite-sparse", version="1", sparse_1x1=True)
    task = KernelTask(kernel=pointwise(), setup=MeasuringSetup(runtime="tflite-sparse", budget_s=0.1))
    result = ChildRunner((sparse,)).run_task(task, deadline_s=60.0)
    if probe_sparse_1x1().taken:
        assert isinstance(result, Measurement)
        assert result.provenance.mode == "sparse"
    else:
        assert isinstance(result, MeasurementFailure)
        assert result.reason is FailureReason.UNSUPPORTED


def test_a_child_is_killed_at_its_deadline() -> None:
    result = ChildRunner((NATIVE,)).run_task(kernel_task(0, "native"), deadline_s=0.001)
    assert isinstance(result, MeasurementFailure)
    assert result.reason is FailureReason.TIMED_OUT


def test_a_child_is_killed_when_its_lease_ends() -> None:
    interrupt = threading.Event()
    interrupt.set()
    result = ChildRunner((NATIVE,)).run_task(kernel_task(0, "native"), deadline_s=60.0, interrupt=interrupt)
    assert isinstance(result, MeasurementFailure)
    assert result.reason is FailureReason.AGENT_SHUTDOWN


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system cannot pin threads to cores")
def test_the_agent_keeps_off_the_core_that_it_measures_on() -> None:
    runner = ChildRunner((NATIVE,))
    before = os.sched_getaffinity(0)
    with runner.kept_off_measuring_core():
        inside = os.sched_getaffinity(0)
    assert os.sched_getaffinity(0) == before
    if len(before) > 1:
        assert inside == before - {runner.measuring_core}


def signalled_while_waiting() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(30)


def test_the_first_signal_drains_and_the_second_aborts() -> None:
    stop, aborted = StopRequest(), threading.Event()
    stop.on_abort(aborted.set)
    with stop.signals_handled():
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.drain.wait(10)
        assert not stop.abort.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        assert aborted.wait(10)
    assert stop.abort.is_set()


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest().signals_handled():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_interrupts_only_an_interruptible_wait() -> None:
    stop = StopRequest()
    with stop.signals_handled():
        with pytest.raises(PollInterrupted), stop.interruptible():
            signalled_while_waiting()
        assert stop.drain.wait(10)
        with pytest.raises(PollInterrupted), stop.interruptible():
            pytest.fail("a wait must not begin after a signal")


def test_a_drain_without_a_signal_lets_no_new_wait_begin() -> None:
    stop = StopRequest()
    stop.ask_drain()
    with pytest.raises(PollInterrupted), stop.interruptible():
        pytest.fail("a wait must not begin while draining")


def test_a_measurement_of_several_processes() -> None:
    setup = MeasuringSetup(runtime="native", processes=6, budget_s=0.3, min_sample_s=1e-4, ci_half_width=0.9)
    task = KernelTask(kernel=kernel(), setup=setup)
    result = ChildRunner((NATIVE,)).run_task(task, deadline_s=120.0)
    assert isinstance(result, Measurement), result
    assert {block.process for block in result.blocks} == set(range(6))
    assert result.statistics == summarize(result.blocks, setup.clock, result.statistics.reference_name)
    assert result.peak_memory_bytes is None or 0 <= result.peak_memory_bytes < 1 << 30


def test_a_device_that_does_not_become_ready_gives_the_task_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CoolingGate, "wait", lambda *_: "the processor is at 91 °C")
    result = ChildRunner((NATIVE,)).run_task(kernel_task(0, "native"), deadline_s=60.0)
    assert result == MeasurementFailure(reason=FailureReason.DEVICE_NOT_READY, detail="the processor is at 91 °C")
