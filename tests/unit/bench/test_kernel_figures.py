"""Figures are read off times correctly, and the figures file has the keys that others read."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bench import kernels
from bench.layers import Layer, direct_bound, prunings, zoo_layers
from bench.memory import measure_memory
from bench.peak import PeakLoop
from bench.single_layers import layer_row
from bench.threads import thread_row
from bench.timing import Times, Variant, time_interleaved
from bench.whole_networks import network_row, pruning_of
from bench.zoo import cifar_resnet_plan, plan_tensors
from device_agent.contracts import DENSE, PruningScheme, WeightPruning
from device_agent.formats.packed import write_packed

GROUP = WeightPruning(scheme=PruningScheme.GROUP, density=0.25, block_filters=4)


class FakeMachine:
    """A clock that only moves when a variant runs."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.log: list[str] = []

    def variant(self, name: str, ns: Callable[[], int]) -> Variant:
        def repeat(count: int) -> None:
            self.log.append(name)
            self.now_ns += count * ns()

        return Variant(name, repeat)

    def clock_ns(self) -> int:
        return self.now_ns


def layer(name: str) -> Layer:
    return next(layer for layer in zoo_layers() if layer.name == name)


def test_times_are_of_one_repetition() -> None:
    machine = FakeMachine()
    variants = [machine.variant("fast", lambda: 70), machine.variant("slow", lambda: 3_000_000)]
    times = time_interleaved(variants, 4, clock_ns=machine.clock_ns)
    np.testing.assert_array_equal(times.ns, [[70, 3_000_000]] * 4)


def test_every_round_times_each_variant_once_and_the_first_rotates() -> None:
    machine = FakeMachine()
    variants = [machine.variant(name, lambda: 2_000_000) for name in "abc"]
    time_interleaved(variants, 3, clock_ns=machine.clock_ns)
    rounds = machine.log[-18:]
    assert "".join(rounds[::2]) == "abcbcacab"


def test_a_ratio_is_the_median_of_ratios_within_rounds() -> None:
    # The machine is three times slower in the second round; the ratio stays.
    times = Times(("a", "b"), np.array([[10.0, 5.0], [30.0, 15.0], [10.0, 4.0]]))
    assert times.ratio("a", "b") == pytest.approx(2.0)
    assert times.ratio("a", "c") is None
    assert times.median_ns("a") == 10.0
    assert times.minimum_ns("b") == 4.0


def test_rounds_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="rounds 0"):
        time_interleaved([], 0)


def test_a_layer_row_follows_from_its_times() -> None:
    chosen = layer("64@8")
    num_weights = 64 * 64 * 9 // 4
    flops = 2 * num_weights * 64
    peak_flops = 1_000_000
    times = Times(
        ("peak", "xnnpack", "ncnn", "native dense", "native group:4 0.2500"),
        np.array([[5_000.0, 40_000.0, 20_000.0, 30_000.0, 10_000.0]] * 3),
    )
    row = layer_row(times, chosen, GROUP, num_weights, peak_flops)
    assert row.speedup_vs_xnnpack == pytest.approx(4.0)
    assert row.speedup_vs_ncnn == pytest.approx(2.0)
    assert row.of_ideal_speedup == pytest.approx(3.0 * 0.25)
    assert row.gflops == pytest.approx(flops / 10_000)
    assert row.fraction_of_peak == pytest.approx((flops / 10_000) / (peak_flops / 5_000))
    assert row.bound_with_writes is None


def test_the_bound_with_writes_adds_their_time() -> None:
    chosen = layer("64@8")
    num_weights = 64 * 9
    # 73728 operations at 50 a nanosecond, an activation for nine products, and the output written in as long as both.
    times = Times(("peak", "writes", "native group:4 0.2500"), np.array([[20.0, 1638.4, 5_000.0]] * 3))
    row = layer_row(times, chosen, GROUP, num_weights, 1000)
    assert row.bound == pytest.approx(0.9)
    assert row.bound_with_writes == pytest.approx(1474.56 / (1638.4 + 1638.4))


def test_a_layer_by_winograds_algorithm_is_compared_with_the_direct_one() -> None:
    times = Times(
        ("peak", "native dense", "native dense direct", "native group:4 0.2500"),
        np.array([[10.0, 20.0, 40.0, 10.0]] * 3),
    )
    chosen = layer("64@8")
    dense = layer_row(times, chosen, DENSE, chosen.kernel.num_weights, 1000, is_winograd=True)
    assert dense.algorithm == "winograd"
    assert dense.direct_fraction_of_peak == pytest.approx(dense.fraction_of_peak / 2)
    group = layer_row(times, chosen, GROUP, chosen.kernel.num_weights // 4, 1000)
    assert group.of_ideal_speedup == pytest.approx(40 / 10 * 0.25)
    assert group.direct_fraction_of_peak is None


def test_the_speed_up_of_threads_is_that_of_the_fastest_rounds() -> None:
    row = thread_row(Times(("1 threads", "2 threads"), np.array([[20e6, 10e6], [30e6, 25e6], [22e6, 11e6]])), 0.3)
    assert row.speedup == pytest.approx(2.0)
    assert row.median_speedup == pytest.approx(2.0)
    assert row.minimum_ms == 10.0


def test_a_row_without_baselines_has_no_speed_ups() -> None:
    times = Times(("peak", "native dense"), np.ones((2, 2)))
    row = layer_row(times, layer("64@8"), DENSE, 1, 2)
    assert row.speedup_vs_xnnpack is None
    assert row.speedup_vs_ncnn is None
    network = network_row(
        Times(("native 0.3",), np.full((2, 1), 2e6)), "resnet56", 0.3, sum_of_ops_ns=1e6, relative_error=None,
        prepare_s=0.1, memory_bytes=1, native_memory=None, xnnpack_memory=None,
    )  # fmt: skip
    assert network.median_ms == 2.0
    assert network.sum_of_ops_over_whole == 0.5
    assert network.speedup_vs_xnnpack is None


def test_the_bound_counts_the_activation() -> None:
    assert direct_bound(layer("64@8").kernel, 64 * 64 * 9) == pytest.approx(576 / 577)
    assert direct_bound(layer("64@8").kernel, 64 * 9) == pytest.approx(9 / 10)


def test_only_prunable_layers_are_pruned_and_only_3x3_has_patterns() -> None:
    densities = {PruningScheme.DENSE: (1.0,), PruningScheme.GROUP: (0.5, 0.2), PruningScheme.PATTERN: (4 / 9,)}
    assert [p.density for p in prunings(layer("64@56"), densities)] == pytest.approx([1.0, 0.5, 0.2, 4 / 9])
    assert [p.density for p in prunings(layer("1x1 512@14"), densities)] == [1.0, 0.5, 0.2]
    assert prunings(layer("dw 256@28"), densities) == (DENSE,)


def test_densities_of_networks_are_those_of_groups() -> None:
    assert pruning_of(1.0) == DENSE
    assert pruning_of(0.3) == WeightPruning(scheme=PruningScheme.GROUP, density=0.3, block_filters=4)


def test_the_peak_loop_does_what_it_is_asked() -> None:
    loop = PeakLoop()
    assert loop.flops % (2 * 1000 * loop.vector_length) == 0
    times = time_interleaved([Variant("peak", loop.repeat)], 2, min_sample_ns=100_000)
    assert loop.flops / times.minimum_ns("peak") > 0


def test_the_memory_of_a_network_is_told_by_a_child(tmp_path: Path) -> None:
    plan = cifar_resnet_plan(blocks_per_stage=1)
    path = tmp_path / "network.kerf"
    path.write_bytes(write_packed(plan, plan_tensors(plan)))
    use = measure_memory("native", path, plan.input_shape)
    if use is None:
        pytest.skip("this system does not tell resident memory")
    assert use.peak_bytes > 0
    path.write_bytes(b"not a network")
    with pytest.raises(RuntimeError, match="ContractError"):
        measure_memory("native", path, plan.input_shape)


def test_the_figures_file_has_the_agreed_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "kernels.json"
    kernels.main(
        [
            "--layers", "^(64@8|avgpool 64@8)$", "--schemes", "dense", "group", "--densities", "0.2", "--rounds", "1",
            "--min-sample-ns", "1000", "--networks", "resnet56", "--network-densities", "0.1", "--no-memory",
            "--json", str(path),
        ]
    )  # fmt: skip
    figures = json.loads(path.read_text())
    assert figures["peak_gflops"] > 0
    assert [(row["scheme"], row["density"]) for row in figures["layers"]] == [("dense", 1.0), ("group", 0.2)]
    for row in figures["layers"]:
        keys = {"layer", "scheme", "density", "gflops", "fraction_of_peak", "speedup_vs_xnnpack", "speedup_vs_ncnn"}
        assert keys <= set(row)
        assert row["gflops"] > 0
        assert row["fraction_of_peak"] > 0
    (network,) = figures["networks"]
    assert {"network", "density", "speedup_vs_xnnpack", "speedup_vs_ncnn", "median_ms"} <= set(network)
    assert network["median_ms"] > 0
    assert [row["layer"] for row in figures["other_layers"]] == ["avgpool 64@8"]
    assert "resnet56" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [["--rounds", "0"], ["--densities", "1.5"], ["--layers", "no such layer"]])
def test_wrong_settings_are_refused(wrong: list[str]) -> None:
    with pytest.raises(SystemExit):
        kernels.main([*wrong, "--no-baselines"])
