"""Chooses tile shape, loop order and grouping of each convolution by timing the few that can be best.

The choice never changes a result: every output is the same chain of multiply-adds in every tile.
"""

from __future__ import annotations

import ctypes
import functools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

from device_agent.native.library import VECTOR_LENGTHS, BackendInfo, Kind, Library, Step
from device_agent.native.planner import Program, Work
from device_agent.native.steps import Way

#: A timing sample lasts at least this long, for the clock's resolution.
_MIN_SAMPLE_NS = 15_000
#: Rounds after the first end when this is spent: kernels of many milliseconds need few samples.
_BUDGET_NS = 100_000_000
_FIRST_ROUNDS = 2
_FINAL_ROUNDS = 6
#: After the first rounds, tiles slower than this times the best are given up.
_GIVE_UP_RATIO = 1.25
#: How many numbers of tiles are tried for each vector length, from the fewest on.
_TILE_COUNTS = 4
#: Vectors shorter than the longest pay only where positions are few.
_SHORT_VECTOR_POSITIONS = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Tile:
    """How one convolution step walks its output."""

    vector_length: int
    max_vectors: int
    groups_outer: bool


def choose_ways(program: Program, library: Library, backend: BackendInfo, *, tune: bool) -> list[Way]:
    """One way for each piece of the program's work, with all tiles set.

    Without `tune`, the tile that wastes least is taken and nothing is run.
    """
    tuner = _Tuner(library, backend)
    chosen = []
    remembered: dict[object, tuple[int, list[Tile]]] = {}
    for work in program.work:
        if not any(step.kind == Kind.CONV for way in work.ways for step in way.steps):
            chosen.append(work.ways[0])
            continue
        known = remembered.get(work.tuning_key) if work.tuning_key is not None else None
        if known is not None and known[0] < len(work.ways) and len(known[1]) == len(work.ways[known[0]].steps):
            way = work.ways[known[0]]
            for step, tile in zip(way.steps, known[1], strict=True):
                _set_tile(step, tile)
        else:
            index, tiles = tuner.tune(work) if tune else tuner.guess(work)
            remembered[work.tuning_key] = (index, tiles)
            way = work.ways[index]
        chosen.append(way)
    return chosen


class _Tuner:
    def __init__(self, library: Library, backend: BackendInfo) -> None:
        self._library = library
        self._backend = backend

    def guess(self, work: Work) -> tuple[int, list[Tile]]:
        way = work.ways[0]
        tiles = [min(self._tiles(step), key=functools.partial(_waste, step)) for step in way.steps]
        for step, tile in zip(way.steps, tiles, strict=True):
            _set_tile(step, tile)
        return 0, tiles

    def tune(self, work: Work) -> tuple[int, list[Tile]]:
        best: tuple[float, int, list[Tile]] = (math.inf, 0, [])
        for index, way in enumerate(work.ways):
            tiles, total_ns = [], 0.0
            for step in way.steps:
                tile, time_ns = self._best_tile(step)
                _set_tile(step, tile)
                tiles.append(tile)
                total_ns += time_ns
            if total_ns < best[0]:
                best = (total_ns, index, tiles)
        return best[1], best[2]

    def _best_tile(self, step: Step) -> tuple[Tile, float]:
        tiles = self._tiles(step)
        times_ns = self._time(step, tiles, _FIRST_ROUNDS)
        limit = _GIVE_UP_RATIO * min(times_ns)
        finalists = [tile for tile, time_ns in zip(tiles, times_ns, strict=True) if time_ns <= limit]
        times_ns = self._time(step, finalists, _FINAL_ROUNDS)
        time_ns, index = min((time_ns, index) for index, time_ns in enumerate(times_ns))
        return finalists[index], time_ns

    def _time(self, step: Step, tiles: Sequence[Tile], rounds: int) -> list[float]:
        """The shortest time of each tile. Rounds are interleaved, so that a disturbance hits all tiles alike."""
        best = [math.inf] * len(tiles)
        end_ns = time.perf_counter_ns() + _BUDGET_NS
        for round_index in range(rounds):
            if round_index > 0 and time.perf_counter_ns() > end_ns:
                break
            for index, tile in enumerate(tiles):
                _set_tile(step, tile)
                if best[index] == math.inf:
                    best[index] = self._run(step, 1)
                    if best[index] >= _MIN_SAMPLE_NS:
                        continue
                repeats = max(1, math.ceil(_MIN_SAMPLE_NS / max(best[index], 100.0)))
                best[index] = min(best[index], self._run(step, repeats) / repeats)
        return best

    def _run(self, step: Step, repeats: int) -> float:
        return float(self._library.time(self._backend.index, ctypes.addressof(step), 1, repeats))

    def _tiles(self, step: Step) -> list[Tile]:
        tiles = []
        longest = 0
        for vector_length in VECTOR_LENGTHS:
            limit = self._library.max_vectors(self._backend, vector_length, step.group_size)
            if limit == 0:
                continue
            longest = longest or vector_length
            if vector_length * 4 <= longest and step.positions > _SHORT_VECTOR_POSITIONS:
                continue
            num_vectors = -(-step.positions // vector_length)
            fewest = -(-num_vectors // limit)
            widths = {-(-num_vectors // count) for count in range(fewest, min(fewest + _TILE_COUNTS, num_vectors + 1))}
            for width in sorted(widths, reverse=True):
                orders = (False, True) if width < num_vectors and step.num_groups > 1 else (False,)
                tiles += [Tile(vector_length=vector_length, max_vectors=width, groups_outer=order) for order in orders]
        return tiles


def _waste(step: Step, tile: Tile) -> tuple[int, int]:
    """Positions computed for nothing, then the number of vectors: the less of both the better."""
    num_vectors = -(-step.positions // tile.vector_length)
    # One wasted position weighs less than the overhead of a vector.
    return (num_vectors * (tile.vector_length + 2), -tile.max_vectors)


def _set_tile(step: Step, tile: Tile) -> None:
    step.vector_length = tile.vector_length
    step.max_vectors = tile.max_vectors
    step.groups_outer = int(tile.groups_outer)
