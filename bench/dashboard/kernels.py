"""Kernels as searches over many networks would ask for them: shapes of known networks, each at several densities."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from device_agent.contracts import Activation, KernelSpec, Op, PruningScheme, WeightPruning
from search.lowering import KEEPS_CHANNELS

#: Operators and windows: op, kernel, stride.
_WINDOWS = (
    (Op.CONV2D, 3, 1),
    (Op.CONV2D, 1, 1),
    (Op.CONV2D, 3, 2),
    (Op.CONV2D, 5, 1),
    (Op.DEPTHWISE_CONV2D, 3, 1),
    (Op.DEPTHWISE_CONV2D, 3, 2),
    (Op.FULLY_CONNECTED, 1, 1),
)
_EXTENTS = (4, 7, 8, 14, 16, 28, 32, 56, 112)
_CHANNELS = (*range(4, 68, 4), *range(72, 136, 8), *range(144, 272, 16), 320, 384, 448, 512)
_DENSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8)


def _prunings(window: int, op: Op) -> list[WeightPruning]:
    found = [WeightPruning()]
    found += [WeightPruning(scheme=PruningScheme.GROUP, density=d, block_filters=4) for d in _DENSITIES]
    found += [WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=d) for d in _DENSITIES]
    if (op, window) == (Op.CONV2D, 3):
        found += [
            WeightPruning(scheme=PruningScheme.PATTERN, density=d, block_filters=4, pattern_entries=4)
            for d in (0.1, 0.2, 0.3, 4 / 9)
        ]
    return found


def _shapes() -> list[KernelSpec]:
    found = []
    for (op, window, stride), extent in itertools.product(_WINDOWS, _EXTENTS):
        if op is Op.FULLY_CONNECTED and extent != _EXTENTS[0]:
            continue
        size = 1 if op is Op.FULLY_CONNECTED else extent
        if window > size + 2 * (window // 2) or stride > size:
            continue
        shape = KernelSpec(
            op=op,
            in_channels=4,
            out_channels=4,
            input_h=size,
            input_w=size,
            kernel_h=window,
            kernel_w=window,
            stride=stride,
            padding=window // 2,
            activation=Activation.RELU,
        )
        for inputs, outputs in itertools.product(_CHANNELS, _CHANNELS):
            if op not in KEEPS_CHANNELS or inputs == outputs:
                found.append(replace(shape, in_channels=inputs, out_channels=outputs))
    return found


def kernels(count: int, *, rng: np.random.Generator) -> Iterator[KernelSpec]:
    """`count` distinct kernels: shapes drawn by chance, each with all of its densities. Raises `ValueError` for more
    than there are.
    """
    shapes = _shapes()
    drawn = itertools.chain.from_iterable(
        (replace(shapes[i], pruning=pruning) for pruning in _prunings(shapes[i].kernel_h, shapes[i].op))
        for i in rng.permutation(len(shapes)).tolist()
    )
    made = 0
    for kernel in itertools.islice(drawn, count):
        made += 1
        yield kernel
    if made < count:
        raise ValueError(f"there are only {made} kernels to draw from, not {count}")
