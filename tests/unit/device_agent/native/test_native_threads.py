"""Teams of threads: the same bits for every number of them, no deadlock, and an end."""

from __future__ import annotations

import ctypes
import gc
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import ContractError, KernelSpec, NetworkPlan, Op
from device_agent.native.build import SOURCE_DIR
from device_agent.native.errors import NativeError
from device_agent.native.executor import NativeKernel, NativeNetwork
from device_agent.native.library import MAX_THREADS, TEAM_ALIGNMENT, Kind, Step, load_library
from device_agent.native.team import LONGEST_ALONE_NS, SHORTEST_DECIDED_NS, Team, available_cores, limit_shares
from device_agent.synthesis import kernel_inputs, synthesize_input
from tests.unit.device_agent.native.native_samples import convolutions, other_kernels
from tests.unit.device_agent.native.test_native_network import networks, residual_network, weights_of

ROOT = Path(__file__).resolve().parents[4]


def team_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("kerf-")]


def check_same_bits(kernel: KernelSpec) -> None:
    x, second = kernel_inputs(kernel)
    # Untuned, so that every step is shared, however small.
    one = NativeKernel(kernel, tune=False)
    expected = one.run(x, second).tobytes()
    for threads in (2, 3):
        kernel_on_team = NativeKernel(kernel, tune=False, threads=threads)
        for _ in range(2):
            assert kernel_on_team.run(x, second).tobytes() == expected, threads
        kernel_on_team.repeat(3)
        assert kernel_on_team.output().tobytes() == expected
        kernel_on_team.close()


@settings(max_examples=120, deadline=None)
@given(kernel=convolutions())
def test_convolutions_have_the_same_bits_on_every_number_of_threads(kernel: KernelSpec) -> None:
    check_same_bits(kernel)


@settings(max_examples=120, deadline=None)
@given(kernel=other_kernels())
def test_other_operators_have_the_same_bits_on_every_number_of_threads(kernel: KernelSpec) -> None:
    check_same_bits(kernel)


@settings(max_examples=60, deadline=None)
@given(plan=networks(), data=st.data())
def test_networks_have_the_same_bits_however_their_steps_are_shared(plan: NetworkPlan, data: st.DataObject) -> None:
    tensors, x = weights_of(plan), synthesize_input(plan.input_shape, 0)
    expected = NativeNetwork(plan, tensors, tune=False).run(x).tobytes()
    network = NativeNetwork(plan, tensors, tune=False, threads=3)
    for step in network._run._array:
        step.max_parts = data.draw(st.integers(0, 4))
    for _ in range(3):
        assert network.run(x).tobytes() == expected
    assert len(network.op_ns(2)) == len(plan.ops)
    network.close()


def test_a_tuned_network_keeps_small_steps_to_one_thread() -> None:
    plan = residual_network()
    tensors, x = weights_of(plan), synthesize_input(plan.input_shape, 0)
    network = NativeNetwork(plan, tensors, threads=2)
    assert {step.max_parts for step in network._run._array} <= {1, 2}
    assert network.threads == 2
    np.testing.assert_array_equal(network.run(x), NativeNetwork(plan, tensors).run(x))


def test_steps_that_gain_nothing_are_not_shared() -> None:
    """Steps of equal images in a row are decided as one: long ones always shared, short ones as those before."""
    heights = (9, 8, 8, 8, 4, 4, 2, 8, 8, 1)
    steps = [Step(output_h=height, output_w=8) for height in heights]
    short, decided, long = SHORTEST_DECIDED_NS / 4, 1.0 * SHORTEST_DECIDED_NS, 2.0 * LONGEST_ALONE_NS
    alone_ns = [short, short, decided, decided, decided, decided, short, short, long, short]
    shared_ns = [0.0, 2 * short, short, short, 2 * decided, short, 0.0, short, 9 * long, 9 * short]
    limit_shares(steps, alone_ns, shared_ns, 4)
    assert [step.max_parts for step in steps] == [1, 4, 4, 4, 1, 1, 1, 4, 4, 4]


def test_more_threads_than_cores_end_in_time() -> None:
    """In a process of its own: a deadlock would stop the tests."""
    program = (
        "import numpy as np\n"
        "from device_agent.native.executor import NativeNetwork\n"
        "from device_agent.synthesis import synthesize_input\n"
        "from tests.unit.device_agent.native.test_native_network import residual_network, weights_of\n"
        "plan = residual_network(); tensors = weights_of(plan); x = synthesize_input(plan.input_shape, 0)\n"
        "expected = NativeNetwork(plan, tensors, tune=False).run(x)\n"
        "network = NativeNetwork(plan, tensors, tune=False, threads=8)\n"
        "for _ in range(100):\n"
        "    network.repeat(3)\n"
        "    assert (network.run(x) == expected).all()\n"
        "print('done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.stdout == "done\n", done.stderr


def test_threads_end_with_their_network() -> None:
    kernel = KernelSpec(op=Op.ADD, in_channels=3, out_channels=3, input_h=5, input_w=5)
    x = np.ones((3, 5, 5), np.float32)
    before = len(team_threads())
    closed = NativeKernel(kernel, threads=3)
    dropped = NativeKernel(kernel, threads=2)
    dropped.run(x, x)
    assert len(team_threads()) == before + 3
    closed.close()
    assert len(team_threads()) == before + 1
    with pytest.raises(NativeError, match="stopped"):
        closed.run(x, x)
    closed.close()
    invoke = dropped.invoke
    del dropped
    gc.collect()
    invoke()
    del invoke
    gc.collect()
    assert len(team_threads()) == before


def test_a_refused_step_ends_the_run_on_all_threads() -> None:
    library = load_library()
    backend = library.backend().index
    team = Team(library, 3)
    good, bad = Step(kind=Kind.ZERO), Step(kind=99)
    steps = (Step * 5)(good, good, bad, good, good)
    for max_parts in (0, 1, 2):
        steps[2].max_parts = max_parts
        for _ in range(20):
            assert library.run(backend, ctypes.addressof(steps), 5, team.address) == 3
            assert library.run(backend, ctypes.addressof(steps), 2, team.address) == 0
    with pytest.raises(NativeError, match="step 2 of 5 was refused"):
        library.profile(backend, ctypes.addressof(steps), 5, 2, team.address)
    with pytest.raises(NativeError, match="too large"):
        library.time(backend, ctypes.addressof(steps), 5, 1 << 30, team.address)


def test_a_clock_that_fails_ends_the_run() -> None:
    library = load_library()
    team = Team(library, 2)
    steps = (Step * 3)(*[Step(kind=Kind.ZERO)] * 3)
    times_ns = np.zeros(9, np.int64)
    calls = []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p)
    def broken_clock(clock_id: int, time: int) -> int:
        calls.append(clock_id)
        return -1 if len(calls) == 4 else 0

    profile = library._dll.kerf_profile
    arguments = (ctypes.addressof(steps), 3, 3, team.address, ctypes.cast(broken_clock, ctypes.c_void_p), 7)
    code = profile(library.backend().index, *arguments, times_ns.ctypes.data)
    assert "clock" in library.error_message(code)
    assert calls == [7] * 4
    assert library.run(library.backend().index, ctypes.addressof(steps), 3, team.address) == 0


def test_impossible_teams_are_refused() -> None:
    library = load_library()
    assert library.team_bytes(MAX_THREADS) > 0
    assert [library.team_bytes(number) for number in (-1, 0, MAX_THREADS + 1)] == [0, 0, 0]
    for number in (0, MAX_THREADS + 1):
        with pytest.raises(ValueError, match=r"not in 1\.\.16"):
            Team(library, number)
    memory = np.zeros(library.team_bytes(2) + 2 * TEAM_ALIGNMENT, np.uint8)
    address = memory.ctypes.data + -memory.ctypes.data % TEAM_ALIGNMENT
    with pytest.raises(NativeError, match="multiple of 128"):
        library.team_init(address + 8, 2)
    with pytest.raises(NativeError, match="number of threads"):
        library.team_init(address, 0)
    library.team_init(address, 2)
    with pytest.raises(NativeError, match="number is not below"):
        library.team_work(address, 2)
    kernel = KernelSpec(op=Op.ADD, in_channels=3, out_channels=3)
    with pytest.raises(ContractError, match="threads 0"):
        NativeKernel(kernel, threads=0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system cannot pin threads to cores")
def test_threads_are_pinned_to_the_cores_that_are_named() -> None:
    before = os.sched_getaffinity(0)
    cores = available_cores()
    library = load_library()
    with pytest.raises(ValueError, match="one core for each of 2"):
        Team(library, 2, cores[:1])
    with pytest.raises(NativeError, match="cannot be pinned"):
        Team(library, 2, (cores[0], 100_000))
    assert os.sched_getaffinity(0) == before
    if len(cores) < 2:
        pytest.skip("one core")
    known = set(team_threads())
    team = Team(library, 2, cores[-2:])
    try:
        (worker,) = set(team_threads()) - known
        assert worker.native_id is not None
        assert os.sched_getaffinity(worker.native_id) == {cores[-1]}
        assert os.sched_getaffinity(0) == {cores[-2]}
    finally:
        os.sched_setaffinity(0, before)
        team.close()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_is_refused_instead_of_waiting_for_ever() -> None:
    library = load_library()
    team = Team(library, 2)
    steps = (Step * 1)(Step(kind=Kind.ZERO))
    arguments = (library.backend().index, ctypes.addressof(steps), 1, team.address)
    assert library.run(*arguments) == 0
    child = os.fork()
    if child == 0:
        os._exit(17 if "stopped" in library.error_message(library.run(*arguments)) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 17
    assert library.run(*arguments) == 0


def test_a_c_program_brings_its_own_threads(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler here")
    plan = residual_network()
    image = tmp_path / "network.kerf"
    image.write_bytes(NativeNetwork(plan, weights_of(plan)).image())
    program = tmp_path / "program"
    source = Path(__file__).with_name("team_of_pthreads.c")
    warnings = ("-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{SOURCE_DIR}")
    subprocess.run([compiler, *warnings, source, load_library().path, "-pthread", "-o", program], check=True)
    done = subprocess.run([program, image, "3"], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "same bits\n"), done.stderr
