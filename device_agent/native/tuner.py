"""Chooses tile shape, loop order and grouping of each convolution by timing the few that can be best.

Tiles and groupings never change a result: every output is the same chain of multiply-adds in all of them. Winograd's
algorithm does, by rounding: a program that must give the same bits everywhere is made without it.
"""

from __future__ import annotations

import ctypes
import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from device_agent.native.library import VECTOR_LENGTHS, BackendInfo, Kind, Library, Step
from device_agent.native.planner import Program
from device_agent.native.regions import ProgramCheck
from device_agent.native.steps import Way, Ways
from device_agent.native.steps.winograd import WinogradTile, winograd_tiles

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

    def set(self, step: Step) -> None:
        step.vector_length, step.max_vectors = self.vector_length, self.max_vectors
        step.groups_outer = int(self.groups_outer)


AnyTile = Tile | WinogradTile


def choose_ways(program: Program, library: Library, backend: BackendInfo, *, tune: bool) -> list[Way]:
    """One way for each piece of the program's work, with all tiles set.

    Without `tune`, the first way and the tile that wastes least are taken and nothing is run. The constants of ways
    that are not chosen are free again before the next piece of work is emitted. No step is run before it is proved that
    it stays inside of the program's memory: a plan is data from elsewhere.
    """
    tuner = _Tuner(library, backend)
    check = ProgramCheck(library, program.held)
    chosen = []
    remembered: dict[object, _Choice] = {}
    for work in program.work:
        ways = work.ways()
        check.check(ways)
        choice = remembered.get(work.tuning_key) if work.tuning_key is not None else None
        index = choice.find(ways) if choice is not None else None
        if choice is None or index is None:
            choice = tuner.tune(ways) if tune else tuner.guess(ways)
            index = choice.way
            remembered[work.tuning_key] = choice
        way = ways[index]
        for step, tile in zip(way.steps, choice.tiles, strict=True):
            _set_tile(step, tile)
        chosen.append(way)
        del ways  # before the next ones are emitted
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """The index of a way, and the tile of each of its steps; None for steps without one."""

    way: int
    tiles: tuple[AnyTile | None, ...]
    signature: tuple[tuple[int, int, int], ...]

    def find(self, ways: Ways) -> int | None:
        """The index of the way among `ways` that has the same steps. Other weights can give the ways another order."""
        return next((index for index, way in enumerate(ways) if _signature(way) == self.signature), None)


def _signature(way: Way) -> tuple[tuple[int, int, int], ...]:
    return tuple((step.kind, step.group_size, step.winograd_size) for step in way.steps)


class _Tuner:
    def __init__(self, library: Library, backend: BackendInfo) -> None:
        self._library = library
        self._backend = backend

    def guess(self, ways: Ways) -> _Choice:
        tiles = tuple(next(iter(self._tiles(step)), None) for step in ways[0].steps)
        return _Choice(way=0, tiles=tiles, signature=_signature(ways[0]))

    def tune(self, ways: Ways) -> _Choice:
        """The best tile of each step by itself; then ways are compared as a whole, with all their steps in order."""
        choices = []
        for index, way in enumerate(ways):
            tiles = tuple(self._best_tile(step) for step in way.steps)
            for step, tile in zip(way.steps, tiles, strict=True):
                _set_tile(step, tile)
            choices.append(_Choice(way=index, tiles=tiles, signature=_signature(way)))
        runs = [functools.partial(self._run, (Step * len(way.steps))(*way.steps)) for way in ways]
        return choices[self._fastest(runs)]

    def _best_tile(self, step: Step) -> AnyTile | None:
        tiles = self._tiles(step)
        if not tiles:
            return None
        return tiles[self._fastest([functools.partial(self._run_tile, step, tile) for tile in tiles])]

    def _fastest(self, runs: Sequence[Callable[[int], float]]) -> int:
        """The index of the fastest of `runs`, each of which returns the time of so many repeats."""
        if len(runs) == 1:
            return 0
        times_ns = self._time(runs, _FIRST_ROUNDS)
        limit = _GIVE_UP_RATIO * min(times_ns)
        finalists = [index for index, time_ns in enumerate(times_ns) if time_ns <= limit]
        if len(finalists) > 1:
            times_ns = self._time([runs[index] for index in finalists], _FINAL_ROUNDS)
            return min(zip(times_ns, finalists, strict=True))[1]
        return finalists[0]

    def _time(self, runs: Sequence[Callable[[int], float]], rounds: int) -> list[float]:
        """The shortest time of each of `runs`. Rounds are interleaved, so that a disturbance hits all of them alike."""
        best = [math.inf] * len(runs)
        end_ns = time.perf_counter_ns() + _BUDGET_NS
        for round_index in range(rounds):
            if round_index > 0 and time.perf_counter_ns() > end_ns:
                break
            for index, run in enumerate(runs):
                if best[index] == math.inf:
                    best[index] = run(1)
                    if best[index] >= _MIN_SAMPLE_NS:
                        continue
                repeats = max(1, math.ceil(_MIN_SAMPLE_NS / max(best[index], 100.0)))
                best[index] = min(best[index], run(repeats) / repeats)
        return best

    def _run_tile(self, step: Step, tile: AnyTile, repeats: int) -> float:
        _set_tile(step, tile)
        return self._run((Step * 1)(step), repeats)

    def _run(self, steps: ctypes.Array[Step], repeats: int) -> float:
        return float(self._library.thread_cpu_time(self._backend.index, ctypes.addressof(steps), len(steps), repeats))

    def _tiles(self, step: Step) -> Sequence[AnyTile]:
        """The tiles worth timing, the best guess first; none for steps that have no tile."""
        if step.kind == Kind.WINOGRAD:
            return winograd_tiles(step, functools.partial(self._library.max_winograd_tiles, self._backend))
        if step.kind == Kind.CONV:
            return sorted(self._conv_tiles(step), key=functools.partial(_waste, step))
        return []

    def _conv_tiles(self, step: Step) -> list[Tile]:
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


def _set_tile(step: Step, tile: AnyTile | None) -> None:
    if tile is not None:
        tile.set(step)
