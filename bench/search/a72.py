"""A landscape with real latencies and a stated loss: what JCW's authors measured for ResNet-18 on a Cortex-A72.

Latency: cells of the published table (shared data, jcw-resnet18-latency-ms.npy), over a space like JCW's: 12 widths
from half of the channels on, 20 densities from 0.3 on.

Loss: additive over layers, sum_l s_l * ((width_in * width_out * density) ** -0.5 - 1), with s_l log-normal (sigma 1)
from a fixed seed; 0 for the unpruned network. What a method sees of it has normal noise, with a standard deviation of
1 % of the smallest network's loss, drawn once for each candidate. Fronts are chosen by what was seen and judged by the
truth.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from device_agent.contracts import PruningScheme
from search.algorithms.exact import ExactFront
from search.algorithms.factors import Factor
from search.domain.objective import Metric, Objective
from search.domain.space import SchemeChoice, SearchSpace, Variable, VariableKind
from search.pareto import FloatArray, hypervolume
from search.problem import SearchProblem

OBJECTIVES = (Objective(metric=Metric.LOSS), Objective(metric=Metric.LATENCY_MS))

# The 12 channel groups of ResNet-18 that each convolution of the table reads and writes: first the residual streams
# (0..3), then the blocks' inner widths (4..11); -1 is the image.
_INPUTS = np.array((-1, 0, 4, 0, 5, 0, 6, 0, 1, 7, 1, 8, 1, 2, 9, 2, 10, 2, 3, 11))
_OUTPUTS = np.array((0, 4, 0, 5, 0, 6, 1, 1, 7, 1, 8, 2, 2, 9, 2, 10, 3, 3, 11, 3))
_NUM_GROUPS = 12
_IMAGE_INDEX = 2  # the stem's three input channels are stored at this index
_EIGHTHS, _TENTHS = 8, 10
#: The bounds of JCW's published search: half of the channels, three tenths of the weights.
_MIN_EIGHTHS, _MIN_TENTHS = 4, 3
#: Layers differ in sensitivity by about a factor of e.
_SENSITIVITY_SIGMA = 1.0
_LANDSCAPE_SEED = 20211015
RELATIVE_NOISE = 0.01


def shared_data() -> Path:
    """The folder with the published table."""
    return Path(os.environ.get("KERF_SHARED_DATA", Path(__file__).parents[3] / "shared" / "data"))


class A72Landscape:
    """Space, figures and the exact answer. Everything is deterministic."""

    def __init__(self, folder: Path) -> None:
        path = folder / "jcw-resnet18-latency-ms.npy"
        if not path.is_file():
            sys.exit(f"{path} is missing: set KERF_SHARED_DATA to the folder that has it")
        self._table_ms: FloatArray = np.load(path)
        self._layers = np.arange(len(self._table_ms))
        rng = np.random.default_rng(_LANDSCAPE_SEED)
        sensitivity = np.exp(_SENSITIVITY_SIGMA * rng.standard_normal(len(self._layers)))
        self._sensitivity = sensitivity / len(self._layers)
        widths = tuple(range(_MIN_EIGHTHS, _EIGHTHS + 1))
        densities = tuple(tenths / _TENTHS for tenths in range(_MIN_TENTHS, _TENTHS + 1))
        self.space = SearchSpace(
            variables=(
                *(Variable(kind=VariableKind.CHANNELS, target=f"group{g}", choices=widths) for g in range(_NUM_GROUPS)),
                *(Variable(kind=VariableKind.DENSITY, target=f"conv{i}", choices=densities) for i in self._layers),
            ),
            default_scheme=SchemeChoice(scheme=PruningScheme.GROUP, block_filters=4),
        )
        self.problem = SearchProblem(
            space=self.space,
            objectives=OBJECTIVES,
            known=lambda genomes: {Metric.LATENCY_MS: self.true_figures(genomes)[:, 1]},
            known_metrics=frozenset({Metric.LATENCY_MS}),
        )
        ends = self.true_figures([self.space.smallest, self.space.unpruned])
        #: Where volumes end: the loss of the smallest network and the latency of the unpruned one.
        self.reference_point: FloatArray = np.array([ends[0, 0], ends[1, 1]])
        self._ideal: FloatArray = np.array([ends[1, 0], ends[0, 1]])
        self.noise_std = RELATIVE_NOISE * float(ends[0, 0])

    def true_figures(self, genomes: ArrayLike) -> FloatArray:
        """(loss, latency in ms) of `genomes` (n, v): shape (n, 2)."""
        genes = np.asarray(genomes, dtype=np.int64)
        eighths, tenths = genes[:, :_NUM_GROUPS] + _MIN_EIGHTHS, genes[:, _NUM_GROUPS:] + _MIN_TENTHS
        inputs = np.where(_INPUTS < 0, _IMAGE_INDEX, eighths[:, _INPUTS])
        outputs = eighths[:, _OUTPUTS]
        latency_ms = self._table_ms[self._layers, outputs, inputs, tenths].sum(axis=1)
        return np.column_stack((self._losses(inputs, outputs, tenths).sum(axis=1), latency_ms))

    def seen_figures(self, genomes: ArrayLike) -> FloatArray:
        """The same with noise on the loss; equal genomes get equal noise."""
        figures = self.true_figures(genomes)
        noise = [
            np.random.default_rng([_LANDSCAPE_SEED, *(int(g) for g in genome)]).standard_normal()
            for genome in np.asarray(genomes)
        ]
        figures[:, 0] += self.noise_std * np.array(noise)
        return figures

    def exact_front(self) -> ExactFront:
        """The landscape as sums of tables."""
        losses, latencies = [], []
        widths, tenths = np.arange(_MIN_EIGHTHS, _EIGHTHS + 1), np.arange(_MIN_TENTHS, _TENTHS + 1)
        for layer, source, target in zip(self._layers, _INPUTS, _OUTPUTS, strict=True):
            # One table over (first width, second width, density), the widths in the order of their variables.
            grid = np.meshgrid(widths, widths, tenths, indexing="ij")
            outputs, inputs = (grid[0], grid[1]) if target < source else (grid[1], grid[0])
            variables: tuple[int, ...] = (*sorted((int(source), int(target))), _NUM_GROUPS + int(layer))
            if source < 0:
                outputs, density = np.meshgrid(widths, tenths, indexing="ij")
                inputs, grid = np.full_like(outputs, _IMAGE_INDEX), [outputs, outputs, density]
                variables = variables[1:]
            latencies.append(
                Factor(variables=variables, values=self._table_ms[layer, outputs, inputs, grid[2]].astype(np.float64))
            )
            losses.append(Factor(variables=variables, values=self._loss(int(layer), inputs, outputs, grid[2])))
        return ExactFront(losses, latencies, self.space.num_choices)

    def volume(self, figures: FloatArray) -> float:
        """The hypervolume of `figures` (n, 2), as a part of the rectangle between the ends of the space."""
        return hypervolume((figures - self._ideal) / (self.reference_point - self._ideal), np.ones(2))

    def _losses(self, inputs: np.ndarray, outputs: np.ndarray, tenths: np.ndarray) -> FloatArray:
        return np.stack(
            [self._loss(layer, inputs[:, layer], outputs[:, layer], tenths[:, layer]) for layer in self._layers], axis=1
        )

    def _loss(self, layer: int, inputs: np.ndarray, outputs: np.ndarray, tenths: np.ndarray) -> FloatArray:
        """What a layer loses grows ever faster with what it gives up, and is 0 where it keeps all."""
        width_in = np.where(_INPUTS[layer] < 0, 1.0, inputs / _EIGHTHS)
        kept = width_in * (outputs / _EIGHTHS) * (tenths / _TENTHS)
        loss: FloatArray = self._sensitivity[layer] * (kept**-0.5 - 1.0)
        return loss
