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
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from numpy.typing import NDArray

from device_agent.native.library import BackendInfo, Kind, Library, Step
from device_agent.native.planner import Program
from device_agent.native.regions import ProgramCheck
from device_agent.native.steps import Offer, Signature, Way, Ways
from device_agent.native.steps.winograd import WinogradTile, winograd_tiles
from device_agent.native.tiling import Tiling
from device_agent.native.tuning_cache import CachedChoice, TuningCache, open_tuning_cache

#: A timing sample lasts at least this long, for the clock's resolution.
_MIN_SAMPLE_NS = 15_000
#: How often each tiling is sampled at most. When the first round takes longer than the budget, there is one more, of a
#: few tilings: samples of milliseconds are less noisy.
_ROUNDS = 6
_BUDGET_NS = 5_000_000
_NUM_FINALISTS = 3
#: Tilings slower than this times the best are given up: after one sample, which may be disturbed, and after more.
_GIVE_UP_AT_ONCE_RATIO = 1.4
_GIVE_UP_RATIO = 1.15
#: Ways whose first guess is slower than this times another's are given up: more than tilings of one way differ by.
_HOPELESS_RATIO = 1.5
#: How many tilings of a step are timed.
_NUM_TILINGS = 6
#: More than any step has.
_ALL_TILINGS = 1_000_000

AnyTiling = Tiling | WinogradTile
_T = TypeVar("_T", Tiling, WinogradTile, AnyTiling)


def choose_ways(program: Program, library: Library, backend: BackendInfo, *, tune: bool) -> list[Way]:
    """One way for each piece of the program's work, with all tiles set.

    Without `tune`, the first way and the tile that wastes least are taken and nothing is run. The constants of ways
    that are not chosen are free again before the next piece of work is emitted. No step is run before it is proved that
    it stays inside of the program's memory: a plan is data from elsewhere.
    """
    tuner = _Tuner(library, backend, ProgramCheck(library, program.held))
    cache = open_tuning_cache(library, backend) if tune else None
    chosen = []
    remembered: dict[object, _Choice] = {}
    for work in program.work:
        ways = work.ways()
        choice = remembered.get(work.tuning_key) if work.tuning_key is not None else None
        known = choice.find(ways) if choice is not None else None
        if choice is not None and known is not None:
            way = tuner.apply(known.make(), choice.tilings)
        elif tune:
            way, choice = _cached(tuner, cache, work.tuning_key, ways)
        else:
            way, choice = tuner.guess(ways)
        remembered[work.tuning_key] = choice
        chosen.append(way)
        del ways  # before the next ones are made
    return chosen


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    """A way, and the tiling of each of its steps."""

    signature: Signature
    tilings: tuple[AnyTiling | None, ...]

    def find(self, ways: Ways) -> Offer | None:
        """The way among `ways` that has the same steps. Other weights can give the ways another order."""
        return next((way for way in ways if way.signature == self.signature), None)


def _cached(tuner: _Tuner, cache: TuningCache | None, tuning_key: object, ways: Ways) -> tuple[Way, _Choice]:
    """What `cache` knows about `ways`, if that still is among what would be timed; else the fastest choice."""
    if cache is None or tuning_key is None:
        return tuner.tune(ways)
    # Which ways there are depends on the weights and on the program.
    key = f"{tuning_key!r}\n{sorted(way.signature for way in ways)!r}"
    known = cache.load(key)
    found = None if known is None else tuner.recall(ways, known)
    if found is not None:
        return found
    way, choice = tuner.tune(ways)
    cache.store(key, repr(choice.signature), [repr(tiling) for tiling in choice.tilings])
    return way, choice


class _Tuner:
    def __init__(self, library: Library, backend: BackendInfo, check: ProgramCheck) -> None:
        self._library = library
        self._backend = backend
        self._check = check

    def apply(self, way: Way, tilings: Sequence[AnyTiling | None]) -> Way:
        """`way` with its tilings set and checked, holding what its steps point to."""
        held = [array for number, tiling in enumerate(tilings) for array in _set_tiling(way, number, tiling)]
        ready = replace(way, held=(*way.held, *held), tunables=())
        self._check.check((ready,))
        return ready

    def guess(self, ways: Ways) -> tuple[Way, _Choice]:
        way = ways[0].make()
        tilings = self._first_tilings(way)
        return self.apply(way, tilings), _Choice(tilings=tilings, signature=way.signature)

    def recall(self, ways: Ways, known: CachedChoice) -> tuple[Way, _Choice] | None:
        """The choice among `ways` that `known` describes, if there is one. No other way is made."""
        offer = next((way for way in ways if repr(way.signature) == known.signature), None)
        if offer is None or len(offer.signature) != len(known.tilings):
            return None
        way = offer.make()
        tilings: list[AnyTiling | None] = []
        for number, name in enumerate(known.tilings):
            candidates = self._tilings(way, number, _ALL_TILINGS) or (None,)
            tilings += [tiling for tiling in candidates if repr(tiling) == name][:1]
        if len(tilings) < len(way.steps):
            return None
        return self.apply(way, tilings), _Choice(tilings=tuple(tilings), signature=way.signature)

    def tune(self, ways: Ways) -> tuple[Way, _Choice]:
        """The best tiling of each step by itself; then ways are compared as a whole, with all their steps in order.

        A way whose first guess is much slower than another's is not looked at further. Two ways are there at once at
        most.
        """
        best: Way | tuple[Way, _Choice] | None = None
        best_ns = math.inf
        for offer in ways:
            way = offer.make()
            time_ns = self._first_time(way) if len(ways) > 1 else 0.0
            if best is None or time_ns * _HOPELESS_RATIO < best_ns:
                best = way
            elif time_ns <= best_ns * _HOPELESS_RATIO:
                best = self._with_best_tilings(best) if isinstance(best, Way) else best
                best = self._faster(best, self._with_best_tilings(way))
            best_ns = min(best_ns, time_ns)
            del way
        assert best is not None
        return self._with_best_tilings(best) if isinstance(best, Way) else best

    def _first_time(self, way: Way) -> float:
        """The time of `way` with the tilings that are guessed first, in ns."""
        ready = self.apply(way, self._first_tilings(way))
        run = self._runner(ready)
        return self._sample(run, self._sample(run, math.inf))

    def _first_tilings(self, way: Way) -> tuple[AnyTiling | None, ...]:
        return tuple(next(iter(self._tilings(way, number, 1)), None) for number in range(len(way.steps)))

    def _with_best_tilings(self, way: Way) -> tuple[Way, _Choice]:
        tilings = tuple(self._best_tiling(way, number) for number in range(len(way.steps)))
        return self.apply(way, tilings), _Choice(tilings=tilings, signature=way.signature)

    def _faster(self, *pair: tuple[Way, _Choice]) -> tuple[Way, _Choice]:
        # The ways stay alive here, and with them what their steps point to.
        return pair[self._fastest([self._runner(way) for way, _ in pair])]

    def _runner(self, way: Way) -> Callable[[int], float]:
        return functools.partial(self._run, (Step * len(way.steps))(*way.steps))

    def _best_tiling(self, way: Way, number: int) -> AnyTiling | None:
        tilings = self._tilings(way, number, _NUM_TILINGS)
        if not tilings:
            return None
        for tiling in tilings:
            held = _set_tiling(way, number, tiling)
            self._check.check((Way(steps=(way.steps[number],), held=(*way.held, *held)),))
        tiles = [tiling for tiling in tilings if isinstance(tiling, WinogradTile)]
        if not tiles:
            return self._fastest_tiling(way, number, tilings)
        # The best shape of a product hardly depends on the size of blocks.
        best = self._fastest_tiling(way, number, [tile for tile in tiles if tile.rows == tiles[0].rows])
        others = [tile for tile in tiles if tile != best and replace(tile, rows=best.rows) == best]
        return self._fastest_tiling(way, number, [best, *others])

    def _fastest_tiling(self, way: Way, number: int, tilings: Sequence[_T]) -> _T:
        return tilings[self._fastest([functools.partial(self._run_tiling, way, number, t) for t in tilings])]

    def _tilings(self, way: Way, number: int, count: int) -> Sequence[AnyTiling]:
        """The tilings of one step that are worth timing, the best guess first; none for steps without one."""
        step = way.steps[number]
        if step.kind == Kind.WINOGRAD:
            return winograd_tiles(step, functools.partial(self._library.max_winograd_tiles, self._backend))
        if way.tunables:
            return way.tunables[number].tilings(functools.partial(self._library.max_vectors, self._backend), count)
        return ()

    def _fastest(self, runs: Sequence[Callable[[int], float]]) -> int:
        """The index of the fastest of `runs`, each of which returns the time of so many repeats."""
        times_ns = [math.inf] * len(runs)
        left = list(range(len(runs)))
        start_ns, end_ns = time.perf_counter_ns(), math.inf
        for round_index in range(_ROUNDS):
            if len(left) == 1 or (round_index > 1 and time.perf_counter_ns() > end_ns):
                break
            # Rounds are interleaved, so that a disturbance hits all alike.
            for index in left:
                times_ns[index] = self._sample(runs[index], times_ns[index])
            limit = (_GIVE_UP_RATIO if round_index > 0 else _GIVE_UP_AT_ONCE_RATIO) * min(times_ns)
            left = [index for index in left if times_ns[index] <= limit]
            if round_index == 0:
                end_ns = start_ns + _BUDGET_NS
                if time.perf_counter_ns() > end_ns:
                    # One more sample, of the best few.
                    left = sorted(left, key=times_ns.__getitem__)[:_NUM_FINALISTS]
                    end_ns = time.perf_counter_ns()
        return min(left, key=times_ns.__getitem__)

    def _sample(self, run: Callable[[int], float], time_ns: float) -> float:
        """The shorter one of `time_ns`, the shortest time so far, and that of some more runs."""
        if time_ns == math.inf:
            time_ns = run(1)
            if time_ns >= _MIN_SAMPLE_NS:
                return time_ns
        repeats = max(1, math.ceil(_MIN_SAMPLE_NS / max(time_ns, 100.0)))
        return min(time_ns, run(repeats) / repeats)

    def _run_tiling(self, way: Way, number: int, tiling: AnyTiling, repeats: int) -> float:
        held = _set_tiling(way, number, tiling)
        time_ns = self._run((Step * 1)(way.steps[number]), repeats)
        del held  # not before the step has run
        return time_ns

    def _run(self, steps: ctypes.Array[Step], repeats: int) -> float:
        return float(self._library.thread_cpu_time(self._backend.index, ctypes.addressof(steps), len(steps), repeats))


def _set_tiling(way: Way, number: int, tiling: AnyTiling | None) -> tuple[NDArray[Any], ...]:
    """Set the tiling of one step; returns the constants that it points to from now on."""
    if isinstance(tiling, Tiling):
        return way.tunables[number].apply(tiling)
    if tiling is not None:
        tiling.set(way.steps[number])
    return ()
