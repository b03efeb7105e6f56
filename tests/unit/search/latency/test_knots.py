"""Knots: few enough, and every candidate lies between them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import ContractError, KernelSpec, PruningScheme, Source
from search.domain.config import ChannelsConfig, SpaceConfig, WeightsConfig
from search.domain.space import SchemeChoice, SearchSpace, Variable, VariableKind
from search.latency.families import coordinates_of, family_of, kernel_at
from search.latency.knots import even_knots, knots_for
from search.latency.network import sum_kernels
from search.latency.predictor import LatencyPredictor
from search.latency.table import KernelLatency, LatencyTable
from search.lowering import lower
from search.space_builder import build_space
from tests.unit.search.pruning.pruning_networks import traced
from tests.unit.search.sample_networks import mobile_spec, resnet_spec

RESNET = resnet_spec()
MOBILE = mobile_spec()
JOINED = traced("joined")[1]
CONFIG = SpaceConfig(channels=ChannelsConfig(), weights=WeightsConfig())


def latency_ns(kernel: KernelSpec) -> float:
    """A microsecond a kernel and a nanosecond a MAC: linear in each coordinate, so that interpolation is exact."""
    return 1000.0 + kernel.dense_macs * kernel.pruning.density


def predictor_of(kernels: tuple[KernelSpec, ...]) -> LatencyPredictor:
    entries = tuple(KernelLatency(kernel=k, latency_ns=latency_ns(k)) for k in kernels)
    return LatencyPredictor(
        LatencyTable(
            device_id="d", setup_id="m", runtime="r", runtime_version="1", source=Source.SIMULATED, kernels=entries
        )
    )


def test_even_knots() -> None:
    assert even_knots((0.2, 0.3, 0.4, 0.5, 0.6, 0.8), 4) == (0.2, 0.4, 0.6, 0.8)
    assert even_knots((8, 12, 16, 20, 24, 28, 32), 4) == (8, 16, 24, 32)
    assert even_knots((4, 8), 4) == (4, 8)
    assert even_knots((1, 2, 100), 2) == (1, 100)


def test_resnet20_needs_a_few_hundred_at_most() -> None:
    knots = knots_for(RESNET, build_space(RESNET, CONFIG), 400)
    assert 100 <= len(knots) <= 250
    assert len(set(knots)) == len(knots)
    deeper = resnet_spec(9)
    assert set(knots_for(deeper, build_space(deeper, CONFIG), 400)) == set(knots)  # families are shared


def test_dense_kernels_are_always_measured() -> None:
    for limit in (400, 60):
        assert set(RESNET.plan.kernels) <= set(knots_for(RESNET, build_space(RESNET, CONFIG), limit))


@pytest.mark.parametrize("limit", [400, 168, 167, 120, 80, 56])
def test_limit_coarsens_but_drops_no_family(limit: int) -> None:
    space = build_space(RESNET, CONFIG)
    full = {family_of(k) for k in knots_for(RESNET, space, 400)}
    knots = knots_for(RESNET, space, limit)
    assert len(knots) <= limit
    assert {family_of(k) for k in knots} == full


def test_too_small_a_limit_names_what_is_needed() -> None:
    with pytest.raises(ContractError, match=r"need at least \d+ kernels, but max_kernels is 20"):
        knots_for(RESNET, build_space(RESNET, CONFIG), 20)


def test_kernel_at_inverts_coordinates() -> None:
    for kernel in (*RESNET.plan.kernels, *MOBILE.plan.kernels, *JOINED.plan.kernels):
        assert kernel_at(kernel, coordinates_of(kernel)) == kernel


CASES = {
    "resnet-60": (RESNET, build_space(RESNET, CONFIG), 60),
    "resnet-400": (RESNET, build_space(RESNET, CONFIG), 400),
    "mobile-schemes": (
        MOBILE,
        build_space(
            MOBILE,
            SpaceConfig(
                channels=ChannelsConfig(multiple_of=1, max_choices=6),
                weights=WeightsConfig(
                    schemes=("group:4x1", "pattern:4x1/4", "block_punched:4x2"), stem_min_density=0.2
                ),
            ),
        ),
        400,
    ),
    "joined": (
        JOINED,
        build_space(JOINED, SpaceConfig(channels=ChannelsConfig(multiple_of=1, max_choices=5))),
        400,
    ),
    "resolution": (
        RESNET,
        SearchSpace(
            variables=(
                Variable(kind=VariableKind.RESOLUTION, target="", choices=(24, 32)),
                Variable(kind=VariableKind.CHANNELS, target="layer2.1.conv1", choices=(8, 20, 32)),
            ),
            default_scheme=SchemeChoice(scheme=PruningScheme.DENSE),
        ),
        100,
    ),
}
PREDICTORS = {name: predictor_of(knots_for(spec, space, limit)) for name, (spec, space, limit) in CASES.items()}


@settings(max_examples=80, deadline=None)
@given(name=st.sampled_from(sorted(CASES)), data=st.data())
def test_every_candidate_is_predicted(name: str, data: st.DataObject) -> None:
    spec, space, _ = CASES[name]
    genome = tuple(data.draw(st.integers(0, n - 1)) for n in space.num_choices)
    plan = lower(spec, space.decode(genome))
    predicted = sum_kernels(PREDICTORS[name], plan.kernels).latency_ns
    assert predicted == pytest.approx(sum(map(latency_ns, plan.kernels)))
