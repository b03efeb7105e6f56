"""The latency model against a device whose times are known, with staircases, modes and noise."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from device_agent.contracts import Activation, ContractError, KernelSpec, Op, PruningScheme, WeightPruning
from search.errors import LatencyModelError
from search.latency.model.choice import choose_kernels, network_log_std, network_parts
from search.latency.model.features import TERMS, as_computed, effective_density, feature_table, kernel_features
from search.latency.model.in_network import fit_in_network, places_of
from search.latency.model.kernel_model import KernelLatencyModel, Transfer, fit_kernel_model
from search.latency.model.physical import fit_physical
from search.latency.model.storage import dump_model, load_model
from search.latency.model.whole import AMOUNTS, WholeNetworkModel, fit_whole_networks, network_amounts
from search.latency.table import KernelLatency, NetworkLatency

SCHEMES = (
    WeightPruning(),
    WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.5),
    WeightPruning(scheme=PruningScheme.GROUP, block_filters=4, density=0.5),
    WeightPruning(scheme=PruningScheme.BLOCK_PUNCHED, block_filters=8, block_channels=4, density=0.5),
)
NOISE = 0.01


def random_kernel(rng: np.random.Generator) -> KernelSpec:
    window, side = int(rng.choice((1, 3))), int(rng.choice((8, 16, 32)))
    pruning = SCHEMES[int(rng.integers(len(SCHEMES)))]
    if pruning.density < 1:
        pruning = dataclasses.replace(pruning, density=float(rng.choice((0.1, 0.2, 0.3, 0.5, 0.7))))
    return KernelSpec(
        op=Op.CONV2D,
        in_channels=2 * int(rng.integers(4, 64)),
        out_channels=2 * int(rng.integers(4, 64)),
        input_h=side,
        input_w=side,
        kernel_h=window,
        kernel_w=window,
        padding=window // 2,
        stride=int(rng.choice((1, 2))),
        activation=Activation.RELU,
        pruning=pruning,
    )


def true_ns(kernel: KernelSpec, speed: float = 1.0) -> float:
    """A device of our own: products of padded groups, a cost of zeros' places by scheme, writes, and a constant."""
    rows = -(-kernel.out_channels // 4) * 4
    positions = -(-kernel.output_h * kernel.output_w // 16) * 16
    density = kernel.pruning.density
    per_product = {PruningScheme.DENSE: 0.02, PruningScheme.UNSTRUCTURED: 0.05}.get(kernel.pruning.scheme, 0.025)
    products = rows * kernel.in_channels * kernel.kernel_h * kernel.kernel_w * positions * density
    read = kernel.in_channels * kernel.input_h * kernel.input_w
    return speed * (300.0 + per_product * products + 0.1 * rows * positions + 0.05 * read * kernel.stride)


def measured(rng: np.random.Generator, count: int, speed: float = 1.0) -> list[KernelLatency]:
    found = []
    for kernel in dict.fromkeys(random_kernel(rng) for _ in range(count)):
        latency_ns = true_ns(kernel, speed) * float(np.exp(rng.normal(0, NOISE)))
        found.append(KernelLatency(kernel=kernel, latency_ns=latency_ns, std_ns=NOISE * latency_ns))
    return found


@pytest.fixture(scope="module")
def model() -> KernelLatencyModel:
    return fit_kernel_model(measured(np.random.default_rng(0), 250), "native", rng=np.random.default_rng(1))


def errors_of(model: KernelLatencyModel, kernels: list[KernelSpec], speed: float = 1.0) -> np.ndarray:
    return model.predict_all(kernels)[0] / np.array([true_ns(kernel, speed) for kernel in kernels]) - 1.0


def unseen(seed: int, count: int) -> list[KernelSpec]:
    rng = np.random.default_rng(seed)
    return [random_kernel(rng) for _ in range(count)]


def test_kernels_never_measured_are_predicted_and_the_uncertainty_is_honest(model: KernelLatencyModel) -> None:
    kernels = unseen(7, 200)
    latency_ns, std_ns = model.predict_all(kernels)
    off = latency_ns / np.array([true_ns(kernel) for kernel in kernels]) - 1.0
    assert np.median(np.abs(off)) < 0.03
    assert np.mean(np.abs(off) < 0.10) > 0.9
    assert 0.8 < np.mean(np.abs(off) < 2 * std_ns / latency_ns) <= 1.0


def test_it_beats_multiply_accumulates(model: KernelLatencyModel) -> None:
    kernels = unseen(8, 100)
    macs = np.array([kernel.macs for kernel in kernels], dtype=float)
    true = np.array([true_ns(kernel) for kernel in kernels])
    by_macs = macs * np.median(true / macs) / true - 1.0
    assert np.sqrt(np.mean(errors_of(model, kernels) ** 2)) < 0.3 * np.sqrt(np.mean(by_macs**2))


def test_a_measured_kernel_is_its_measurement(model: KernelLatencyModel) -> None:
    entry = model.entries[3]
    prediction = model.predict(dataclasses.replace(entry.kernel, seed=9))
    assert prediction.exact
    assert prediction.latency_ns == entry.latency_ns
    assert not model.predict(unseen(9, 1)[0]).exact


def test_a_stored_model_predicts_the_same_bits(model: KernelLatencyModel) -> None:
    text = dump_model(model)
    again = load_model(text)
    kernels = unseen(10, 50)
    for known, read in zip(model.predict_all(kernels), again.predict_all(kernels), strict=True):
        np.testing.assert_array_equal(known, read)
    assert dump_model(again) == text


def test_equal_measurements_and_seeds_give_equal_models() -> None:
    entries = measured(np.random.default_rng(3), 40)
    first, second = (dump_model(fit_kernel_model(entries, "native", rng=np.random.default_rng(5))) for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    "damage",
    [
        lambda d: d.update(version=99),
        lambda d: d.pop("settings"),
        lambda d: d["settings"].update(lengths=[1.0]),
        lambda d: d["base"]["direct"].update(common=[1.0, 2.0]),
        lambda d: d.update(entries=[{"kernel": 3}]),
    ],
)
def test_a_damaged_model_is_refused(model: KernelLatencyModel, damage) -> None:  # type: ignore[no-untyped-def]
    document = json.loads(dump_model(model))
    damage(document)
    with pytest.raises(ContractError):
        load_model(json.dumps(document))
    with pytest.raises(ContractError, match="JSON"):
        load_model("{")


def test_few_measurements_are_refused() -> None:
    with pytest.raises(LatencyModelError, match="at least 5"):
        fit_kernel_model(measured(np.random.default_rng(0), 3), "native", rng=np.random.default_rng(0))


def test_a_broken_measurement_moves_its_neighbours_little() -> None:
    entries = measured(np.random.default_rng(4), 120)
    broken = list(entries)
    broken[10] = dataclasses.replace(broken[10], latency_ns=5 * broken[10].latency_ns)
    good, bad = (fit_kernel_model(e, "native", rng=np.random.default_rng(0)) for e in (entries, broken))
    kernels = [entry.kernel for entry in entries if entry is not entries[10]]
    change = bad.predict_all(kernels)[0] / good.predict_all(kernels)[0] - 1.0
    assert np.median(np.abs(change)) < 0.02
    # The model doubts it: its stated uncertainty was 1 %.
    assert bad.entries[10].std_ns > 0.2 * bad.entries[10].latency_ns


# --- monotony -------------------------------------------------------------------------------------------------------


def larger_pairs(seed: int, count: int) -> tuple[list[KernelSpec], list[KernelSpec]]:
    """Random kernels, and each with more input or output channels (whole register tiles) or more density, same mode."""
    rng = np.random.default_rng(seed)
    small, large = [], []
    while len(small) < count:
        kernel = random_kernel(rng)
        kernel = dataclasses.replace(
            kernel,
            in_channels=-(-kernel.in_channels // 16) * 16,
            out_channels=-(-kernel.out_channels // 16) * 16,
        )
        what = int(rng.integers(3))
        if what == 0:
            more = dataclasses.replace(kernel, in_channels=kernel.in_channels + 16 * int(rng.integers(1, 4)))
        elif what == 1:
            more = dataclasses.replace(kernel, out_channels=kernel.out_channels + 16 * int(rng.integers(1, 4)))
        elif kernel.pruning.scheme is PruningScheme.DENSE:
            continue
        else:
            density = kernel.pruning.density + float(rng.uniform(0.05, 0.3))
            more = dataclasses.replace(kernel, pruning=dataclasses.replace(kernel.pruning, density=density))
        if kernel_features(kernel, "native").mode == kernel_features(more, "native").mode:
            small.append(kernel)
            large.append(more)
    return small, large


def test_work_never_shrinks_with_channels_or_density() -> None:
    small, large = larger_pairs(11, 400)
    for a, b in zip(small, large, strict=True):
        fewer, more = kernel_features(a, "native"), kernel_features(b, "native")
        assert np.all(np.array(more.ways) >= np.array(fewer.ways) - 1e-9), (a, b)


def test_the_physical_part_is_never_cheaper_for_more_work() -> None:
    entries = measured(np.random.default_rng(12), 200)
    table = feature_table([kernel_features(entry.kernel, "native") for entry in entries])
    noise = np.full(len(entries), NOISE**2)
    physical = fit_physical(table, np.array([entry.latency_ns for entry in entries]), noise)
    small, large = larger_pairs(13, 400)
    tables = [feature_table([kernel_features(kernel, "native") for kernel in kernels]) for kernels in (small, large)]
    fewer, more = (physical.times(table) for table in tables)
    assert np.all(more >= fewer * (1 - 1e-9))


def test_predictions_for_more_work_are_hardly_ever_cheaper(model: KernelLatencyModel) -> None:
    small, large = larger_pairs(14, 400)
    ratio = model.predict_all(large)[0] / model.predict_all(small)[0]
    assert np.mean(ratio < 1.0) < 0.02
    assert ratio.min() > 0.95


# --- features -------------------------------------------------------------------------------------------------------


def conv(**changes: object) -> KernelSpec:
    values: dict[str, object] = {
        "op": Op.CONV2D,
        "in_channels": 32,
        "out_channels": 32,
        "input_h": 16,
        "input_w": 16,
        "kernel_h": 3,
        "kernel_w": 3,
        "padding": 1,
    }
    return KernelSpec(**(values | changes))  # type: ignore[arg-type]


def term(kernel: KernelSpec, name: str, way: int = 0) -> float:
    return kernel_features(kernel, "native").ways[way][TERMS.index(name)]


def test_channels_beside_whole_groups_are_counted_as_such() -> None:
    assert term(conv(), "products_by_4") == 32 * 32 * 9 * 256
    odd = conv(out_channels=31)
    assert term(odd, "products_by_4") == 28 * 32 * 9 * 256
    assert term(odd, "products_by_2") == 2 * 32 * 9 * 256
    assert term(odd, "products_by_1") == 1 * 32 * 9 * 256


def test_unstructured_zeros_in_a_group_are_computed_unless_all_are_zero() -> None:
    sparse = conv(pruning=WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.5))
    assert term(sparse, "products_by_4", way=0) == pytest.approx((1 - 0.5**4) * 32 * 32 * 9 * 256)
    assert term(sparse, "products_by_1", way=2) == pytest.approx(0.5 * 32 * 32 * 9 * 256)
    shared = conv(pruning=WeightPruning(scheme=PruningScheme.GROUP, block_filters=4, density=0.5))
    assert term(shared, "products_by_4") == pytest.approx(0.5 * 32 * 32 * 9 * 256)


def test_tflite_leaves_zeros_out_of_1x1_only_and_beyond_two_thirds() -> None:
    def pruned(density: float, window: int) -> KernelSpec:
        pruning = WeightPruning(scheme=PruningScheme.GROUP, block_filters=4, density=density)
        return conv(kernel_h=window, kernel_w=window, padding=window // 2, pruning=pruning)

    assert effective_density(pruned(0.3, 1), "tflite-sparse") == 0.3
    assert effective_density(pruned(1 / 3, 1), "tflite-sparse") == 1.0
    assert effective_density(pruned(0.1, 3), "tflite-sparse") == 1.0
    assert effective_density(pruned(0.1, 1), "tflite") == 1.0
    assert effective_density(pruned(0.3, 1), "ncnn") == 1.0
    assert effective_density(pruned(0.3, 3), "native") == 0.3
    sparse, dense = (kernel_features(pruned(density, 1), "tflite-sparse").mode for density in (0.3, 0.4))
    assert sparse != dense


# --- whole networks, choice, transfer -------------------------------------------------------------------------------


def random_networks(seed: int, count: int) -> list[tuple[KernelSpec, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(random_kernel(rng) for _ in range(int(rng.integers(5, 30)))) for _ in range(count)]


def test_networks_cost_more_than_their_kernels_alone(model: KernelLatencyModel) -> None:
    def whole_ns(network: tuple[KernelSpec, ...]) -> float:
        winograd = float(model.runs_winograd(network).sum())
        return 1.1 * sum(map(true_ns, network)) + 0.02 * model.weight_bytes(network).sum() + 2000.0 * winograd

    networks = [NetworkLatency(kernels=n, latency_ns=whole_ns(n)) for n in random_networks(1, 20)]
    whole = fit_whole_networks(model, networks)
    others = random_networks(2, 30)
    latency_ns, std_ns = whole.predict_all(others)
    off = np.abs(latency_ns / np.array([whole_ns(network) for network in others]) - 1.0)
    assert np.median(off) < 0.03
    # A few are far from all that prices were fitted to: random kernels are no architecture.
    assert np.quantile(off, 0.8) < 0.08
    assert np.all(std_ns > 0)
    with pytest.raises(LatencyModelError, match="at least 5"):
        fit_whole_networks(model, networks[:4])


def in_network_ns(network: tuple[KernelSpec, ...], model: KernelLatencyModel) -> list[float]:
    """Made up: the more weights a network has, the further away they are."""
    weight_bytes = model.weight_bytes(network)
    far_ns = 0.03 * min(1.0, weight_bytes.sum() / 1e6)
    return [true_ns(kernel) + far_ns * read for kernel, read in zip(network, weight_bytes.tolist(), strict=True)]


def test_profiles_tell_what_the_total_times_of_few_networks_do_not(model: KernelLatencyModel) -> None:
    def whole_ns(network: tuple[KernelSpec, ...]) -> float:
        return 1.02 * sum(in_network_ns(network, model)) + 80.0 * len(network)

    known, others = random_networks(1, 8), random_networks(2, 30)
    networks = [NetworkLatency(kernels=n, latency_ns=whole_ns(n)) for n in known]
    truth = np.array([whole_ns(network) for network in others])

    def off(whole: WholeNetworkModel) -> float:
        return float(np.sqrt(np.mean((whole.predict_all(others)[0] / truth - 1.0) ** 2)))

    profiled = fit_whole_networks(model, networks, [in_network_ns(network, model) for network in known])
    assert off(profiled) < 0.04
    assert off(profiled) < 0.8 * off(fit_whole_networks(model, networks))
    assert profiled.prices.of("kernels_ns") == pytest.approx(1.02, abs=0.03)
    assert profiled.prices.of("weight_bytes") == 0.0
    with pytest.raises(LatencyModelError, match="one for each"):
        fit_whole_networks(model, networks, [in_network_ns(network, model)[1:] for network in known])
    with pytest.raises(LatencyModelError, match=r"0\.0 ns for an operator"):
        fit_whole_networks(model, networks, [[0.0, *in_network_ns(network, model)[1:]] for network in known])


def test_an_operator_is_told_by_its_place(model: KernelLatencyModel) -> None:
    """The first operator of these networks takes half as long again as the same kernel behind it."""
    kernels = list(dict.fromkeys(kernel for network in random_networks(4, 3) for kernel in network))
    networks = [(kernel, kernel) for kernel in kernels]
    places = places_of(model, networks)
    is_first = np.array([True, False] * len(networks))
    rng = np.random.default_rng(0)
    times_ns = places.alone_ns * np.where(is_first, 1.5, 1.0) * np.exp(rng.normal(0.0, 0.02, len(is_first)))
    fitted = fit_in_network(places, times_ns, rng)
    for ratios in (fitted.ratios(places), fitted.left_out_ratios(places)):
        assert np.median(ratios[is_first]) == pytest.approx(1.5, rel=0.03)
        assert np.median(ratios[~is_first]) == pytest.approx(1.0, rel=0.03)


def test_what_stays_near_between_two_operators_is_a_gain(model: KernelLatencyModel) -> None:
    """A convolution and the depthwise convolution behind it, of an image that is small or leaves the cache."""

    def pair(extent: int) -> tuple[KernelSpec, ...]:
        depthwise = KernelSpec(
            op=Op.DEPTHWISE_CONV2D, in_channels=64, out_channels=64, input_h=extent, input_w=extent, kernel_h=3,
            kernel_w=3, padding=1,
        )  # fmt: skip
        before = dataclasses.replace(depthwise, op=Op.CONV2D, in_channels=16, kernel_h=1, kernel_w=1, padding=0)
        return (before, depthwise)

    def kept(network: tuple[KernelSpec, ...]) -> float:
        return float(network_amounts(model, [network])[0][AMOUNTS.index("bytes_kept_from_depthwise")])

    assert kept(pair(32)) == 0.0
    assert kept(pair(112)) == 4 * 64 * 112 * 112 - (1 << 20)
    assert kept(pair(112)[::-1]) == 0.0
    sums = network_amounts(model, [pair(extent) for extent in (8, 16, 32, 64, 80, 96, 112, 128)])
    near, gain = sums[:, 0], 0.05 * sums[:, AMOUNTS.index("bytes_kept_from_depthwise")]
    networks = [
        NetworkLatency(kernels=pair(extent), latency_ns=float(near_ns - min(gain_ns, 0.5 * near_ns)))
        for extent, near_ns, gain_ns in zip((8, 16, 32, 64, 80, 96, 112, 128), near, gain, strict=True)
    ]
    assert fit_whole_networks(model, networks).prices.of("bytes_kept_from_depthwise") < 0.0


def test_parts_of_a_network_sum_to_one_and_repeated_kernels_count_each_time(model: KernelLatencyModel) -> None:
    (network,) = random_networks(3, 1)
    distinct = list(dict.fromkeys(network))
    once = network_parts(model, [network], distinct)
    twice = network_parts(model, [(*network, network[0])], distinct)
    assert once.sum() == pytest.approx(1.0)
    assert twice[0, 0] > once[0, 0]


def test_chosen_kernels_make_networks_more_certain_than_random_ones() -> None:
    rng = np.random.default_rng(6)
    everything = measured(rng, 160)
    first, pool = everything[:20], everything[20:]
    start = fit_kernel_model(first, "native", rng=np.random.default_rng(0))
    networks = random_networks(4, 12)

    def log_std(indices: list[int]) -> float:
        entries = (*start.entries, *(pool[i] for i in indices))
        return float(
            np.mean(network_log_std(KernelLatencyModel("native", entries, start.base, start.settings), networks))
        )

    chosen = choose_kernels(start, [entry.kernel for entry in pool], networks, 20)
    assert len(set(chosen)) == 20
    by_chance = [log_std(rng.choice(len(pool), size=20, replace=False).tolist()) for _ in range(5)]
    assert log_std(chosen) < min(by_chance)
    assert log_std(chosen) < log_std([])


def test_kernels_of_important_networks_are_chosen_first() -> None:
    start = fit_kernel_model(measured(np.random.default_rng(8), 30), "native", rng=np.random.default_rng(0))
    first, second = unseen(20, 1), unseen(21, 1)
    pool = [*first, *second]
    assert choose_kernels(start, pool, [first, second], 1, importance=(1.0, 0.0)) == [0]
    assert choose_kernels(start, pool, [first, second], 1, importance=(0.0, 1.0)) == [1]
    assert sorted(choose_kernels(start, pool, [first], 5)) == [0, 1]


def test_a_similar_device_needs_few_measurements(model: KernelLatencyModel) -> None:
    few = measured(np.random.default_rng(30), 12, speed=3.0)
    alone = fit_kernel_model(few, "native", rng=np.random.default_rng(0))
    helped = fit_kernel_model(few, "native", rng=np.random.default_rng(0), prior=model)
    kernels = unseen(31, 150)
    with_prior, without = (np.sqrt(np.mean(errors_of(m, kernels, 3.0) ** 2)) for m in (helped, alone))
    assert with_prior < 0.08
    assert with_prior < 0.7 * without
    assert isinstance(helped.base, Transfer)
    again = load_model(dump_model(helped))
    np.testing.assert_array_equal(again.predict_all(kernels)[0], helped.predict_all(kernels)[0])


def test_a_device_that_is_unlike_the_other_one_goes_by_its_own_measurements(model: KernelLatencyModel) -> None:
    rng = np.random.default_rng(40)
    shuffled = measured(rng, 200)
    times = rng.permutation([entry.latency_ns for entry in shuffled])
    misleading = fit_kernel_model(
        [dataclasses.replace(entry, latency_ns=float(ns)) for entry, ns in zip(shuffled, times, strict=True)],
        "native",
        rng=np.random.default_rng(0),
    )
    own = measured(np.random.default_rng(41), 60)
    misled, alone, helped = (
        fit_kernel_model(own, "native", rng=np.random.default_rng(0), prior=prior)
        for prior in (misleading, None, model)
    )
    assert isinstance(misled.base, Transfer)
    assert isinstance(helped.base, Transfer)
    assert misled.base.weight <= 0.25
    assert helped.base.weight == 1.0
    kernels = unseen(42, 150)
    first, second = (np.sqrt(np.mean(errors_of(m, kernels) ** 2)) for m in (misled, alone))
    assert first < 1.5 * second


def test_a_runtime_that_makes_no_use_of_zeros_takes_the_dense_kernels_of_another_device(
    model: KernelLatencyModel,
) -> None:
    pruned = unseen(50, 40)
    few = [
        KernelLatency(kernel=k, latency_ns=2.0 * true_ns(as_computed(k, "ncnn")), std_ns=1.0)
        for k in dict.fromkeys(pruned[:20])
    ]
    helped = fit_kernel_model(few, "ncnn", rng=np.random.default_rng(0), prior=model)
    sparse = [kernel for kernel in pruned[20:] if kernel.pruning.density < 1]
    dense = [dataclasses.replace(kernel, pruning=WeightPruning()) for kernel in sparse]
    assert sparse
    np.testing.assert_array_equal(helped.predict_all(sparse)[0], helped.predict_all(dense)[0])
    np.testing.assert_array_equal(helped.weight_bytes(sparse), helped.weight_bytes(dense))
    again = load_model(dump_model(helped))
    np.testing.assert_array_equal(again.predict_all(sparse)[0], helped.predict_all(sparse)[0])


def test_many_kernels_at_once_are_told_as_each_alone(model: KernelLatencyModel) -> None:
    kernels = [*unseen(60, 5), model.entries[0].kernel]
    each = model.predict_each(kernels)
    assert [found.exact for found in each] == [False] * 5 + [True]
    for found, kernel in zip(each, kernels, strict=True):
        assert found.latency_ns == pytest.approx(model.predict(kernel).latency_ns)
        assert found.std_ns == pytest.approx(model.predict(kernel).std_ns)
    assert model.predict_each([]) == []
    assert model.knows_mode(kernels[0])
    assert not model.knows_mode(KernelSpec(op=Op.MAX_POOL, in_channels=4, out_channels=4))
