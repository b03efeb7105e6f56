"""Runs single kernels and whole networks on the native kernels."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import NETWORK_INPUT, NETWORK_RESIDUAL, ContractError, KernelSpec, NetworkPlan
from device_agent.formats.packed import check_tensors
from device_agent.formats.packed_tensors import PackedTensors
from device_agent.native.errors import UnsupportedKernelError
from device_agent.native.image import write_image
from device_agent.native.library import MAX_THREADS, BackendInfo, Kind, Library, Step, load_library
from device_agent.native.planner import Phase, Work, make_program
from device_agent.native.steps import Way
from device_agent.native.team import Team, limit_shares
from device_agent.native.tuner import choose_ways
from device_agent.native.weights import WeightSource
from device_agent.synthesis import kernel_plan, kernel_plan_tensors

FloatArray = NDArray[np.float32]

#: Deciding which steps threads share: turns of both ways, and the most rounds in each. Shortest times count.
_SHARE_TURNS = 3
_MAX_SHARE_ROUNDS = 20
_SHARE_BUDGET_NS = 5_000_000


class _StepArray:
    """Consecutive steps in C memory, with the call that runs them prepared.

    `held` is the memory that the steps point into: with it, a bound `run` is safe on its own.
    """

    def __init__(
        self,
        library: Library,
        backend: BackendInfo,
        steps: Sequence[Step],
        held: Sequence[NDArray[Any]],
        team: Team | None = None,
    ) -> None:
        self._library = library
        self._backend = backend
        self._held = held
        self._team = team
        self._array = (Step * len(steps))(*steps)
        self.count = len(steps)
        self._call: Callable[[], int] = functools.partial(
            library.run,
            ctypes.c_int32(backend.index),
            ctypes.c_void_p(ctypes.addressof(self._array)),
            ctypes.c_int32(self.count),
            ctypes.c_void_p(self._team_address),
        )

    @property
    def address(self) -> int:
        return ctypes.addressof(self._array)

    @property
    def steps(self) -> list[Step]:
        return list(self._array)

    @property
    def _team_address(self) -> int:
        return 0 if self._team is None else self._team.address

    def run(self) -> None:
        result = self._call()
        if result:
            self._library.check(result, self.count)

    def time(self, repeats: int) -> int:
        """Wall time of `repeats` runs, in ns."""
        return self._library.time(self._backend.index, self.address, self.count, repeats, self._team_address)

    def profile(self, rounds: int) -> NDArray[np.int64]:
        """Wall time of each step, in ns (rounds, steps)."""
        return self._library.profile(self._backend.index, self.address, self.count, rounds, self._team_address)

    def limit_shares(self) -> None:
        """Time each step on one thread and on all, and keep those on one that gain nothing."""
        if self._team is None or not self.count:
            return
        alone_ns, shared_ns = np.full(self.count, np.inf), np.full(self.count, np.inf)
        rounds = max(1, min(_MAX_SHARE_ROUNDS, _SHARE_BUDGET_NS // max(self.time(1), 1)))
        for _ in range(_SHARE_TURNS):
            times_ns = self._library.profile(self._backend.index, self.address, self.count, rounds)
            alone_ns = np.minimum(alone_ns, times_ns.min(axis=0))
            shared_ns = np.minimum(shared_ns, self.profile(rounds).min(axis=0))
        limit_shares(self.steps, alone_ns.tolist(), shared_ns.tolist(), self._team.num_threads)


def _checked(plan: NetworkPlan, tensors: Mapping[str, Any]) -> Mapping[str, WeightSource]:
    """`tensors`, after checking that they are those of `plan`: only once for those that came from a file with it."""
    if isinstance(tensors, PackedTensors) and tensors.plan == plan:
        return tensors
    return check_tensors(plan, tensors)


class _Executor:
    """A prepared program. Not for concurrent use: the buffers are its own.

    With several threads it keeps all but the caller's for itself, until `close` or until it is garbage collected.
    """

    def __init__(
        self,
        plan: NetworkPlan,
        tensors: Mapping[str, Any],
        isa: str | None,
        tune: bool,
        threads: int,
        cores: Sequence[int],
        exact: bool,
        inputs_in_place: bool,
    ) -> None:
        if not 1 <= threads <= MAX_THREADS:
            raise ContractError(f"threads {threads!r} is not in 1..{MAX_THREADS}")
        self._library = load_library()
        self._backend = self._library.backend(isa)
        self._plan = plan
        program = make_program(
            plan, _checked(plan, tensors), inputs_in_place=inputs_in_place, exact=exact, threads=threads
        )
        ways = choose_ways(program, self._library, self._backend, tune=tune)
        self._inputs, self._output = program.inputs, program.output
        pairs = list(zip(program.work, ways, strict=True))
        self._held = (*program.held, *(array for way in ways for array in way.held))
        self._winograd_ops = tuple(
            plan.ops[work.op_index].name for work, way in pairs if any(step.kind == Kind.WINOGRAD for step in way.steps)
        )
        self._team = Team(self._library, threads, cores) if threads > 1 else None
        self._load = self._steps(pairs, Phase.LOAD)
        self._run = self._steps(pairs, Phase.RUN, self._team)
        self._store = self._steps(pairs, Phase.STORE)
        if tune:
            self._run.limit_shares()
        self._op_of_step = np.array(
            [work.op_index for work, way in pairs if work.phase is Phase.RUN for _ in way.steps], dtype=np.int64
        )
        #: Runs once on the inputs that are set, and nothing else: this is what is timed.
        self.invoke: Callable[[], None] = self._run.run

    def _steps(self, pairs: Sequence[tuple[Work, Way]], phase: Phase, team: Team | None = None) -> _StepArray:
        steps = [step for work, way in pairs if work.phase is phase for step in way.steps]
        return _StepArray(self._library, self._backend, steps, self._held, team)

    def close(self) -> None:
        """End the threads. With more than one, the program cannot be run any more."""
        if self._team is not None:
            self._team.close()

    @property
    def threads(self) -> int:
        """Threads that a run takes, the caller's counted."""
        return 1 if self._team is None else self._team.num_threads

    @property
    def isa(self) -> str:
        """The instruction set in use, such as "avx512"."""
        return self._backend.name

    @property
    def has_fma(self) -> bool:
        """Whether outputs are bit-identical to those of every other backend with FMA."""
        return self._backend.has_fma

    @property
    def winograd_ops(self) -> tuple[str, ...]:
        """Names of the operators that run by Winograd's algorithm. Without any, outputs have the bits of an `exact`
        program, whatever else was chosen.
        """
        return self._winograd_ops

    @property
    def memory_bytes(self) -> int:
        """Weights, index lists, masks and buffers."""
        return sum({id(array): array.nbytes for array in self._held}.values())

    def repeat(self, count: int) -> None:
        """Run `count` times on the inputs that are set. The loop is in C: a call from Python costs as much as a small
        kernel.
        """
        self._run.time(count)

    def op_ns(self, rounds: int) -> tuple[float, ...]:
        """Median wall time in ns of each operator of the plan over `rounds` runs.

        Conversions and phase splits count for the operator that first needs them.
        """
        if rounds < 1:
            raise ValueError(f"rounds {rounds!r} must be at least 1")
        times_ns = self._run.profile(rounds)
        by_op = np.zeros((len(self._plan.ops), rounds))
        np.add.at(by_op, self._op_of_step, times_ns.T)
        return tuple(float(value) for value in np.median(by_op, axis=1))

    def output(self) -> FloatArray:
        """A copy of the output of the last run, float32 (c, h, w)."""
        self._store.run()
        return self._output.copy()

    def _set(self, name: str, values: NDArray[Any]) -> None:
        target = self._inputs[name]
        if values.shape != target.shape:
            raise ContractError(f"{name} has shape {values.shape}, but the plan reads {target.shape}")
        np.copyto(target, values, casting="same_kind")
        self._load.run()


class NativeNetwork(_Executor):
    """A whole network. The timed run begins with the plain (c, h, w) input and ends with the plain output."""

    def __init__(
        self,
        plan: NetworkPlan,
        tensors: Mapping[str, Any],
        *,
        isa: str | None = None,
        tune: bool = True,
        threads: int = 1,
        cores: Sequence[int] = (),
        exact: bool = False,
    ) -> None:
        """Prepare `plan` with `tensors` (`<op>.weight`, `<op>.bias`), of which none is kept. Those of `open_packed` are
        never dense in memory as a whole.

        `isa` names a backend instead of the fastest one; without `tune`, tiles are guessed and nothing is run. Results
        do not depend on `threads`. `cores`, one for each of several threads, pins them, and the caller's thread to the
        first. An `exact` program gives the same bits on every instruction set with FMA: it does without Winograd's
        algorithm, which the tuner may choose otherwise, and which rounds differently.

        Raises `ContractError` for tensors that do not fit and for threads not in 1..16, `UnsupportedKernelError` and
        `NativeBuildError`.
        """
        if plan.residual_shape is not None:
            raise UnsupportedKernelError(f"{plan.name!r} has a second input: run it as a NativeKernel")
        super().__init__(plan, tensors, isa, tune, threads, cores, exact, inputs_in_place=False)

    def set_input(self, x: NDArray[Any]) -> None:
        """Copy `x`, float32 (c, h, w), into the input buffer."""
        self._set(NETWORK_INPUT, x)

    def run(self, x: NDArray[Any]) -> FloatArray:
        """The network's output for `x`; both float32 (c, h, w)."""
        self.set_input(x)
        self.invoke()
        return self.output()

    def image(self) -> bytes:
        """The network as a program image, for the C API: see image.py. Its outputs are the same, bit for bit."""
        return write_image(
            self._run.steps, self._held, self._inputs[NETWORK_INPUT], self._output, isa=self.isa, name=self._plan.name
        )


class NativeKernel(_Executor):
    """A single kernel. Inputs are converted to the executor's layout when they are set, as an earlier kernel of a
    network would have left them there; the split into phases for strides above 1 is part of the timed run.
    """

    def __init__(
        self,
        kernel: KernelSpec,
        tensors: Mapping[str, NDArray[Any]] | None = None,
        *,
        isa: str | None = None,
        tune: bool = True,
        threads: int = 1,
        cores: Sequence[int] = (),
        exact: bool = False,
    ) -> None:
        """Prepare `kernel` with `tensors` (`weight`, `bias`), or with those that its seed stands for.

        The other arguments are those of `NativeNetwork`.
        """
        named = kernel_plan_tensors(kernel) if tensors is None else {f"kernel.{k}": v for k, v in tensors.items()}
        self.kernel = kernel
        super().__init__(kernel_plan(kernel), named, isa, tune, threads, cores, exact, inputs_in_place=True)

    def set_inputs(self, x: NDArray[Any], second: NDArray[Any] | None = None) -> None:
        """Set the input (c, h, w), and the residual or the second operand of ADD for a kernel that takes one."""
        takes_second = self._plan.residual_shape is not None
        if takes_second != (second is not None):
            raise ContractError(f"this kernel takes {1 + takes_second} inputs, not {1 + (second is not None)}")
        self._set(NETWORK_INPUT, x)
        if second is not None:
            self._set(NETWORK_RESIDUAL, second)

    def run(self, x: NDArray[Any], second: NDArray[Any] | None = None) -> FloatArray:
        """The kernel's output (c, h, w)."""
        self.set_inputs(x, second)
        self.invoke()
        return self.output()
