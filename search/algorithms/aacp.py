"""AACP's improved differential evolution: the best accuracy under hard bounds on several resources at once.

L. Lin, S. Chen, Y. Yang, Z. Guo: AACP: Model Compression by Accurate and Automatic Channel Pruning, arXiv 2102.00390;
the released code is the specification. Trial vectors are best + F * (g2 - g3) (DE/best/1), crossed with their parent at
rate CR; a better one replaces it; who was not improved for `MAX_STAY` generations is replaced by a fresh one. Every
vector is repaired to meet all bounds.

Deviations from the released code, and why:
- The best of the first generation is the best, not its first member.
- The best is that of the members. The released code keeps a copy of the best ever told as the base of all mutants, also
  after its member was replaced: searches then stayed around it (the A72 landscape within 35 % of the latencies' range,
  1,200 evaluations, 8 seeds: a loss of 0.73 instead of 0.67).
- A generation is evaluated at once, so its members do not see each other's successes; a replacement for one that is too
  old is the trial of that generation instead of an additional evaluation.
- A trial is repaired once, after crossover; the released code repairs the mutant as well, of which crossover then
  drops a part.
- The steps are those between the choices of a space, which need not be even. On even ones, rounding to choices is the
  released code's rounding to multiples of the step.
- After cutting, what fits is given back (`repair`): the released code only ever takes away.
- Vectors that are known are not evaluated again; the trial moves on by one step.
- Bounds may be on any figure that a genome decides, measured latency among them. The released code bounds MACs and the
  total number of channels.
- Without bounds, the population is split into islands with latency bounds evenly over the range, so that a front comes
  out. The released code finds one network for one budget.
- A success on one island is offered to the others.
- Schemes, which have no order, are taken from the best or from another member.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from device_agent.contracts import ContractError
from search.algorithms.base import SearcherState
from search.algorithms.history import History, check_survivors, check_told
from search.algorithms.repair import Repair
from search.algorithms.sampling import draw_new, draw_uniform, genome_code
from search.domain.objective import Metric
from search.domain.space import Genome, VariableKind
from search.json_numbers import finite_or_none, number_or
from search.pareto import FloatArray, IntArray
from search.problem import SearchProblem

#: Scale of the difference (the released code's F) and rate of the crossover (CR).
_SCALE = 0.5
_CROSSOVER_RATE = 0.8
#: Generations without success after which a member is replaced.
MAX_STAY = 4
#: Members of an island, where there are no bounds. The released code has 10 for its one budget.
_ISLAND_SIZE = 4
#: Attempts to change a known trial into a new one, a step of one gene each.
_ATTEMPTS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    """An individual: its genome, its violation of what was only known afterwards, what is minimised, and for how many
    generations it was not improved. An undefined value is infinite.
    """

    genome: Genome
    violation: float
    value: float
    stay: int = 0

    @property
    def rank(self) -> tuple[float, float]:
        """Smaller is better: feasible ones first."""
        return (self.violation, self.value)


@dataclass(slots=True, kw_only=True)
class _Island:
    """A population of up to `size` members, at a latency of at most `max_latency_ms`."""

    size: int
    max_latency_ms: float
    members: list[_Member] = field(default_factory=list)

    @property
    def best(self) -> _Member:
        return min(self.members, key=lambda member: member.rank)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trial:
    """A genome to evaluate, for a place on an island. `replaces` says that the member there is too old to stay."""

    genome: Genome
    island: int
    place: int
    replaces: bool


class AacpSearcher:
    """See `Searcher` for the contract. The first objective that is not known in advance is minimised."""

    METHOD = "aacp"

    def __init__(self, problem: SearchProblem, *, population: int, seed: int) -> None:
        """Raises `ContractError` where latency is not known in advance, `InfeasibleBudget` where no genome fits."""
        self._space = problem.space
        self._counts = problem.space.num_choices
        self._num_choices = np.array(problem.space.num_choices, dtype=np.int64)
        self._ordered = np.array([v.kind is not VariableKind.SCHEME for v in problem.space.variables])
        self._history = History(method=self.METHOD, space=problem.space, population=population, seed=seed)
        self._seed = seed
        self._problem = problem
        unknown = [i for i, metric in enumerate(problem.metrics) if metric not in problem.known_metrics]
        self._column = unknown[0] if unknown else 0
        self._islands = _islands(problem, population)
        bounds = np.array([island.max_latency_ms for island in self._islands])
        self._repair = Repair(problem, Metric.LATENCY_MS, bounds)
        #: The trials of this generation, once they were asked for: making them takes most of a generation's time.
        self._trials: list[_Trial] | None = None

    def ask(self) -> tuple[Genome, ...]:
        return tuple(trial.genome for trial in self._current_trials())

    def tell(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        values, excess = check_told(self._problem, genomes, objectives, violations)
        trials = {trial.genome: trial for trial in self._current_trials()}
        rows = np.array(genomes, dtype=np.int64).reshape(len(genomes), len(self._num_choices))
        fits = [self._repair.is_feasible(rows, np.full(len(rows), i.max_latency_ms)) for i in self._islands]
        for index, (genome, row, violation) in enumerate(zip(genomes, values, excess, strict=True)):
            told = self._member(genome, row, violation)
            trial = trials.get(told.genome)
            if trial is not None:
                _select(self._islands[trial.island], trial, told)
            for number, island in enumerate(self._islands):
                if (trial is None or trial.island != number) and fits[number][index]:
                    _welcome(island, told)
        self._history.advance(genomes)
        self._trials = None

    def survivors(self) -> tuple[Genome, ...]:
        return tuple(dict.fromkeys(member.genome for island in self._islands for member in island.members))

    def rescore(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        values, excess = check_told(self._problem, genomes, objectives, violations)
        rows = check_survivors(genomes, self.survivors())
        # Made from the figures that `ask` knew.
        self._current_trials()
        for island in self._islands:
            for place, member in enumerate(island.members):
                row = rows[member.genome]
                island.members[place] = replace(self._member(member.genome, values[row], excess[row]), stay=member.stay)

    def state(self) -> SearcherState:
        return {
            **self._history.to_json(),
            "islands": [
                [
                    {
                        "genome": list(m.genome),
                        "violation": finite_or_none(m.violation),
                        "value": finite_or_none(m.value),
                        "stay": m.stay,
                    }
                    for m in island.members
                ]
                for island in self._islands
            ],
        }

    def restore(self, state: SearcherState) -> None:
        restored = _members_of(state.get("islands", [[]] * len(self._islands)), len(self._islands))
        self._history.restore(state)
        for island, members in zip(self._islands, restored, strict=True):
            island.members = members
        self._trials = None

    def _member(self, genome: Genome, row: FloatArray, violation: float) -> _Member:
        """A new member of what was told; the figures of undefined ones are infinite."""
        is_defined = bool(np.isfinite(row).all())
        return _Member(
            genome=tuple(int(g) for g in genome),
            violation=float(violation) if is_defined else np.inf,
            value=float(row[self._column]) if is_defined else np.inf,
        )

    def _current_trials(self) -> list[_Trial]:
        if self._trials is None:
            self._trials = self._made_trials()
        return self._trials

    def _made_trials(self) -> list[_Trial]:
        """The next generation: distinct new genomes, each for a place. The same until the next `tell`."""
        rng = np.random.default_rng([self._seed, self._history.generation])
        drawn = [self._vectors(rng, island) for island in self._islands]
        places = [(i, place) for i, island in enumerate(self._islands) for place in range(island.size)]
        bounds = np.array([self._islands[i].max_latency_ms for i, _ in places])
        replaces = [is_fresh for _, fresh in drawn for is_fresh in fresh]
        vectors = self._repair(rng, np.concatenate([vectors for vectors, _ in drawn]), bounds)
        found: dict[str, _Trial] = {}

        def take(index: int, genome: Genome) -> bool:
            """Whether the genome is new: then it is the trial of that place."""
            code = genome_code(genome, self._counts)
            if code in self._history.seen or code in found:
                return False
            number, place = places[index]
            found[code] = _Trial(genome=genome, island=number, place=place, replaces=replaces[index])
            return True

        waiting = np.arange(len(places))
        for attempt in range(_ATTEMPTS):
            if attempt:
                # Repaired together: one by one, they would take most of the search's time.
                vectors[waiting] = self._repair(rng, self._neighbours(rng, vectors[waiting]), bounds[waiting])
            waiting = np.array([i for i in waiting if not take(int(i), _genome(vectors[i]))], dtype=np.int64)
            if not len(waiting):
                break
        for index in waiting:
            known = self._history.seen | dict.fromkeys(found)
            drawn_genomes = draw_new(rng, self._space, 1, known, lambda: draw_uniform(rng, self._space))
            for genome in drawn_genomes:
                if self._repair.is_feasible(np.array([genome]), bounds[index : index + 1])[0]:
                    take(int(index), genome)
        return list(found.values())

    def _neighbours(self, rng: np.random.Generator, vectors: IntArray) -> IntArray:
        """`vectors` (n, v) with one gene of each drawn anew."""
        moved = vectors.copy()
        genes = rng.integers(0, vectors.shape[1], size=len(vectors))
        moved[np.arange(len(vectors)), genes] = rng.integers(0, self._num_choices[genes])
        return moved

    def _vectors(self, rng: np.random.Generator, island: _Island) -> tuple[IntArray, list[bool]]:
        """A vector for each place of the island, not repaired yet, and whether it is a fresh one."""
        fresh = rng.integers(0, self._num_choices, size=(island.size, len(self._num_choices)))
        if not island.members:
            return fresh, [True] * island.size
        members = np.array([m.genome for m in island.members], dtype=np.int64)
        best = np.array(island.best.genome, dtype=np.int64)
        replaces = [place >= len(members) or island.members[place].stay >= MAX_STAY for place in range(island.size)]
        for place in (p for p, is_fresh in enumerate(replaces) if not is_fresh):
            fresh[place] = self._crossed(rng, members, best, place)
        return fresh, replaces

    def _crossed(self, rng: np.random.Generator, members: IntArray, best: IntArray, place: int) -> IntArray:
        """DE/best/1 with binomial crossover, best + F (g2 - g3): at least one gene is the mutant's.

        g2 and g3 are two different members beside this one (released code, run_one). Half steps go to the even one of
        the choices, counted from 1, as Python's round of multiples of the step does there.
        """
        others = np.delete(np.arange(len(members)), place)
        second, third = members[rng.choice(others, size=2, replace=False)] if len(others) > 1 else members[[place] * 2]
        moved = np.rint(1 + best + _SCALE * (second - third)).astype(np.int64) - 1
        either = np.where(rng.random(len(best)) < 0.5, best, second)
        mutant = np.clip(np.where(self._ordered, moved, either), 0, self._num_choices - 1)
        taken = rng.random(len(best)) <= _CROSSOVER_RATE
        taken[rng.integers(0, len(best))] = True
        crossed: IntArray = np.where(taken, mutant, members[place])
        return crossed


def _genome(vector: IntArray) -> Genome:
    return tuple(int(g) for g in vector)


def _welcome(island: _Island, member: _Member) -> None:
    """A genome that was not asked for here joins, in place of the worst, if it beats the best."""
    if len(island.members) < island.size:
        island.members.append(member)
    elif member.rank < island.best.rank:
        worst = max(range(island.size), key=lambda i: island.members[i].rank)
        island.members[worst] = member


def _select(island: _Island, trial: _Trial, told: _Member) -> None:
    """Strictly better trials, and those for a place that is free, take the place; otherwise the member grows older."""
    if trial.place >= len(island.members):
        island.members.append(told)
        return
    member = island.members[trial.place]
    if trial.replaces or told.rank < member.rank:
        island.members[trial.place] = told
    else:
        island.members[trial.place] = replace(member, stay=member.stay + 1)


def _islands(problem: SearchProblem, population: int) -> list[_Island]:
    """One island under the given constraints, or, without any, several with bounds evenly over the latencies."""
    if problem.known_constraints:
        return [_Island(size=population, max_latency_ms=np.inf)]
    known = problem.require_known([Metric.LATENCY_MS], AacpSearcher.METHOD)
    ends = known(np.array([problem.space.smallest, problem.space.unpruned]))[Metric.LATENCY_MS]
    count = max(1, population // _ISLAND_SIZE)
    # The last one has no bound.
    bounds = [*np.linspace(ends.min(), ends.max(), count + 1)[1:-1], np.inf]
    sizes = np.diff(np.linspace(0, population, count + 1).round().astype(int))
    return [_Island(size=int(s), max_latency_ms=float(b)) for s, b in zip(sizes, bounds, strict=True)]


def _members_of(islands: Any, count: int) -> list[list[_Member]]:
    try:
        if len(islands) != count:
            raise ValueError(f"{len(islands)} islands instead of {count}")
        return [
            [
                _Member(
                    genome=tuple(int(g) for g in m["genome"]),
                    violation=number_or(m["violation"], np.inf),
                    value=number_or(m["value"], np.inf),
                    stay=int(m["stay"]),
                )
                for m in members
            ]
            for members in islands
        ]
    except (KeyError, TypeError, ValueError) as error:
        raise ContractError(f"the stored state of the searcher is damaged: {error!r}") from None
