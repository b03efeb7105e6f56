"""How ways are chosen: one node at a time, and with steps of any kind."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device_agent.native.library import Kind, Step, load_library
from device_agent.native.planner import Phase, Program, Work
from device_agent.native.steps import LateWay, Way, Ways
from device_agent.native.tuner import choose_ways


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


def test_one_way_of_each_node_stays_in_memory() -> None:
    alive = weakref.WeakSet[Any]()
    nodes = [Node(alive, num_ways=4) for _ in range(5)]
    program = Program(
        work=tuple(Work(op_index=0, phase=Phase.RUN, ways=node.ways) for node in nodes),
        inputs={},
        output=np.zeros(1, np.float32),
        held=(),
        is_exact=True,
    )
    library = load_library()
    chosen = choose_ways(program, library, library.backend(), tune=True)
    assert [len(way.steps) for way in chosen] == [2] * 5
    assert all((way.held[0] == 0).all() for way in chosen)
    assert [node.num_made for node in nodes] == [4] * 5
    # What was chosen before, and two ways of the node itself: the best one so far and the one that it is timed against.
    assert [node.most_alive for node in nodes] == [2, 3, 4, 5, 6]
