"""Rule-based mapping: scheme and block size of each layer from its type and the latency table alone.

Y. Gong et al.: Automatic Mapping of the Best-Suited DNN Pruning Schemes for Real-Time Mobile Acceleration,
arXiv 2111.11581. inferred: the rules, from secondary descriptions; the paper's own numbers for beta are not public.

1. Depthwise convolutions are not pruned.
2. 3x3 convolutions get patterns on hard data sets and punched blocks on easy ones (`mapping.data`).
3. All other convolutions get punched blocks, fully connected layers rows and columns of blocks.
4. The block is the smallest whose latency is at most (1 + beta) times that of the whole-matrix structured layer at the
   same rate. Smaller blocks lose less, larger ones run faster.
5. Rates come from reweighted training.

Each beta with each rate vector is one network; so a front comes out. Ours, and why:
- `group` and `unstructured` count as punched blocks of N x 1 and 1 x 1, which they are. In fully connected layers
  `group` is block-based pruning of columns alone, and offered beside `block`.
- The structured layer has its outputs narrowed, interpolated between the widths of the space; where its outputs may not
  be narrowed, its inputs. Where neither may, the largest block of the space stands for it.
- Where no block is fast enough the layer itself is structured: its group is narrowed to the rate, its weights stay
  dense. Where that is not possible, it gets the fastest block.
- A layer that is no faster than dense stays dense.
- What is left of the evaluations goes to variations: beta between the smallest and the largest, rates between two
  neighbouring vectors, and some layers a step of density away. So the budget of a comparison is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from device_agent.contracts import ContractError, Op, PruningScheme
from search.algorithms.base import SearcherState
from search.algorithms.history import History, check_told
from search.algorithms.sampling import draw_new, draw_uniform, genome_code
from search.domain.objective import Metric
from search.domain.space import Genome, SchemeChoice
from search.mapping import Layer, RateVector, interpolated
from search.pareto import FloatArray
from search.problem import SearchProblem

_PUNCHED = frozenset({PruningScheme.UNSTRUCTURED, PruningScheme.GROUP, PruningScheme.BLOCK_PUNCHED})
#: Rows and columns of blocks, and columns alone.
_BLOCK_BASED = frozenset({PruningScheme.BLOCK, PruningScheme.GROUP})
#: Draws of variations for each genome that is wanted, and the part of layers that a variation moves.
_VARIATIONS = 20
_MOVED_PART = 0.15


class RuleMappingSearcher:
    """See `Searcher` for the contract. What is told is not learnt from: the rules are all there is."""

    METHOD = "rule_mapping"

    def __init__(self, problem: SearchProblem, *, population: int, seed: int) -> None:
        """Raises `ContractError` where the layers' latencies or the rates are not known."""
        problem.require_known([Metric.LATENCY_MS], self.METHOD)
        if problem.mapping is None or not problem.mapping.rates:
            raise ContractError(
                f"the method {self.METHOD!r} needs the latency table of every layer and pruning rates: use it in a "
                "search on a network"
            )
        self._problem = problem
        self._mapping = problem.mapping
        self._space = problem.space
        self._size = population
        self._seed = seed
        self._num_objectives = len(problem.metrics)
        self._history = History(method=self.METHOD, space=problem.space, population=population, seed=seed)
        self._points = self._swept()

    def ask(self) -> tuple[Genome, ...]:
        rng = np.random.default_rng([self._seed, self._history.generation])
        seen = self._history.seen
        found: dict[str, Genome] = {}
        for genome in itertools.chain(self._points, self._variations(rng)):
            if len(found) == self._size:
                break
            code = genome_code(genome, self._space.num_choices)
            if code not in seen:
                found.setdefault(code, genome)
        drawn = draw_new(
            rng,
            self._space,
            self._size - len(found),
            seen | dict.fromkeys(found),
            lambda: draw_uniform(rng, self._space),
        )
        return (*found.values(), *drawn)

    def tell(self, genomes: Sequence[Genome], objectives: FloatArray, violations: FloatArray) -> None:
        values, _ = check_told(self._problem, genomes, objectives, violations)
        if values.shape[1] != self._num_objectives:
            raise ValueError(f"{values.shape[1]} objectives were told, but {self._num_objectives} before")
        self._history.advance(genomes)

    def state(self) -> SearcherState:
        return self._history.to_json()

    def restore(self, state: SearcherState) -> None:
        self._history.restore(state)

    def mapped(self, densities: Mapping[str, float], beta: float) -> Genome:
        """The genome that the rules give at these densities; layers without one stay dense."""
        genome = list(self._space.unpruned)
        for layer in self._mapping.layers:
            density = densities.get(layer.name, 1.0)
            if density < 1.0 and not layer.is_depthwise:
                self._map(layer, density, beta, genome)
        return tuple(genome)

    def _swept(self) -> tuple[Genome, ...]:
        """The networks of all betas and rates, those within the bounds first."""
        points = list(
            dict.fromkeys(
                self.mapped(rates.densities, beta) for rates in self._mapping.rates for beta in self._mapping.betas
            )
        )
        excess = self._problem.known_violations(np.array(points, dtype=np.int64))
        return tuple(points[i] for i in np.argsort(excess, kind="stable"))

    def _map(self, layer: Layer, density: float, beta: float, genome: list[int]) -> None:
        """Choose for one layer, in place. Latencies are at full widths: what other layers do is not known yet."""
        options = self._options(layer, density)
        structured_ns = self._structured_ns(layer, density)
        limit = (1.0 + beta) * (max(options)[2] if structured_ns is None and options else structured_ns or 0.0)
        dense_ns = layer.latency_ns(self._space.unpruned)
        for _, choice, latency_ns in options:
            if latency_ns <= limit:
                if latency_ns < dense_ns:
                    genome[:] = _with(genome, choice)
                return
        if layer.outputs is not None:
            genome[layer.outputs] = min(genome[layer.outputs], self._width(layer.outputs, density))
        elif options:
            _, choice, latency_ns = min(options, key=lambda option: option[2])
            if latency_ns < dense_ns:
                genome[:] = _with(genome, choice)

    def _options(self, layer: Layer, density: float) -> list[tuple[int, dict[int, int], float]]:
        """Block sizes that the rules offer to a layer, smallest first: (weights in a block, genes, latency in ns)."""
        if layer.density is None:
            return []
        nearest = self._nearest(layer.density, density)
        if layer.scheme is None:
            schemes = [self._space.default_scheme]
        else:
            schemes = [SchemeChoice.parse(str(c)) for c in self._space.variables[layer.scheme].choices]
        options = []
        for index, scheme in enumerate(schemes):
            if not self._is_offered(layer, scheme, schemes):
                continue
            choice = {layer.density: nearest}
            if layer.scheme is not None:
                choice[layer.scheme] = index
            size = scheme.block_filters * scheme.block_channels
            options.append((size, choice, layer.latency_ns(_with(self._space.unpruned, choice))))
        return sorted(options, key=lambda option: (option[0], option[2]))

    def _is_offered(self, layer: Layer, scheme: SchemeChoice, schemes: Sequence[SchemeChoice]) -> bool:
        kernel, kinds = layer.kernel, {s.scheme for s in schemes}
        if kernel.op is Op.FULLY_CONNECTED and kinds & _BLOCK_BASED:
            return scheme.scheme in _BLOCK_BASED
        is_3x3 = (kernel.kernel_h, kernel.kernel_w) == (3, 3)
        if is_3x3 and self._mapping.patterns_on_3x3 and PruningScheme.PATTERN in kinds:
            return scheme.scheme is PruningScheme.PATTERN
        return scheme.scheme in _PUNCHED

    def _structured_ns(self, layer: Layer, density: float) -> float | None:
        """The dense layer's latency with its outputs, or else its inputs, narrowed to `density`; None where the space
        narrows neither."""
        for position, full in ((layer.outputs, layer.kernel.out_channels), (layer.inputs, layer.kernel.in_channels)):
            if position is not None:
                widths = [float(c) for c in self._space.variables[position].choices]
                times = [layer.latency_ns(_with(self._space.unpruned, {position: i})) for i in range(len(widths))]
                return interpolated(widths, times, density * full)
        return None

    def _width(self, position: int, density: float) -> int:
        """The index of the width nearest to `density` of the full one."""
        return self._nearest(position, density * float(self._space.variables[position].choices[-1]))

    def _nearest(self, position: int, value: float) -> int:
        choices = np.array([float(c) for c in self._space.variables[position].choices])
        return int(np.argmin(np.abs(choices - value)))

    def _variations(self, rng: np.random.Generator) -> Iterator[Genome]:
        """Networks between those of the sweep, and near them; those within the bounds first."""
        rates = sorted(self._mapping.rates, key=lambda r: r.target)
        betas = self._mapping.betas
        movable = [layer.density for layer in self._mapping.layers if layer.density is not None]
        beyond = []
        for _ in range(_VARIATIONS * self._size):
            densities = _between(rates, float(rng.uniform(0, len(rates) - 1)))
            genome = list(self.mapped(densities, float(rng.uniform(min(betas), max(betas)))))
            for position in movable:
                if rng.random() < _MOVED_PART:
                    last = len(self._space.variables[position].choices) - 1
                    genome[position] = min(last, max(0, genome[position] + int(rng.choice((-1, 1)))))
            if self._problem.known_violations(np.array([genome], dtype=np.int64))[0] > 0:
                beyond.append(tuple(genome))
            else:
                yield tuple(genome)
        yield from beyond


def _with(genome: Sequence[int], choice: Mapping[int, int]) -> Genome:
    changed = list(genome)
    for position, index in choice.items():
        changed[position] = index
    return tuple(changed)


def _between(rates: Sequence[RateVector], place: float) -> dict[str, float]:
    """Densities between two neighbouring vectors of ascending targets."""
    low = min(int(place), max(0, len(rates) - 2))
    high, part = min(low + 1, len(rates) - 1), place - low
    first, second = rates[low].densities, rates[high].densities
    return {name: (1 - part) * value + part * second.get(name, 1.0) for name, value in first.items()}
