"""How ways are chosen: one node at a time, and with steps of any kind."""

from __future__ import annotations

import ctypes
import gc
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from device_agent.native.executor import NativeKernel
from device_agent.native.library import Kind, Step, load_library
from device_agent.native.planner import Phase, Program, Work
from device_agent.native.regions import ProgramCheck
from device_agent.native.steps import LateWay, Way, Ways
from device_agent.native.tuner import _Tuner, choose_ways
from tests.unit.device_agent.native.native_samples import conv


def clearing(planes: NDArray[Any]) -> Step:
    return Step(
        kind=Kind.ZERO,
        channels=1,
        output=planes.ctypes.data,
        output_h=1,
        output_w=planes.size,
        output_plane=planes.size,
    )


class Node:
    """Ways to clear a buffer, which count the constants that are alive."""

    def __init__(self, alive: weakref.WeakSet[Any], num_ways: int) -> None:
        self.alive = alive
        self.num_ways = num_ways
        self.most_alive = 0
        self.num_made = 0

    def ways(self) -> Ways:
        return tuple(LateWay(signature=((Kind.ZERO, 0, 0),) * 2, make=self.make) for _ in range(self.num_ways))

    def make(self) -> Way:
        planes = np.ones(16, np.float32).view(Planes)
        self.alive.add(planes)
        gc.collect()
        self.most_alive = max(self.most_alive, len(self.alive))
        self.num_made += 1
        return Way(steps=(clearing(planes), clearing(planes)), held=(planes,))


class Planes(np.ndarray[Any, Any]):
    """An array that can be counted."""

    __hash__ = object.__hash__  # type: ignore[assignment]


@pytest.fixture
def nothing_older() -> Iterator[None]:
    """A collection looks at objects made from now on only: among all that other tests have loaded it takes a second."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("nothing_older")
def test_one_way_of_each_node_stays_in_memory() -> None:
    alive = weakref.WeakSet[Any]()
    nodes = [Node(alive, num_ways=4) for _ in range(5)]
    program = Program(
        work=tuple(Work(op_index=0, phase=Phase.RUN, ways=node.ways) for node in nodes),
        inputs={},
        output=np.zeros(1, np.float32),
        held=(),
    )
    library = load_library()
    chosen = choose_ways(program, library, library.backend(), tune=True)
    assert [len(way.steps) for way in chosen] == [2] * 5
    assert all((way.held[0] == 0).all() for way in chosen)
    assert [node.num_made for node in nodes] == [4] * 5
    # What was chosen before, and two ways of the node itself: the best one so far and the one that it is timed against.
    assert [node.most_alive for node in nodes] == [2, 3, 4, 5, 6]


class Run:
    """A kernel that takes `time_ns`, whatever the clock says."""

    def __init__(self, time_ns: float) -> None:
        self.time_ns = time_ns
        self.num_samples = 0

    def __call__(self, repeats: int) -> float:
        self.num_samples += 1
        return self.time_ns * repeats


@pytest.mark.parametrize("unit_ns", [50.0, 40_000.0])
def test_slow_tilings_are_sampled_once(unit_ns: float) -> None:
    library = load_library()
    tuner = _Tuner(library, library.backend(), ProgramCheck(library, []))
    runs = [Run(factor * unit_ns) for factor in (2.0, 1.1, 1.3, 1.0, 9.0)]
    assert tuner._fastest(runs) == 3
    assert tuner._fastest([Run(5.0)]) == 0
    # The first sample of what is shorter than the clock can tell is a trial and a longer one.
    first = 2 if unit_ns < 1000 else 1
    assert [run.num_samples for run in runs] == [first, first + 5, first + 1, first + 5, first]


def test_when_the_budget_is_spent_a_few_are_sampled_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    library = load_library()
    tuner = _Tuner(library, library.backend(), ProgramCheck(library, []))
    monkeypatch.setattr("device_agent.native.tuner._BUDGET_NS", -1)
    runs = [Run(factor * 1e7) for factor in (1.05, 1.04, 1.03, 1.02, 1.01)]
    assert tuner._fastest(runs) == 4
    assert [run.num_samples for run in runs] == [1, 1, 2, 2, 2]


@pytest.mark.parametrize(("faster", "slower"), [(Kind.WINOGRAD, Kind.CONV), (Kind.CONV, Kind.WINOGRAD)])
def test_a_way_that_is_much_slower_is_not_tuned(monkeypatch: pytest.MonkeyPatch, faster: int, slower: int) -> None:
    seen: dict[int, set[tuple[int, ...]]] = {Kind.CONV: set(), Kind.WINOGRAD: set()}

    def run(_: _Tuner, steps: ctypes.Array[Step], repeats: int) -> float:
        [step] = steps
        seen[step.kind].add(
            (step.vector_length, step.max_vectors, step.chunk_channels, step.pack_rows, step.block_tiles,
             step.winograd_size, step.winograd_rows, step.winograd_outputs, step.winograd_tiles)
        )  # fmt: skip
        return repeats * (1e4 if step.kind == faster else 2e4)

    monkeypatch.setattr(_Tuner, "_run", run)
    native = NativeKernel(conv(16, 20))
    assert [step.kind for step in native._run.steps] == [faster]
    num_ways = {Kind.CONV: 1, Kind.WINOGRAD: 2}
    assert len(seen[slower]) == num_ways[slower]
    assert len(seen[faster]) > num_ways[faster]
