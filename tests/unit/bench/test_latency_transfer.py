"""A new device from the model of another: stored devices, and figures of made-up ones."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.latency import devices, transfer
from bench.latency.attempts import done_keys
from bench.latency.devices import DEVICES, NUM_KERNELS, measure_devices, read_device
from bench.latency.imported_a72 import dense_layer
from bench.latency.stored import STORED, read_dataset
from device_agent.contracts import KernelSpec, MeasuringSetup, Op, kernel_id
from device_agent.measuring.task import Surroundings
from search.latency.families import without_seed
from search.latency.table import KernelLatency
from tests.unit.bench.test_latency_model import record


def kernels(count: int) -> list[KernelSpec]:
    rng = np.random.default_rng(0)
    drawn = [
        KernelSpec(
            op=Op.CONV2D,
            in_channels=int(rng.integers(2, 65)),
            out_channels=4 * int(rng.integers(1, 17)),
            input_h=16,
            input_w=16,
            kernel_h=3,
            kernel_w=3,
            padding=1,
        )
        for _ in range(count)
    ]
    return list(dict.fromkeys(drawn))


def test_every_stored_device_measured_the_same_kernels_with_what_its_name_says() -> None:
    pool = {without_seed(entry.kernel) for entry in read_dataset(STORED).kernels[:NUM_KERNELS]}
    for device in DEVICES:
        found = read_device(device)
        assert {without_seed(entry.kernel) for entry in found.kernels} <= pool
        assert len(found.kernels) >= 150
        assert found.about["runtime"] == device.runtime
        assert device.isa is None or found.about["isa"] == device.isa


def test_measuring_goes_on_where_it_was_stopped_and_repeats_what_was_disturbed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, str]] = []
    slow = kernel_id(without_seed(kernels(3)[0]))

    def measure(kernel: KernelSpec, setup: MeasuringSetup, around: Surroundings | None) -> dict[str, Any]:
        key = kernel_id(kernel)
        again = (setup.runtime, key) in asked
        asked.append((setup.runtime, key))
        return record(key, 1000.0, 300.0 if key == slow and not again else 100.0)

    pair = (replace(DEVICES[0], name="a", isa=None), replace(DEVICES[0], name="b", isa=None, runtime="tflite"))
    monkeypatch.setattr(devices, "DEVICES", pair)
    monkeypatch.setattr(devices, "kernel_record", measure)
    monkeypatch.setattr(devices, "make_runtime", lambda name: name)
    measure_devices(tmp_path, kernels(3), 1.0)
    assert len(asked) == 8, asked  # 3 kernels on 2 devices, and the disturbed one again on each
    measure_devices(tmp_path, kernels(4), 1.0)
    assert len(asked) == 10
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    assert len(done_keys(records, turn=0)) == 4


def test_a_device_that_is_like_the_old_one_needs_no_measurement_and_a_strange_one_some() -> None:
    rng = np.random.default_rng(1)
    old, new = kernels(240)[:120], kernels(240)[120:]

    def measured(wanted: list[KernelSpec], speed: float, power: float) -> list[KernelLatency]:
        noise = np.exp(rng.normal(0, 0.01, len(wanted)))
        return [
            KernelLatency(kernel=k, latency_ns=float(speed * (500 + k.macs**power) * e), std_ns=1.0)
            for k, e in zip(wanted, noise, strict=True)
        ]

    on_old = measured(old, 1.0, 0.9)
    alike = transfer.transferred(on_old, measured(new, 3.0, 0.9), "native", counts=(0, 10), num_seeds=2)
    assert alike["kernels_of_old_device"] == len(old)
    assert alike["needed_with_transfer"]["in_each_seed"] == 0
    with_it, without = (
        next(at["kernels"] for at in alike[name] if at["measurements"] == 10)
        for name in ("with_transfer", "without_transfer")
    )
    assert with_it["median_error"] < without["median_error"]
    assert [at["measurements"] for at in alike["without_transfer"]] == [10]
    shuffled = [replace(e, latency_ns=float(ns)) for e, ns in zip(on_old, rng.uniform(1e3, 1e6, len(old)), strict=True)]
    strange = transfer.transferred(shuffled, measured(new, 3.0, 0.9), "native", counts=(0, 10), num_seeds=1)
    assert strange["needed_with_transfer"]["in_the_mean"] != 0


def test_pruned_networks_of_the_published_table_hang_together() -> None:
    lines = ("3 224 64 7 2", "64 56 64 3 1", "64 56 64 3 1", "64 56 128 3 2", "128 28 128 3 1", "64 56 128 1 2")
    layers = [dense_layer(line.split()) for line in lines]
    rng = np.random.default_rng(0)
    for _ in range(10):
        stem, first, second, wider, after, shortcut = transfer._pruned_resnet18(layers, rng)
        assert stem.in_channels == 3
        assert stem.out_channels == first.in_channels == second.out_channels == wider.in_channels
        assert first.out_channels == second.in_channels
        assert wider.out_channels == after.in_channels
        assert shortcut.in_channels == stem.out_channels
        assert shortcut.out_channels == after.out_channels
