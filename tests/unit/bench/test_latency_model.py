"""The measurements behind the latency model's figures: how they are kept, and that figures come of them."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from bench.latency import attempts
from bench.latency.__main__ import STORED
from bench.latency.active import POLICIES, active_part, all_measured, all_predicted, replay_of
from bench.latency.model import baselines_part, curve_part, held_out_networks, model_part, with_known
from bench.latency.pruned_networks import ZOO, Split, network_name, pool_kernels, pruned_plan, random_tensors
from bench.latency.stored import Dataset, from_records, read_dataset, write_dataset
from device_agent.contracts import KernelSpec, Op, Statistics, encode
from search.domain.network import NetworkSpec
from tests.unit.search.sample_networks import resnet_spec

KERNELS = [
    KernelSpec(op=Op.CONV2D, in_channels=c, out_channels=8, input_h=8, input_w=8, kernel_h=3, kernel_w=3, padding=1)
    for c in (8, 12, 16)
]


def record(key: str, median_ns: float, reference_ns: float, **more: Any) -> dict[str, Any]:
    made = Statistics(
        median_ns=median_ns,
        mean_ns=median_ns,
        min_ns=median_ns,
        p5_ns=median_ns,
        p10_ns=median_ns,
        p90_ns=median_ns,
        p95_ns=median_ns,
        mad_ns=0.0,
        num_samples=60,
        num_blocks=6,
        ci95_low_ns=0.99 * median_ns,
        ci95_high_ns=1.01 * median_ns,
        reference_ns=reference_ns,
        reference_ratio=median_ns / reference_ns,
        reference_name="reference",
    )
    about = {"runtime_version": "1", "runtime_sha256": "aa", "isa": "avx2", "op_ns": [], "seconds": 6.0}
    return {"key": key, "statistics": dataclasses.asdict(made), **about, **more}


def kernel_record(index: int, median_ns: float, reference_ns: float = 100.0, **more: Any) -> dict[str, Any]:
    return record(f"k{index}", median_ns, reference_ns, kernel=encode(KERNELS[index]), **more)


def write_records(path: Path, records: list[dict[str, Any]], tail: str = "") -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in records) + tail, encoding="utf-8")
    return path


def test_of_two_records_that_at_the_usual_speed_counts_and_a_cut_line_does_not(tmp_path: Path) -> None:
    records = [
        kernel_record(0, 1500.0, 150.0),
        kernel_record(1, 2000.0),
        kernel_record(0, 1010.0),
        kernel_record(2, 9.0),
    ]
    path = write_records(tmp_path / "m.jsonl", records, tail='{"key": "k7", "sta')
    found = attempts.read_records(path)
    assert found == records
    assert path.read_text(encoding="utf-8").endswith("}\n")
    made = from_records(found, "a board")
    assert [entry.latency_ns for entry in made.kernels] == [1010.0, 2000.0, 9.0]
    assert made.minutes == {"kernels": pytest.approx(0.4)}
    assert attempts.is_at_usual_speed(found[2], 100.0)
    assert not attempts.is_at_usual_speed(records[0], 100.0)
    assert not attempts.is_at_usual_speed({"key": "k9", "failed": "no"}, 100.0)


def test_of_several_passes_the_median_counts_and_what_they_differ_by_is_part_of_the_error() -> None:
    passes = [kernel_record(0, ns) for ns in (1000.0, 1100.0, 1020.0)]
    once = [kernel_record(1, 500.0)]
    made = from_records([*passes, *once], "a board")
    assert made.kernels[0].latency_ns == pytest.approx(1020.0)
    spread = statistics.stdev(math.log(ns) for ns in (1000.0, 1100.0, 1020.0))
    assert made.between_passes == {"kernels": pytest.approx(spread)}
    own = from_records(once, "a board").kernels[0].std_ns
    assert made.kernels[1].std_ns == pytest.approx(math.hypot(own, 500.0 * spread))
    assert made.kernels[0].std_ns > 1020.0 * spread / 3**0.5
    assert from_records(once, "a board").between_passes == {}


def test_each_pass_asks_for_what_it_lacks_and_then_what_was_disturbed_is_asked_for_again() -> None:
    once = [kernel_record(index, 1.0) for index in range(3)]
    assert attempts.done_keys(once, turn=0, passes=2) == {"k0", "k1", "k2"}
    assert attempts.done_keys(once, turn=1, passes=2) == set()
    twice = [*once, kernel_record(0, 1.0), kernel_record(1, 2.0, 200.0), kernel_record(2, 1.0)]
    assert attempts.done_keys(twice, turn=1, passes=2) == {"k0", "k1", "k2"}
    assert attempts.done_keys(twice, turn=2, passes=2) == {"k0", "k2"}
    # What stays disturbed is given up.
    again = [*twice, kernel_record(1, 2.0, 200.0), kernel_record(1, 2.0, 200.0)]
    assert attempts.done_keys(again, turn=attempts.num_turns(2) - 1, passes=2) == {"k0", "k1", "k2"}


def test_what_failed_every_time_is_left_out() -> None:
    failed = {"key": "k2", "kernel": encode(KERNELS[2]), "failed": "no", "seconds": 6.0}
    made = from_records([kernel_record(0, 1.0), failed, failed], "a board")
    assert [entry.kernel for entry in made.kernels] == KERNELS[:1]
    assert made.minutes == {"kernels": pytest.approx(0.3)}


def test_measurements_are_brought_to_one_speed_and_are_then_less_certain() -> None:
    slow = kernel_record(0, 1500.0, 150.0)
    made = from_records([slow, kernel_record(1, 1000.0), kernel_record(2, 1000.0)], "a board")
    assert [entry.latency_ns for entry in made.kernels] == pytest.approx([1000.0, 1000.0, 1000.0])
    assert made.kernels[0].std_ns > 10 * made.kernels[1].std_ns
    assert made.minutes == {"kernels": pytest.approx(0.3)}


def test_measurements_of_two_builds_are_no_one_series() -> None:
    with pytest.raises(ValueError, match="2 builds"):
        from_records([kernel_record(0, 1.0), kernel_record(1, 1.0, runtime_sha256="bb")], "a board")


def test_a_stored_dataset_reads_back_and_equal_ones_are_equal_bytes(tmp_path: Path) -> None:
    ops = [["conv", ["input"], None, encode(kernel)] for kernel in KERNELS]
    name = network_name("resnet20", Split.HELD_OUT, 0)
    made = from_records([kernel_record(0, 900.0), kernel_record(1, 1000.0), record(name, 3000.0, 100.0, ops=ops)], "m")
    first, second = tmp_path / "a.gz", tmp_path / "b.gz"
    write_dataset(first, made)
    write_dataset(second, read_dataset(first))
    assert first.read_bytes() == second.read_bytes()
    read = read_dataset(first)
    assert [e.kernel for e in read.kernels] == KERNELS[:2]
    assert read.networks[name].kernels == tuple(KERNELS)
    assert read.of_split(Split.HELD_OUT).keys() == {name}
    assert not read.of_split(Split.CALIBRATION)


@pytest.fixture(scope="module")
def spec() -> NetworkSpec:
    return resnet_spec()


def test_networks_come_from_their_names_alone(spec: NetworkSpec) -> None:
    names = [network_name("tiny", split, index) for split in Split for index in range(3)]
    plans = [pruned_plan(spec, name) for name in names]
    assert plans == [pruned_plan(spec, name) for name in names]
    assert len(set(plans)) > len(plans) / 2
    tensors = random_tensors(plans[0])
    assert {op.name for op in plans[0].ops if op.kernel.op.has_weights} == {name.rsplit(".", 1)[0] for name in tensors}


def test_the_pool_has_distinct_kernels_and_grows_without_changing(spec: NetworkSpec) -> None:
    few, more = pool_kernels([spec], 8), pool_kernels([spec], 12)
    assert more[:8] == few
    assert len(set(more)) == 12


# --- figures of the stored measurements -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored() -> Dataset:
    return read_dataset(STORED)


@pytest.fixture(scope="module")
def fewer_known(stored: Dataset) -> Dataset:
    """With two known networks of each architecture: fitting takes the third power of their operators."""
    return with_known(stored, 12)


def test_the_stored_measurements_are_enough_for_the_figures(stored: Dataset) -> None:
    assert len(stored.kernels) <= 2000
    assert len(stored.of_split(Split.HELD_OUT)) >= 100
    assert sum(minutes for what, minutes in stored.minutes.items() if what != Split.HELD_OUT) < 60
    held_out = held_out_networks(stored, 12)
    assert {name.split("/")[0] for name in held_out} == set(ZOO)
    assert not set(held_out) & set(stored.of_split(Split.DEVELOPMENT))


def test_the_model_beats_every_baseline_on_networks_that_it_never_saw(fewer_known: Dataset) -> None:
    model = model_part(fewer_known, 200, 30)
    baselines = baselines_part(fewer_known, 200, 30)
    assert model["calibration_networks"] == 12
    assert model["networks"] == 30
    assert model["measurements"] == 200
    assert set(baselines) == {"macs", "additive_table", "trilinear", "random_forest_without_density"}
    for name, figures in baselines.items():
        assert model["rmspe"] < figures["rmspe"], name
        assert model["within_10_percent"] > figures["within_10_percent"], name


def test_the_curve_has_both_choices_at_each_size(stored: Dataset) -> None:
    few = dataclasses.replace(stored, kernels=stored.kernels[:60], op_ns={})
    curve = curve_part(few, (30, 40), num_held_out=12, num_seeds=1)
    assert [row["known_networks"] for row in curve["networks"]][:2] == [12, 30]
    assert [row["measurements"] for row in curve["active"]] == [30, 40] == [r["measurements"] for r in curve["random"]]
    assert all(0 < row["rmspe"] < 1 for rows in curve.values() for row in rows)
    assert all(0 < row["of_few_kernels"]["rmspe"] < 1 for row in curve["networks"])


@pytest.mark.slow
def test_ways_of_measuring_for_a_front_are_compared_at_each_budget(stored: Dataset) -> None:
    part = active_part(stored, (1.0, 1.5), num_designs=24, num_seeds=1)
    assert part["designs"] == 24
    for name in POLICIES:
        assert [row["device_minutes"] for row in part[name]] == [1.0, 1.5]
        assert all(0 < row["hypervolume"] <= 1 for row in part[name])
        assert part[name][1]["hypervolume_per_minute"] == pytest.approx(part[name][1]["hypervolume"] / 1.5)


def test_the_whole_front_is_found_where_everything_is_measured(stored: Dataset) -> None:
    replay = replay_of(stored, 12)
    everything = replay.minutes_per_network * 12 + 1e-6
    assert sorted(all_measured(replay, everything, 0)) == list(range(12))
    assert replay.quality(range(12)) == pytest.approx(1.0)
    assert len(all_measured(replay, everything / 2, 0)) == 6
    assert replay.quality([0]) < 1
    # Nothing is left for kernels once the networks of the correction are paid.
    assert all_predicted(replay, replay.minutes_of_calibration, 0) == []
