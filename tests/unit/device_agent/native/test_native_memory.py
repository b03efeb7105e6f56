"""What preparing a network holds at once, counted in arrays and not seen from outside (bench/memory.py does that)."""

from __future__ import annotations

import gc
import mmap
import tracemalloc
import weakref
from pathlib import Path

import numpy as np
import pytest

from device_agent.contracts import DENSE, NETWORK_INPUT, NetworkPlan, PlanOp, PruningScheme, WeightPruning
from device_agent.formats.packed import open_packed, write_packed
from device_agent.native import memory
from device_agent.native.executor import NativeNetwork
from device_agent.native.memory import aligned_array, with_spare
from device_agent.native.tuner import _Tuner
from device_agent.synthesis import synthesize_weights
from tests.unit.device_agent.native.native_samples import conv


class Pages:
    """Counts the bytes of arrays that have pages of their own."""

    def __init__(self) -> None:
        self.alive = self.most_alive = 0

    def mmap(self, fd: int, count: int) -> mmap.mmap:
        pages = mmap.mmap(fd, count)
        self._add(count)
        weakref.finalize(pages, self._add, -count)
        return pages

    def _add(self, count: int) -> None:
        self.alive += count
        self.most_alive = max(self.most_alive, self.alive)


@pytest.fixture
def pages(monkeypatch: pytest.MonkeyPatch) -> Pages:
    counted = Pages()
    monkeypatch.setattr(memory, "mmap", counted)
    return counted


def test_large_arrays_are_gone_when_they_are_freed(pages: Pages) -> None:
    small, large = aligned_array((100,), np.float32), aligned_array((300, 500), np.float32)
    assert small.ctypes.data % 64 == large.ctypes.data % 64 == 0
    assert pages.alive >= large.nbytes
    whole = with_spare(large)
    large[:] = 1
    assert whole.size == large.size + 16
    assert whole.sum() == large.size
    del large
    assert pages.alive
    del whole
    assert not pages.alive


@pytest.mark.parametrize("pruning", [DENSE, WeightPruning(scheme=PruningScheme.GROUP, density=0.4, block_filters=4)])
def test_preparing_holds_little_more_than_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pages: Pages, pruning: WeightPruning
) -> None:
    """A second way of one layer: neither the file, nor dense weights, nor the ways of other layers."""
    channels = 160
    ops: list[PlanOp] = []
    for extent in range(40, 12, -2):
        # Every layer has a shape of its own, and is tuned.
        kernel = conv(channels, extent, padding=0, pruning=pruning, seed=extent)
        ops.append(PlanOp(name=f"op{extent}", kernel=kernel, inputs=(ops[-1].name if ops else NETWORK_INPUT,)))
    plan = NetworkPlan(name="layers", input_shape=(channels, 40, 40), ops=tuple(ops))
    path = tmp_path / "network"
    tensors = {f"{op.name}.{key}": value for op in ops for key, value in synthesize_weights(op.kernel).items()}
    path.write_bytes(write_packed(plan, tensors))
    del tensors
    # The way that is tried last is the best, so that all are made and tuned.
    times_ns = iter(range(10_000_000, 0, -1))
    monkeypatch.setattr(_Tuner, "_run", lambda tuner, steps, repeats: repeats * next(times_ns))
    gc.collect()
    tracemalloc.start()
    try:
        network = NativeNetwork(*open_packed(path))
        heap_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    layer_bytes = 4 * channels * channels * 9
    other_way_bytes = layer_bytes * 36 // 9
    # The plan, the steps and slices of weights, but not all weights: neither packed nor dense.
    rest_bytes = 3 * layer_bytes
    assert path.stat().st_size > rest_bytes
    assert pages.most_alive + heap_bytes <= network.memory_bytes + other_way_bytes + rest_bytes
