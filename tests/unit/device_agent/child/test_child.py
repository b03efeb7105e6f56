"""The child process: real ones for what works, small scripts in its place for every way to fail."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from device_agent.child import probe_in_child, run_in_child, run_task
from device_agent.contracts import (
    FailureReason,
    KernelSpec,
    KernelTask,
    Measurement,
    MeasurementFailure,
    MeasuringSetup,
    Op,
    Source,
)
from device_agent.runtimes import RuntimeUnavailable, make_runtime
from tests.process_state import is_running

KERNEL = KernelSpec(op=Op.ADD, in_channels=3, out_channels=3, input_h=4, input_w=4)
LONG_S = 120.0


def task_of(runtime: str) -> KernelTask:
    setup = MeasuringSetup(runtime=runtime, min_warmup_s=0.001, min_sample_s=0.0001, budget_s=0.2)
    return KernelTask(kernel=KERNEL, setup=setup)


def fail_as(script: str, *, deadline_s: float = LONG_S, interrupt: threading.Event | None = None) -> MeasurementFailure:
    """What becomes of a task whose child is `script`."""
    command = [sys.executable, "-c", script]
    result = run_in_child(task_of("native"), deadline_s=deadline_s, interrupt=interrupt, command=command)
    assert isinstance(result, MeasurementFailure)
    return result


@pytest.mark.parametrize("runtime", ["native", "tflite", "ncnn"])
def test_a_kernel_is_measured_in_a_child(runtime: str) -> None:
    try:
        make_runtime(runtime)
    except RuntimeUnavailable as error:
        pytest.skip(f"the runtime {runtime} cannot run here: {error}")
    result = run_task(task_of(runtime), deadline_s=LONG_S, source=Source.EMULATED, cores=())
    assert isinstance(result, Measurement), result
    assert result.provenance.runtime == runtime
    assert result.provenance.source is Source.EMULATED
    assert result.provenance.affinity == ()


def test_failures_of_the_task_come_back_as_data() -> None:
    result = run_task(task_of("gpu"), deadline_s=LONG_S)
    assert isinstance(result, MeasurementFailure)
    assert result.reason is FailureReason.UNSUPPORTED


def test_a_simulated_task_needs_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_process(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", no_process)
    result = run_task(task_of("simulated"), deadline_s=LONG_S)
    assert isinstance(result, Measurement)
    assert result.provenance.source is Source.SIMULATED


def test_in_a_child_a_simulated_task_gives_the_same() -> None:
    task = task_of("simulated")
    assert run_in_child(task, deadline_s=LONG_S) == run_task(task, deadline_s=LONG_S)


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS])
def test_a_crash_names_its_signal(number: signal.Signals) -> None:
    failure = fail_as(
        f"import os, sys; print('bad weights', file=sys.stderr, flush=True); os.kill(os.getpid(), {number})"
    )
    assert failure.reason is FailureReason.CRASHED
    assert number.name in failure.detail
    assert "bad weights" in failure.detail


def test_a_kill_from_outside_is_lack_of_memory() -> None:
    assert fail_as("import os; os.kill(os.getpid(), 9)").reason is FailureReason.RESOURCE_EXHAUSTED


def test_an_error_in_the_child_quotes_the_traceback() -> None:
    failure = fail_as("raise RuntimeError('the very last line' + ' x' * 5000 + ' end of it')")
    assert failure.reason is FailureReason.AGENT_ERROR
    assert "status 1" in failure.detail
    assert failure.detail.endswith("end of it")
    assert len(failure.detail) <= 2000


def test_a_malformed_answer_is_an_agent_error() -> None:
    assert "malformed" in fail_as("print('hello')").detail


def test_the_deadline_kills_the_child_and_what_it_started(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    script = (
        "import subprocess, sys, time; "
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
        f"open({str(pid_file)!r}, 'w').write(str(child.pid)); time.sleep(600)"
    )
    failure = fail_as(script, deadline_s=2.0)
    assert failure.reason is FailureReason.TIMED_OUT
    assert "2 s" in failure.detail
    if pid_file.exists():
        _assert_gone(int(pid_file.read_text()))


def test_an_interruption_ends_the_child() -> None:
    interrupt = threading.Event()
    interrupt.set()
    failure = fail_as("import time; time.sleep(600)", interrupt=interrupt)
    assert failure.reason is FailureReason.AGENT_SHUTDOWN


def test_a_child_that_floods_its_error_output_does_not_block() -> None:
    failure = fail_as("import sys; sys.stderr.write('x' * 10_000_000); sys.exit(3)")
    assert "status 3" in failure.detail


def test_a_child_that_cannot_start_is_a_failure(tmp_path: Path) -> None:
    result = run_in_child(task_of("native"), deadline_s=LONG_S, command=[str(tmp_path / "nothing")])
    assert isinstance(result, MeasurementFailure)
    assert result.reason is FailureReason.RESOURCE_EXHAUSTED


def test_the_childs_environment_has_no_settings_of_the_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERF_AGENT_TOKEN", "secret")
    failure = fail_as("import os, sys; sys.exit(str(sorted(n for n in os.environ if n.startswith('KERF_AGENT'))))")
    assert "[]" in failure.detail


def test_a_lack_of_memory_is_a_failure_of_the_device() -> None:
    kernel = KernelSpec(op=Op.CONV2D, in_channels=4096, out_channels=4096, input_h=64, input_w=64)
    task = KernelTask(kernel=kernel, setup=MeasuringSetup(runtime="native", budget_s=0.2))
    result = run_task(task, deadline_s=LONG_S, memory_limit_bytes=400 << 20)
    assert isinstance(result, MeasurementFailure)
    assert result.reason is FailureReason.RESOURCE_EXHAUSTED


def test_runtimes_are_probed_in_a_child() -> None:
    assert [info.name for info in probe_in_child()] == ["native", "tflite", "tflite-sparse", "ncnn"]
    assert [info.name for info in probe_in_child(simulated=True)] == ["simulated"]


def test_the_parents_side_loads_neither_numpy_nor_a_runtime() -> None:
    script = (
        "import sys, device_agent.child; print([m for m in ('numpy', 'ai_edge_litert', 'ctypes') if m in sys.modules])"
    )
    root = Path(__file__).parents[4]
    answer = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells a child of its parent's death")
def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    """A killed agent must not leave a process behind that times on its core."""
    script = tmp_path / "agent.py"
    script.write_text(
        "import os, subprocess, sys, time\n"
        "from device_agent.child import _die_with_parent\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    _die_with_parent()\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
        "time.sleep(600)\n"
    )
    root = Path(__file__).parents[4]
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": str(root)}
    ) as agent:
        assert agent.stdout is not None
        child_pid = int(agent.stdout.readline())
        agent.kill()
        agent.wait()
    _assert_gone(child_pid)


def _assert_gone(pid: int) -> None:
    """Wait for a process to vanish or become a zombie; generous, since the machine may be busy."""
    for _ in range(600):
        if not is_running(pid):
            return
        time.sleep(0.05)
    raise AssertionError(f"process {pid} still runs")
