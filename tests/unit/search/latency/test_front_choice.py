"""What is measured where uncertainty meets the front."""

from __future__ import annotations

import numpy as np
import pytest

from device_agent.contracts import KernelSpec
from search.domain.objective import LatencyOverDevices
from search.latency.families import without_seed
from search.latency.fleet import over_devices
from search.latency.model.front import (
    MIN_PROBABILITY,
    belief_over,
    device_belief,
    device_parts,
    front_belief,
    front_probability,
    kernels_for,
    kernels_for_front,
)
from search.latency.model.kernel_model import KernelLatencyModel, fit_kernel_model
from search.latency.network import Correction, CorrectionForm, correction_of_sums
from search.latency.table import KernelLatency
from tests.unit.search.latency.test_kernel_model import measured, random_kernel, true_ns


@pytest.fixture(scope="module")
def model() -> KernelLatencyModel:
    return fit_kernel_model(measured(np.random.default_rng(8), 120), "native", rng=np.random.default_rng(0))


def networks_of(count: int, seed: int = 5) -> list[list[KernelSpec]]:
    rng = np.random.default_rng(seed)
    return [[random_kernel(rng) for _ in range(4)] for _ in range(count)]


def test_one_rival_gives_the_exact_probability() -> None:
    found = front_probability([0.1, 0.2], [1.0, 0.9], [0.06, 0.08])
    # The second is ahead by 0.1, with a standard deviation of 0.1: the normal distribution at 1.
    assert found == pytest.approx([1.0, 0.8413447460685429])


def test_the_most_dangerous_rival_counts() -> None:
    errors, logs = [0.1, 0.15, 0.2], [1.0, 0.5, 0.45]
    last = front_probability(errors, logs, [0.1, 0.01, 0.02])[2]
    assert last == pytest.approx(front_probability(errors[1:], logs[1:], [0.01, 0.02])[1])


def test_without_uncertainty_it_is_the_front() -> None:
    errors = [0.1, 0.2, 0.3, 0.3, 0.3, float("nan")]
    found = front_probability(errors, [3.0, 2.0, 2.5, 1.0, 1.0, 0.0], np.zeros(6))
    np.testing.assert_array_equal(found, [1.0, 1.0, 0.0, 1.0, 1.0, 0.0])


def test_more_uncertainty_brings_the_dominated_closer_and_shapes_must_fit() -> None:
    chances = [front_probability([0.1, 0.2], [0.0, 0.3], [s, s])[1] for s in (0.01, 0.1, 0.3)]
    assert chances[0] < 1e-6 < chances[1] < chances[2] < 0.5
    assert front_probability([], [], []).shape == (0,)
    with pytest.raises(ValueError, match=r"\(2,\).*\(1,\)"):
        front_probability([0.1, 0.2], [1.0], [0.1])


def test_kernels_are_those_of_candidates_that_may_be_on_the_front(model: KernelLatencyModel) -> None:
    fast, slow = [networks_of(1)[0], [kernel for network in networks_of(40, 6) for kernel in network]]
    belief = front_belief(model, [fast, slow], [0.1, 0.2])
    assert belief.probability[0] == 1.0
    assert belief.probability[1] < 1e-6
    chosen = kernels_for_front(model, [fast, slow], [0.1, 0.2], 10)
    assert sorted(map(repr, chosen)) == sorted({repr(without_seed(kernel)) for kernel in fast})
    assert chosen == kernels_for_front(model, [fast, slow], [0.1, 0.2], 10)
    # The slow one counts as soon as it is the most accurate.
    assert not set(kernels_for_front(model, [fast, slow], [0.2, 0.1], 100)) <= set(chosen)


def test_nothing_is_measured_twice_and_a_pool_bounds_the_choice(model: KernelLatencyModel) -> None:
    known = model.entries[0].kernel
    network = [known, *networks_of(1)[0]]
    assert known not in kernels_for_front(model, [network], [0.1], 10)
    pool = [known, random_kernel(np.random.default_rng(70))]
    assert kernels_for_front(model, [network], [0.1], 10, pool=pool) == [without_seed(pool[1])]
    assert kernels_for_front(model, [[known]], [0.1], 10) == []
    assert kernels_for_front(model, [network], [float("nan")], 10) == []


def test_what_is_chosen_makes_the_front_more_certain_than_chance(model: KernelLatencyModel) -> None:
    networks = networks_of(30)
    errors = np.random.default_rng(1).uniform(0.1, 0.5, 30).tolist()
    before = front_belief(model, networks, errors)

    def variance_with(kernels: list[KernelSpec]) -> float:
        """Of the candidates, as far as they may be on the front; under the same settings."""
        new = [KernelLatency(kernel=k, latency_ns=true_ns(k), std_ns=0.01 * true_ns(k)) for k in kernels]
        then = KernelLatencyModel(model.runtime, [*model.entries, *new], model.base, model.settings)
        return float(before.probability @ front_belief(then, networks, errors).log_std ** 2)

    chosen = kernels_for_front(model, networks, errors, 8)
    distinct = list(dict.fromkeys(without_seed(kernel) for network in networks for kernel in network))
    rng = np.random.default_rng(2)
    by_chance = [variance_with([distinct[i] for i in rng.permutation(len(distinct))[:8]]) for _ in range(5)]
    assert len(chosen) == 8
    assert variance_with(chosen) < min(by_chance) < variance_with([])


class TestSeveralDevices:
    #: Log latencies and deviations of three candidates on two devices: far apart, alike, and the other way round.
    LOGS = np.array([[1.0, 1.0, 1.0], [0.2, 1.0, 1.1]])
    STDS = np.array([[0.03, 0.03, 0.06], [0.04, 0.04, 0.08]])

    @pytest.mark.parametrize("over", list(LatencyOverDevices))
    def test_parts_are_derivatives(self, over: LatencyOverDevices) -> None:
        """Of the likeliest latency; for the slowest of two of its expectation, by sampling."""
        parts = device_parts(self.LOGS, self.STDS, over)
        assert parts.sum(axis=0) == pytest.approx(np.ones(3))
        if over is LatencyOverDevices.MAX:
            drawn = self.LOGS + self.STDS * np.random.default_rng(0).standard_normal((40_000, 2, 1))
            assert parts[0] == pytest.approx((drawn[:, 0] > drawn[:, 1]).mean(axis=0), abs=0.01)
            assert parts[0] == pytest.approx([1.0, 0.5, 0.1587], abs=1e-4)
            return
        step = 1e-6
        moved = self.LOGS + np.array([[step], [0.0]])
        slope = (np.log(over_devices(np.exp(moved.T), over)) - np.log(over_devices(np.exp(self.LOGS.T), over))) / step
        assert parts[0] == pytest.approx(slope, rel=1e-4)

    def test_one_device_is_all_of_it_and_three_share(self) -> None:
        for over in LatencyOverDevices:
            np.testing.assert_array_equal(device_parts(self.LOGS[:1], self.STDS[:1], over), np.ones((1, 3)))
        alike = device_parts(np.zeros((3, 2)), np.zeros((3, 2)), LatencyOverDevices.MAX)
        np.testing.assert_allclose(alike, np.full((3, 2), 1 / 3))
        assert device_parts([[0.0], [0.1], [9.0]], np.zeros((3, 1)), LatencyOverDevices.MAX).ravel().tolist() == [
            0,
            0,
            1,
        ]

    def test_a_device_counts_where_it_may_decide_or_has_a_bound(self) -> None:
        belief = belief_over(list(zip(self.LOGS, self.STDS, strict=True)), [0.3, 0.2, 0.1], LatencyOverDevices.MAX)
        assert belief.log_latency == pytest.approx([1.0, 1.0, 1.1])
        assert belief.log_std == pytest.approx([0.03, 0.025, np.hypot(0.1587 * 0.06, 0.8413 * 0.08)], rel=1e-3)
        assert (belief.probability >= MIN_PROBABILITY).all()
        assert belief.importance(1)[0] == 0.0  # it is certainly not the slower one
        assert belief.importance(0)[0] == pytest.approx(belief.probability[0])
        assert belief.importance(1)[2] == pytest.approx(belief.probability[2] * 0.8413**2, rel=1e-3)
        np.testing.assert_array_equal(belief.importance(1, is_bounded=True), belief.probability)

    def test_latencies_are_those_of_whole_networks(self, model: KernelLatencyModel) -> None:
        networks = networks_of(3)
        form, none = CorrectionForm.WEIGHTS, ()
        correction = Correction(
            form=form, scale=2.0, weight_byte_ns=3.0, offset_ns=1e4, relative_residuals=none, relative_std=0.0
        )
        expected = [
            (2.0 * model.predict_all(network)[0] + 3.0 * model.weight_bytes(network)).sum() + 1e4
            for network in networks
        ]
        assert np.exp(device_belief(model, correction, networks)[0]) == pytest.approx(expected)

    def test_what_never_decides_is_not_asked_for_kernels(self, model: KernelLatencyModel) -> None:
        networks, errors = networks_of(12), np.linspace(0.1, 0.5, 12).tolist()
        sums = np.exp(front_belief(model, networks, errors).log_latency)
        corrections = [correction_of_sums(sums, np.zeros_like(sums), factor * sums) for factor in (1.0, 20.0)]
        devices = [device_belief(model, correction, networks) for correction in corrections]
        belief = belief_over(devices, errors, LatencyOverDevices.MAX)
        assert kernels_for(model, networks, belief.importance(0), 5) == []
        slower = belief_over(devices[1:], errors, LatencyOverDevices.MAX).importance(0)
        assert len(kernels_for(model, networks, belief.importance(1), 5)) == 5
        assert kernels_for(model, networks, belief.importance(1), 5) == kernels_for(model, networks, slower, 5)
