"""Choices that do not pay: a genome that takes one stands for another, which is never slower and keeps more weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from device_agent.contracts import DENSE, KernelSpec, PruningScheme, WeightPruning
from search.canonical import CanonicalForm
from search.domain.config import ChannelsConfig, DepthConfig, SpaceConfig, WeightsConfig
from search.domain.result import ExcludedChoices
from search.domain.space import Genome, SchemeChoice, SearchSpace, VariableKind
from search.genome_costs import GenomeCosts, KernelCost
from search.lowering import lower
from search.space_builder import build_space
from search.unprofitable import ProfitableForm
from tests.unit.search.pruning.pruning_networks import traced
from tests.unit.search.sample_networks import resnet_spec

SPEC = resnet_spec()
SCHEMES = ("group:4x1", "unstructured", "pattern:4x1/4")
SPACE = build_space(
    SPEC,
    SpaceConfig(
        channels=ChannelsConfig(max_choices=3),
        weights=WeightsConfig(densities=(0.2, 0.5, 0.8, 1.0), schemes=SCHEMES),
        depth=DepthConfig(),
    ),
)


def board_ns(kernel: KernelSpec) -> float:
    """Sparse loops cost 40 % more for each multiply-accumulate, and something for each channel."""
    if kernel.pruning == DENSE:
        return 100.0 + kernel.macs
    return 100.0 + 1.4 * kernel.macs + 2000.0 * kernel.in_channels


def phone_ns(kernel: KernelSpec) -> float:
    """Unstructured zeros cost something, others gain almost all that they promise."""
    factor = 1.1 if kernel.pruning.scheme is PruningScheme.UNSTRUCTURED else float(kernel.pruning.density) ** 0.9
    return 50.0 + factor * kernel.dense_macs


def form_of(space: SearchSpace, *costs: KernelCost) -> ProfitableForm:
    found = GenomeCosts(SPEC, space, {str(i): cost for i, cost in enumerate(costs)})
    return ProfitableForm(space, {name: found.sum_tables(name) for name in found.names}, found.with_sums)


def random_genomes(space: SearchSpace, count: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, space.num_choices, size=(count, len(space.variables)))


def kernels_of(space: SearchSpace, row: np.ndarray) -> dict[str, KernelSpec]:
    genome: Genome = tuple(int(g) for g in row)
    return {op.name: op.kernel for op in lower(SPEC, space.decode(genome)).ops}


def offered(space: SearchSpace, operator: str) -> set[WeightPruning]:
    """All prunings of an operator."""
    choices = {v.kind: v.choices for v in space.variables if v.target == operator}
    schemes = [SchemeChoice.parse(str(text)) for text in choices.get(VariableKind.SCHEME, (space.default_scheme,))]
    return {s.with_density(float(d)) for s in schemes for d in choices.get(VariableKind.DENSITY, (1.0,))}


def keeps_more(pruning: WeightPruning, than: WeightPruning) -> bool:
    if pruning == DENSE:
        return than != DENSE
    parts = [(p.scheme, p.block_filters, p.block_channels, p.pattern_entries) for p in (pruning, than)]
    return parts[0] == parts[1] and pruning.density > than.density


@pytest.mark.parametrize("costs", [(board_ns,), (phone_ns,), (board_ns, phone_ns)], ids=["board", "phone", "both"])
def test_each_layer_takes_the_densest_pruning_that_is_no_slower(costs: tuple[KernelCost, ...]) -> None:
    form = form_of(SPACE, *costs)
    genomes = random_genomes(SPACE, 40)
    found = form(genomes)
    replaced = kept = 0
    for row, other in zip(genomes, found, strict=True):
        before, after = kernels_of(SPACE, row), kernels_of(SPACE, other)
        assert before.keys() == after.keys()
        for operator, kernel in before.items():
            own = kernel.pruning
            denser = [kernel]
            for pruning in offered(SPACE, operator):
                if keeps_more(pruning, own):
                    trial = replace(kernel, pruning=pruning)
                    denser += [trial] if all(cost(trial) <= cost(kernel) for cost in costs) else []
            assert after[operator] == max(denser, key=lambda k: k.pruning.density)
            replaced += after[operator] != kernel
            kept += own != DENSE and after[operator] == kernel
    assert replaced > 20
    assert kept > 20


def test_it_is_idempotent_alone_and_with_the_canonical_form() -> None:
    form, canonical = form_of(SPACE, board_ns, phone_ns), CanonicalForm(SPEC, SPACE)
    genomes = random_genomes(SPACE, 200)
    once = form(genomes)
    np.testing.assert_array_equal(form(once), once)
    designs = canonical(form(genomes))
    np.testing.assert_array_equal(canonical(form(designs)), designs)
    # Equal designs stay equal.
    np.testing.assert_array_equal(canonical(form(canonical(genomes))), designs)
    # Only densities and schemes are changed.
    others = [p for p, v in enumerate(SPACE.variables) if v.kind not in (VariableKind.DENSITY, VariableKind.SCHEME)]
    np.testing.assert_array_equal(once[:, others], genomes[:, others])
    assert form(np.empty((0, len(SPACE.variables)), dtype=np.int64)).shape == (0, len(SPACE.variables))


def test_layers_that_read_many_groups_are_looked_at_by_their_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    _, spec = traced("joined")
    config = SpaceConfig(
        channels=ChannelsConfig(multiple_of=1, max_choices=8), weights=WeightsConfig(densities=(0.2, 0.5, 1.0))
    )
    space = build_space(spec, config)
    monkeypatch.setattr("search.genome_costs._MAX_TABLE_CELLS", 10)
    costs = GenomeCosts(spec, space, {"ns": board_ns})
    form = ProfitableForm(space, {"ns": costs.sum_tables("ns")}, costs.with_sums)
    genomes = random_genomes(space, 40)
    found = form(genomes)
    assert (found != genomes).any()
    for before, after in zip(genomes, found, strict=True):
        plans = [lower(spec, space.decode(tuple(int(g) for g in row))) for row in (before, after)]
        for old, new in zip(*(plan.kernels for plan in plans), strict=True):
            assert board_ns(new) <= board_ns(old)
            assert new.pruning == DENSE or board_ns(new) < board_ns(replace(new, pruning=DENSE))


def test_choices_are_counted_by_layer_and_shape() -> None:
    space = build_space(SPEC, SpaceConfig(weights=WeightsConfig(densities=(0.5, 0.8, 1.0))))
    layers = len(space.variables)

    def dearest_at_08(kernel: KernelSpec) -> float:
        return kernel.pruning.density if kernel.pruning.density != 0.8 else 2.0

    assert form_of(space, dearest_at_08).excluded == ExcludedChoices(pruned=2 * layers, excluded=layers)
    # Of two devices, one that gains is enough to keep a choice.
    assert form_of(space, dearest_at_08, lambda k: k.pruning.density).excluded.excluded == 0
    assert form_of(space, lambda _: 1.0).excluded == ExcludedChoices(pruned=2 * layers, excluded=2 * layers)
    # Removed layers have no choices; patterns at two densities above 4/9 are one.
    several = SpaceConfig(weights=WeightsConfig(densities=(0.2, 0.5, 0.8, 1.0), schemes=SCHEMES), depth=DepthConfig())
    space = build_space(SPEC, several)
    by_layer = [offered(space, op.name) - {DENSE} for op in SPEC.plan.ops if op.name in SPEC.prunable_ops]
    costs = GenomeCosts(SPEC, space, {"ns": board_ns})
    form = ProfitableForm(space, {"ns": costs.sum_tables("ns")}, costs.with_sums)
    assert form.excluded.pruned == sum(len(prunings) for prunings in by_layer)
