"""The table: canonical, strict, and free of seeds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from device_agent.contracts import ContractError, KernelSpec, Op, Source, Statistics
from search.latency.table import (
    KernelLatency,
    LatencyTable,
    NetworkLatency,
    dump_table,
    kernel_latency,
    load_table,
    median_std_ns,
    table_id,
)
from tests.unit.search.sample_networks import resnet_spec

KERNELS = tuple(dict.fromkeys(resnet_spec().plan.kernels))


def table_of(kernels: tuple[KernelSpec, ...] = KERNELS, **changes: Any) -> LatencyTable:
    entries = tuple(KernelLatency(kernel=k, latency_ns=1000.0 + k.macs / 3, std_ns=10.0) for k in kernels)
    values: dict[str, Any] = {
        "device_id": "d",
        "setup_id": "m",
        "runtime": "native",
        "runtime_version": "1",
        "source": Source.SIMULATED,
        "kernels": entries,
        "networks": (NetworkLatency(kernels=KERNELS, latency_ns=1e6),),
    }
    return LatencyTable(**(values | changes))


def test_text_round_trip_is_exact() -> None:
    table = table_of()
    text = dump_table(table)
    assert load_table(text) == table
    assert dump_table(load_table(text)) == text


def test_order_of_entries_does_not_matter() -> None:
    assert dump_table(table_of()) == dump_table(table_of(KERNELS[::-1]))
    assert table_id(table_of()) == table_id(table_of(KERNELS[::-1]))


def test_content_matters() -> None:
    assert table_id(table_of()) != table_id(table_of(runtime_version="2"))


def test_seed_is_dropped_and_duplicates_are_refused() -> None:
    seeded = dataclasses.replace(KERNELS[0], seed=7)
    assert table_of((seeded,)).kernels[0].kernel.seed == 0
    with pytest.raises(ContractError, match="twice"):
        table_of((KERNELS[0], seeded))


@pytest.mark.parametrize("latency_ns", [0.0, -1.0, float("nan"), float("inf")])
def test_latency_must_be_positive_and_finite(latency_ns: float) -> None:
    with pytest.raises(ContractError, match="must be positive"):
        KernelLatency(kernel=KERNELS[0], latency_ns=latency_ns)


def test_unknown_version_and_fields_are_refused() -> None:
    with pytest.raises(ContractError, match="version 2"):
        table_of(version=2)
    with pytest.raises(ContractError, match="unknown field 'colour'"):
        load_table(dump_table(table_of())[:-1] + ',"colour":1}')


def test_uncertainty_of_the_median() -> None:
    statistics = Statistics(
        median_ns=100.0, mean_ns=100.0, min_ns=90.0, p5_ns=91.0, p10_ns=92.0, p90_ns=110.0, p95_ns=111.0, mad_ns=4.0,
        num_samples=90, num_blocks=9, ci95_low_ns=98.04, ci95_high_ns=101.96,
    )  # fmt: skip
    assert median_std_ns(statistics) == pytest.approx(1.0, rel=1e-4)
    without = dataclasses.replace(statistics, ci95_low_ns=None, ci95_high_ns=None)
    assert median_std_ns(without) == pytest.approx(1.4826 * 4 / 3)
    spec = KernelSpec(op=Op.FULLY_CONNECTED, in_channels=4, out_channels=2)
    assert kernel_latency(spec, statistics).latency_ns == 100.0
