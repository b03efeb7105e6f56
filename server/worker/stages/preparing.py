"""PREPARING: data, weights, the traced network with its proved groups, and the search space."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from search.algorithms.repair import least_violating
from search.data.loading import LoadedData, load_data
from search.domain.architectures import ARCHITECTURES
from search.domain.config import DatasetConfig
from search.domain.network import NetworkSpec
from search.domain.objective import Constraint
from search.domain.space import Decisions, Genome, SearchSpace
from search.evaluation import evaluate
from search.known_figures import PLAN_METRICS, bounds_problem, plan_figures
from search.lowering import lower
from search.models.checkpoint import load_checkpoint, save_checkpoint
from search.models.zoo import build_model
from search.networks.build import build_classifier
from search.networks.file import read_network
from search.pruning.resolution import check_resolutions
from search.pruning.trace import trace_network
from search.space_builder import build_space, check_budget
from search.training.finetuning import train_from_scratch
from search.training.sgd import EpochReport, Watcher
from server.states import JobStage
from server.worker.run import SearchRun

STAGE = JobStage.PREPARING

#: Below this many multiply-accumulates a step takes about 10 ms on one core, and waiting for other threads in every
#: operator costs more than they help: small_cnn at batch 64 (0.1 G) trained 3.5 times faster on one thread than on two.
MIN_SHARED_MACS = 1 << 30

#: What torch takes by itself: the cores that this process may use, or OMP_NUM_THREADS.
_ALL_THREADS = torch.get_num_threads()


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """The unpruned network and its problem. `baseline_accuracy` is on the test set."""

    model: nn.Module
    spec: NetworkSpec
    space: SearchSpace
    data: LoadedData
    baseline_accuracy: float


def prepare(run: SearchRun) -> Prepared:
    """Load or train the network, trace it and build the space. What was done before is read back."""
    config = run.config
    found = run.load(STAGE)
    if found is None:
        run.enter(STAGE)
    base = _base_network(run)
    input_shape = base.input_shape
    data = load_data(
        _with_paths(run),
        input_shape=input_shape,
        calibration_images=config.accuracy.calibration_images,
        cache_dir=run.settings.data_dir / "cache",
    )
    model = base.build(data.split.train.num_classes)
    spec = trace_network(model, input_shape, base.name)
    torch.set_num_threads(_num_threads(spec, config.training.batch_size))
    if found is not None:
        saved = found[1]
        load_checkpoint(model, run.artifact_path(saved["model_sha256"]))
        baseline_accuracy = float(saved["baseline_accuracy"])
    else:
        digest = _weights(run, model, data)
        baseline_accuracy = evaluate(model, data.split.test, data.normalise).accuracy
    space = build_space(spec, config.space)
    if found is None:
        check_resolutions(model, spec, space)
        _check_budget_before_measuring(run, spec, space)
        _tell(run, spec, space, baseline_accuracy)
        run.save(STAGE, 0, {"model_sha256": digest, "baseline_accuracy": baseline_accuracy})
    return Prepared(model=model, spec=spec, space=space, data=data, baseline_accuracy=baseline_accuracy)


@dataclass(frozen=True, slots=True, kw_only=True)
class _BaseNetwork:
    """The network of a search before it is built; `build` takes the number of classes."""

    name: str
    input_shape: tuple[int, int, int]
    build: Callable[[int], nn.Module]


def _base_network(run: SearchRun) -> _BaseNetwork:
    """The zoo's architecture, or the user's own network. Raises `ContractError` where that is not sound."""
    name, own = run.config.model.architecture, run.config.model.network
    if own is not None:
        network = read_network(run.artifact_path(own))
        document = network.document
        return _BaseNetwork(
            name=document.name,
            input_shape=document.input.shape,
            build=lambda num_classes: build_classifier(network, num_classes).model,
        )
    assert name is not None
    shape = ARCHITECTURES[name].input_shape
    return _BaseNetwork(
        name=name,
        input_shape=shape,
        build=lambda num_classes: build_model(name, num_classes=num_classes, input_shape=shape),
    )


def _num_threads(spec: NetworkSpec, batch_size: int) -> int:
    """Threads that torch should use for this network: all there are, or one where a step is too short to share."""
    return 1 if spec.plan.macs * batch_size < MIN_SHARED_MACS else _ALL_THREADS


def _with_paths(run: SearchRun) -> DatasetConfig:
    """The data set's config with files in place of the digests of its zips."""
    config = run.config.dataset
    if config.train is None or config.test is None:
        return config
    train, test = run.artifact_path(config.train), run.artifact_path(config.test)
    return dataclasses.replace(config, train=str(train), test=str(test))


def _weights(run: SearchRun, model: nn.Module, data: LoadedData) -> str:
    """Fill in the weights: those of the user's network or checkpoint, or trained here. Returns the artifact that holds
    them.
    """
    if run.config.model.network is not None:
        return run.config.model.network
    checkpoint = run.config.model.checkpoint
    if checkpoint is not None:
        load_checkpoint(model, run.artifact_path(checkpoint))
        return checkpoint
    epochs = run.config.model.train_epochs
    run.message(f"no checkpoint given: training {run.config.model.architecture} for {epochs} epochs")

    def on_epoch(report: EpochReport) -> None:
        run.progress(STAGE, report.epoch, epochs, "epochs")

    trained = train_from_scratch(
        model,
        data,
        epochs,
        torch.Generator().manual_seed(run.config.method.seed),
        watcher=Watcher(
            on_epoch=on_epoch, on_step=run.check, checkpoint_path=run.work_dir / "base-training.safetensors"
        ),
    )
    path = run.work_dir / "base.safetensors"
    save_checkpoint(trained, path)
    load_checkpoint(model, path)
    return run.put_artifact(path.read_bytes())


def _check_budget_before_measuring(run: SearchRun, spec: NetworkSpec, space: SearchSpace) -> None:
    """Refuse bounds on MACs, parameters and bytes that cannot be met, alone or together, before the device spends time
    on the search.
    """

    def count(genome: Genome, bound: Constraint) -> float:
        return plan_figures(lower(spec, space.decode(genome)))[bound.metric]

    known = [c for c in run.config.constraints if c.metric in PLAN_METRICS]
    check_budget(space, known, count)
    if len(known) > 1:
        least_violating(bounds_problem(spec, space, known))


def _tell(run: SearchRun, spec: NetworkSpec, space: SearchSpace, baseline_accuracy: float) -> None:
    dense = lower(spec, Decisions())
    run.message(
        f"{spec.architecture}: {dense.macs / 1e6:.1f} M MACs, {dense.parameters / 1e3:.1f} k parameters, "
        f"{100 * baseline_accuracy:.2f} % on the test set; {len(spec.groups)} pruning groups proved, "
        f"{len(spec.refused)} kept dense; {len(spec.blocks)} blocks can be removed; {len(space.variables)} variables"
    )
