"""Search-based mapping: a policy chooses scheme, block size and density layer by layer, taught by REINFORCE.

Y. Gong et al.: Automatic Mapping of the Best-Suited DNN Pruning Schemes for Real-Time Mobile Acceleration,
arXiv 2111.11581, has a search-based mapping whose details are not public. inferred: the episode, its state and the
reward R = accuracy - lambda * max(0, T / T* - 1), with a moving average for a baseline and a bonus for entropy.

Ours, and why:
- The front is asked for, not one network: each episode has a latency target T*, which is part of its state.
- "Accuracy" is the first objective that is not known beforehand, negated, in units of what was seen of it so far.
- Evaluations are few and latencies free. So between generations the policy practises on episodes whose latency is known
  and whose loss is guessed (`surrogate`); each evaluated genome teaches it once more with its true reward.
- Of many episodes, those on the front of guessed loss and known latency are evaluated; a quarter comes from the policy
  as it is, so that a wrong guess cannot lead astray.
- Excess over bounds costs as excess over the target does; bounds that are not known beforehand are guessed as well.
- The first generation is spread over the range of sizes (`sampling.initial_genomes`), and so is the untrained policy.
- What has no layer, like a pruning group's width, is a step of its own in the order of the space. "Whole channels" of a
  layer is thus its group narrowed, and its weights dense.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from device_agent.contracts import ContractError
from search.algorithms.assistance import spread_over_fronts
from search.algorithms.base import SearcherState
from search.algorithms.history import History, check_told
from search.algorithms.policy_network import Episodes, PolicyNetwork
from search.algorithms.policy_steps import actions_of, features_of, genomes_of, padded, steps_of
from search.algorithms.repair import Repair
from search.algorithms.sampling import draw_at_level, draw_new, genome_code, initial_genomes
from search.algorithms.surrogate import AdditiveSurrogate
from search.algorithms.told import MIN_TOLD, ToldFigures
from search.domain.objective import Metric
from search.domain.space import Genome
from search.pareto import FloatArray, IntArray
from search.problem import SearchProblem

#: The weight of relative excess over the latency target in the reward (lambda), in units of the spread of losses.
EXCESS_WEIGHT = 2.0
#: Latency targets, evenly over the range of latencies.
_NUM_TARGETS = 8
_ENTROPY_BONUS = 0.02
_BASELINE_MOMENTUM = 0.8
#: Guessed episodes between two generations: updates, and episodes of each target in an update.
_INNER_UPDATES = 8
_EPISODES_PER_TARGET = 8
#: Episodes that are looked at for each genome that is evaluated, and the part of a generation that comes from them.
_LOOKED_AT = 16
_GUESSED_PART = 0.75
#: Streams of random numbers of one generation.
_ASKING, _PRACTISING, _FIRST_WEIGHTS, _CUTTING = 0, 1, 2, 3
#: Networks that tell what the bounds leave.
_CUT_NETWORKS = 64


class PolicyGradientSearcher:
    """See `Searcher` for the contract."""

    METHOD = "policy_gradient"

    def __init__(self, problem: SearchProblem, *, population: int, seed: int) -> None:
        """Raises `ContractError` where latency is not known in advance, or no objective has to be evaluated."""
        self._latency = problem.column(Metric.LATENCY_MS, self.METHOD, "is rewarded for accuracy within a latency")
        self._known = problem.require_known([Metric.LATENCY_MS], self.METHOD)
        unknown = [i for i, metric in enumerate(problem.metrics) if metric not in problem.known_metrics]
        if not unknown:
            raise ContractError(
                f"the method {self.METHOD!r} needs an objective that must be evaluated, such as loss, but "
                f"{', '.join(problem.metrics)} are all known beforehand"
            )
        self._problem = problem
        self._space = problem.space
        self._num_choices = problem.space.num_choices
        self._size = population
        self._seed = seed
        self._rewarded = unknown[0]
        self._history = History(method=self.METHOD, space=problem.space, population=population, seed=seed)
        self._steps = steps_of(problem.space)
        places, allowed = padded(self._steps)
        self._policy = PolicyNetwork(
            features_of(self._steps, problem.mapping), places, allowed, np.random.default_rng([seed, 0, _FIRST_WEIGHTS])
        )
        ends = self._known(np.array([problem.space.smallest, problem.space.unpruned]))[Metric.LATENCY_MS]
        self._fastest, self._slowest = float(ends.min()), float(ends.max())
        #: No network within the bounds is slower, or hardly.
        self.highest_target_ms = max(self._fastest, min(self._slowest, _highest_within_bounds(problem, seed)))
        self._target_ms = np.linspace(self._fastest, self.highest_target_ms, _NUM_TARGETS + 1)[1:]
        self._baseline = np.zeros(_NUM_TARGETS)
        #: Objectives and violation of every genome that was evaluated.
        self._told = ToldFigures(problem.space.num_choices, len(problem.metrics) + 1)
        self._asked: tuple[Genome, ...] | None = None
        #: The guess from all that was told, once it was made.
        self._guess: _Guess | None = None

    def ask(self) -> tuple[Genome, ...]:
        if self._asked is None:
            self._asked = self._made()
        return self._asked

    def tell(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        values, excess = check_told(self._problem, genomes, objectives, violations)
        rows = np.column_stack((values, excess))
        defined = np.isfinite(rows).all(axis=1)
        chosen = np.array(genomes, dtype=np.int64).reshape(len(genomes), len(self._num_choices))[defined]
        self._told.learn(chosen, rows[defined])
        self._guess = None
        if len(self._told) >= MIN_TOLD:
            self._guess = _Guess(self._problem, self._rewarded, self._told)
            self._learn(chosen, rows[defined], self._guess)
            self._practise(self._guess)
        self._history.advance(genomes)
        self._asked = None

    def state(self) -> SearcherState:
        return {
            **self._history.to_json(),
            "policy": self._policy.to_json(),
            "baseline": self._baseline.tolist(),
            "told": self._told.to_json(),
        }

    def restore(self, state: SearcherState) -> None:
        self._history.restore(state)
        try:
            self._told.restore(state["told"])
            baseline = np.array(state["baseline"], dtype=np.float64).reshape(_NUM_TARGETS)
            self._policy.restore(state["policy"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ContractError(f"the stored state of the searcher is damaged: {error!r}") from None
        self._baseline = baseline
        self._asked = self._guess = None

    def _made(self) -> tuple[Genome, ...]:
        """The next generation: distinct new genomes. The same until the next `tell`."""
        rng = np.random.default_rng([self._seed, self._history.generation, _ASKING])
        seen = self._history.seen
        if not seen:
            return initial_genomes(rng, self._space, self._size)
        found: dict[str, Genome] = {}
        if len(self._told) >= MIN_TOLD:
            pool = self._new(self._episode_genomes(rng, _LOOKED_AT * self._size), found)
            if len(pool):
                self._guess = self._guess or _Guess(self._problem, self._rewarded, self._told)
                best = spread_over_fronts(*self._guess.judged(pool), round(_GUESSED_PART * self._size))
                self._add(found, pool[best])
        self._add(found, self._new(self._episode_genomes(rng, 4 * self._size), found))
        drawn = draw_new(
            rng,
            self._space,
            self._size - len(found),
            seen | dict.fromkeys(found),
            lambda: draw_at_level(rng, self._space, float(rng.random())),
        )
        return (*found.values(), *drawn)

    def _episode_genomes(self, rng: np.random.Generator, count: int) -> IntArray:
        """Genomes (count, v) of the policy, for targets drawn from their range."""
        targets = rng.uniform(self._fastest, self._target_ms[-1], count)
        walks = self._policy.sample(rng, self._places_of(targets)).actions
        return genomes_of(self._steps, walks, len(self._num_choices))

    def _new(self, genomes: IntArray, found: dict[str, Genome]) -> IntArray:
        """The distinct ones of `genomes` that were neither told nor found yet, in their order."""
        codes: dict[str, int] = {}
        for row, genome in enumerate(genomes.tolist()):
            code = genome_code(genome, self._num_choices)
            if code not in self._history.seen and code not in found:
                codes.setdefault(code, row)
        return genomes[list(codes.values())]

    def _add(self, found: dict[str, Genome], genomes: IntArray) -> None:
        for row in genomes[: max(0, self._size - len(found))]:
            genome = tuple(int(g) for g in row)
            found[genome_code(genome, self._num_choices)] = genome

    def _learn(self, genomes: IntArray, rows: FloatArray, guess: _Guess) -> None:
        """From true losses: every genome as an episode of the smallest target that it meets."""
        walks, possible = actions_of(self._steps, genomes)
        if not possible.any():
            return
        walks, genomes, rows = walks[possible], genomes[possible], rows[possible]
        latency_ms = self._known(genomes)[Metric.LATENCY_MS]
        targets = np.minimum(np.searchsorted(self._target_ms, latency_ms), _NUM_TARGETS - 1)
        self._reinforce(walks, targets, self._rewards(rows[:, self._rewarded], latency_ms, rows[:, -1], targets, guess))

    def _practise(self, guess: _Guess) -> None:
        """From guessed losses."""
        rng = np.random.default_rng([self._seed, self._history.generation, _PRACTISING])
        targets = np.repeat(np.arange(_NUM_TARGETS), _EPISODES_PER_TARGET)
        for _ in range(_INNER_UPDATES):
            walks = self._policy.sample(rng, self._places_of(self._target_ms[targets])).actions
            genomes = genomes_of(self._steps, walks, len(self._num_choices))
            figures, excess = guess.judged(genomes)
            rewards = self._rewards(figures[:, self._rewarded], figures[:, self._latency], excess, targets, guess)
            self._reinforce(walks, targets, rewards)

    def _rewards(
        self, losses: FloatArray, latency_ms: FloatArray, excess: FloatArray, targets: IntArray, guess: _Guess
    ) -> FloatArray:
        """R = accuracy - lambda * max(0, T / T* - 1), and the excess over bounds like that over the target."""
        late = np.maximum(0.0, latency_ms / self._target_ms[targets] - 1.0)
        return -guess.in_spreads(losses) - EXCESS_WEIGHT * (late + excess)

    def _reinforce(self, walks: IntArray, targets: IntArray, rewards: FloatArray) -> None:
        """One step uphill. Rewards are compared with a moving average for each target, in units of their spread."""
        advantages = rewards - self._baseline[targets]
        spread = float(advantages.std())
        episodes = Episodes(actions=walks, targets=self._places_of(self._target_ms[targets]))
        scaled = advantages / spread if spread > 0 else np.zeros_like(advantages)
        self._policy.ascend(self._policy.gradient(episodes, scaled, _ENTROPY_BONUS))
        for target in np.unique(targets):
            mean = float(rewards[targets == target].mean())
            self._baseline[target] += (1 - _BASELINE_MOMENTUM) * (mean - self._baseline[target])

    def _places_of(self, latency_ms: FloatArray) -> FloatArray:
        """Latencies as parts of the space's range."""
        return (latency_ms - self._fastest) / max(self._slowest - self._fastest, 1e-12)


def _highest_within_bounds(problem: SearchProblem, seed: int) -> float:
    """The largest latency in ms that the bounds leave; infinite without any.

    Bounds on other figures, such as the latency on one of several devices, tell it only through networks that use them
    up: unpruned ones, cut until they fit.
    """
    own = [c.max for c in problem.constraints if c.metric is Metric.LATENCY_MS and c.device is None]
    highest = min(own, default=math.inf)
    if len(own) < len(problem.known_constraints):
        assert problem.known is not None
        free = np.full(_CUT_NETWORKS, math.inf)
        unpruned = np.repeat(np.array([problem.space.unpruned], dtype=np.int64), _CUT_NETWORKS, axis=0)
        rng = np.random.default_rng([seed, 0, _CUTTING])
        cut = Repair(problem, Metric.LATENCY_MS, free)(rng, unpruned, free)
        highest = min(highest, float(problem.known(cut)[Metric.LATENCY_MS].max()))
    return highest


class _Guess:
    """Guessed figures of genomes from all that was told."""

    def __init__(self, problem: SearchProblem, rewarded: int, told: ToldFigures) -> None:
        self._problem = problem
        genomes, rows = told.genomes, told.rows
        self._guesses: dict[int, AdditiveSurrogate] = {}
        columns = [i for i, metric in enumerate(problem.metrics) if metric not in problem.known_metrics]
        # The last column is the violation. What the known bounds alone explain needs no guess.
        hidden = rows[:, -1] - problem.known_violations(genomes)
        if (np.abs(hidden) > 1e-9).any():
            columns.append(rows.shape[1] - 1)
        for column in columns:
            self._guesses[column] = AdditiveSurrogate(problem.space)
            self._guesses[column].fit(genomes, hidden if column == rows.shape[1] - 1 else rows[:, column])
        losses = rows[:, rewarded]
        self._best = float(losses.min())
        # The lower half: networks near chance would stretch the unit until the rest looks alike.
        self._spread = float(np.median(losses) - self._best)

    def in_spreads(self, losses: FloatArray) -> FloatArray:
        """How far `losses` are above the best, in units of the median's distance from it."""
        return (losses - self._best) / (self._spread if self._spread > 0 else 1.0)

    def judged(self, genomes: IntArray) -> tuple[FloatArray, FloatArray]:
        """The objectives (n, m) of `genomes`, known or guessed, and their violation (n,)."""
        assert self._problem.known is not None
        known = self._problem.known(genomes)
        figures = np.column_stack(
            [
                self._guesses[column].predict(genomes) if column in self._guesses else known[metric]
                for column, metric in enumerate(self._problem.metrics)
            ]
        )
        excess = self._problem.known_violations(genomes)
        if len(self._problem.metrics) in self._guesses:
            excess = excess + np.maximum(0.0, self._guesses[len(self._problem.metrics)].predict(genomes))
        return figures, excess
