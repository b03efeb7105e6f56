"""What pruning gains, from measured figures."""

from __future__ import annotations

import pytest

from device_agent.contracts import DENSE, KernelSpec, Op, PruningScheme, WeightPruning
from search.latency.comparison import Figure
from search.latency.profit import profits


def kernel(density: float | None, channels: int = 16) -> KernelSpec:
    pruning = DENSE
    if density is not None:
        pruning = WeightPruning(scheme=PruningScheme.GROUP, density=density, block_filters=4)
    return KernelSpec(
        op=Op.CONV2D,
        in_channels=channels,
        out_channels=16,
        input_h=8,
        input_w=8,
        kernel_h=3,
        kernel_w=3,
        pruning=pruning,
    )


def figure(median: float, width: float = 0.02) -> Figure:
    return Figure(median=median, ci95=(median * (1 - width), median * (1 + width)))


def test_a_pruned_kernel_is_compared_with_the_dense_one_of_its_shape() -> None:
    found = profits(
        {
            kernel(0.9): figure(120.0),
            kernel(0.5): figure(99.0),
            kernel(0.1): figure(25.0),
            kernel(None): figure(100.0),
            kernel(None, 32): figure(1.0),
        }
    )
    assert [item.kernel.pruning.density for item in found] == [0.1, 0.5, 0.9]
    assert [item.speed_up.ratio for item in found if item.speed_up] == pytest.approx([4.0, 100 / 99, 1 / 1.2])
    assert [item.pays for item in found] == [True, None, False]
    low, high = found[0].speed_up.ci95  # type: ignore[union-attr, misc]
    assert low < 4.0 < high


def test_without_a_dense_kernel_or_an_interval_nothing_is_claimed() -> None:
    (alone,) = profits({kernel(0.5): figure(10.0), kernel(None, 32): figure(100.0)})
    assert (alone.dense, alone.speed_up, alone.pays) == (None, None, None)
    (bare,) = profits({kernel(0.5): Figure(median=10.0), kernel(None): figure(100.0)})
    assert bare.speed_up is not None
    assert bare.speed_up.ratio == pytest.approx(10.0)
    assert bare.pays is None
