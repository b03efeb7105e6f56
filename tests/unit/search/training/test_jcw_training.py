"""ADMM against its formulas, and JCW's three phases: what they keep, and that they survive being killed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from device_agent.contracts import ContractError, PruningScheme, WeightPruning
from search.data.loading import LoadedData, load_data
from search.domain.config import DatasetConfig, InitialWeights, Regime, TrainingConfig, parse_config
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.evaluation import evaluate
from search.models.zoo import build_model
from search.pruning.apply import PrunedModel, apply_decisions
from search.pruning.fold import to_plan_tensors
from search.pruning.masks import mask_for
from search.pruning.trace import trace_network
from search.training.admm import Admm
from search.training.finetuning import train_from_scratch
from search.training.jcw import admm_penalty, jcw_phases, train_jcw
from search.training.sgd import EpochReport, SgdRun, SgdSettings, Watcher
from tests.unit.search.training.stopping import StopAfter, Stopped

GROUP = WeightPruning(scheme=PruningScheme.GROUP, density=0.3, block_filters=4)
SCHEMES = {
    "conv2": GROUP,
    "conv3": WeightPruning(scheme=PruningScheme.BLOCK_PUNCHED, density=0.4, block_filters=8, block_channels=4),
    "conv4": WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.3),
    "conv5": WeightPruning(
        scheme=PruningScheme.PATTERN, density=0.3, block_filters=4, block_channels=1, pattern_entries=4
    ),
}
DECISIONS = Decisions(channels={"conv4": 32}, pruning=SCHEMES)
#: 240 epochs become 2.4.
SHORT = TrainingConfig(regime=Regime.JCW, batch_size=64, schedule_factor=0.01)


@pytest.fixture(scope="module")
def data() -> LoadedData:
    return load_data(DatasetConfig(name="digits"), input_shape=(1, 8, 8), calibration_images=128)


@pytest.fixture(scope="module")
def trained(data: LoadedData) -> nn.Module:
    return train_from_scratch(build_model("small_cnn"), data, 4, seeded(0))


@pytest.fixture(scope="module")
def spec(trained: nn.Module) -> NetworkSpec:
    return trace_network(trained, (1, 8, 8), "small_cnn")


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_admm_follows_its_formulas() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3))
    weight = model[0].weight
    admm = Admm({"0": GROUP}, period_steps=2, penalty=0.1)
    admm.begin(model)

    start = weight.detach().numpy().copy()
    projected = start * mask_for(start, GROUP)
    dual = start - projected
    moved = start
    for step in range(3):
        weight.grad = torch.ones_like(weight)
        admm.add_gradients(model)
        np.testing.assert_allclose(weight.grad.numpy(), 1.0 + 0.1 * (moved - projected + dual), rtol=1e-5)
        weight.data += step + 1.0
        moved = moved + np.float32(step + 1.0)
        admm.after_step(model, step)
        if step == 1:
            projected = (moved + dual) * mask_for(moved + dual, GROUP)
            dual = dual + moved - projected


def test_admm_gathers_the_weights_in_what_their_schemes_keep(
    trained: nn.Module, spec: NetworkSpec, data: LoadedData
) -> None:
    thin = apply_decisions(trained, spec, Decisions(channels=DECISIONS.channels))
    settings = SgdSettings(
        epochs=3, batch_size=64, learning_rate=jcw_phases(512, 1.0).admm.learning_rate, weight_decay=1e-4
    )

    def cut_off(pruned: PrunedModel, pruning: dict[str, WeightPruning]) -> dict[str, float]:
        return {n: Admm({n: p}, period_steps=1).relative_residual(pruned.model) for n, p in pruning.items()}

    before = cut_off(thin, SCHEMES)
    with_admm = SgdRun(thin, data, settings, 0, regulariser=Admm(SCHEMES, period_steps=1, penalty=0.5)).finish()
    without = cut_off(SgdRun(thin, data, settings, 0).finish(), SCHEMES)

    after = cut_off(with_admm, SCHEMES)
    for name in SCHEMES:
        assert after[name] < 0.85 * min(before[name], without[name]), name
    assert evaluate(with_admm.model, data.split.test, data.normalise).accuracy > 0.8


def test_the_published_schedule() -> None:
    published = jcw_phases(512, 1.0)
    assert [p.epochs for p in (published.regular, published.admm, published.fine_tuning)] == [120, 60, 60]
    assert published.regular.learning_rate.peak == 0.256
    assert [published.admm.learning_rate.at(step, 100) for step in (0, 50, 99)] == [0.005] * 3
    assert [p.weight_decay for p in (published.regular, published.admm, published.fine_tuning)] == [1e-4, 1e-4, 0.0]
    assert [p.label_smoothing for p in (published.regular, published.admm, published.fine_tuning)] == [0.0, 0.1, 0.0]

    short = jcw_phases(128, 0.1)
    assert [p.epochs for p in (short.regular, short.admm, short.fine_tuning)] == [12, 6, 6]
    assert short.regular.learning_rate.peak == pytest.approx(0.064)
    assert short.fine_tuning.learning_rate.peak == pytest.approx(0.00125)


def test_the_published_penalty_is_raised_where_steps_are_few() -> None:
    imagenet_steps = 60 * (1_281_167 // 512)
    assert admm_penalty(0.005, imagenet_steps) == 0.01
    assert admm_penalty(0.000625, 48) == pytest.approx(2.0)


@pytest.mark.parametrize(("weights", "accuracy"), [(InitialWeights.INHERITED, 0.7), (InitialWeights.FRESH, 0.4)])
def test_the_three_phases_train_what_the_plan_says(
    trained: nn.Module, spec: NetworkSpec, data: LoadedData, weights: InitialWeights, accuracy: float
) -> None:
    settings = TrainingConfig(regime=Regime.JCW, batch_size=64, schedule_factor=0.04, initial_weights=weights)
    reports: list[EpochReport] = []
    residuals: list[float] = []
    result = train_jcw(
        trained,
        spec,
        DECISIONS,
        data,
        settings,
        seeded(1),
        watcher=Watcher(on_epoch=reports.append),
        on_admm=residuals.append,
    )

    assert evaluate(result.model, data.split.test, data.normalise).accuracy > accuracy
    assert [r.phase for r in reports] == ["regular"] * 5 + ["admm"] * 3 + ["fine-tuning"] * 3
    assert 0.0 < residuals[0] < 0.9
    one_shot = apply_decisions(trained, spec, DECISIONS)
    assert {n: int(m.sum()) for n, m in result.masks.items()} == {n: int(m.sum()) for n, m in one_shot.masks.items()}
    assert any(not torch.equal(result.masks[name], mask) for name, mask in one_shot.masks.items())
    _, tensors = to_plan_tensors(result, spec, DECISIONS)
    assert all(not tensors[f"{name}.weight"][~mask.numpy()].any() for name, mask in result.masks.items())


def test_a_killed_training_ends_with_the_same_bits(
    trained: nn.Module, spec: NetworkSpec, data: LoadedData, tmp_path: Path
) -> None:
    def run(watcher: Watcher | None) -> PrunedModel:
        return train_jcw(trained, spec, DECISIONS, data, SHORT, seeded(5), watcher=watcher)

    whole = run(None)
    path = tmp_path / "run.safetensors"
    seen: list[str] = []
    # Stops in each phase, once with the work since the last checkpoint lost.
    steps = round(1.2 * (len(data.split.train) // 64))
    for count, interval_s in ((3, 0.0), (steps, 0.0), (2, 3600.0), (6, 0.0), (steps // 2, 0.0)):
        watcher = Watcher(
            on_epoch=lambda report: seen.append(report.phase),
            on_step=StopAfter(count),
            checkpoint_path=path,
            checkpoint_interval_s=interval_s,
        )
        with pytest.raises(Stopped):
            run(watcher)
    watcher = Watcher(on_epoch=lambda report: seen.append(report.phase), checkpoint_path=path)
    resumed = run(watcher)

    assert sorted(set(seen)) == ["admm", "fine-tuning", "regular"]
    other = resumed.model.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in whole.model.state_dict().items())
    assert all(torch.equal(mask, resumed.masks[name]) for name, mask in whole.masks.items())
    watcher.remove_checkpoints()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("training", "named"),
    [
        ({"schedule_factor": 0.5}, "training.schedule_factor belongs to the regime 'jcw'"),
        ({"initial_weights": "fresh"}, "training.initial_weights belongs to the regime 'jcw'"),
        ({"regime": "jcw", "epochs": 3}, "training.epochs belongs to the regime 'finetune'"),
        ({"regime": "jcw", "distillation": 0.1}, "training.distillation belongs to the regime 'finetune'"),
        ({"regime": "jcw", "schedule_factor": 0}, "schedule_factor 0"),
        ({"regime": "jkw"}, "jkw"),
    ],
)
def test_contradictions_are_refused(training: dict[str, object], named: str) -> None:
    config = {
        "name": "x",
        "model": {"architecture": "small_cnn"},
        "dataset": {"name": "digits"},
        "space": {"channels": {}},
        "training": training,
    }
    with pytest.raises(ContractError, match=named):
        parse_config(config)
