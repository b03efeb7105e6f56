"""PREPARING: data, weights, the traced network with its proved groups, and the search space."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from search.algorithms.repair import least_violating
from search.data.batches import as_tensors
from search.data.dataset import ImageData
from search.data.loading import LoadedData
from search.domain.architectures import ARCHITECTURES
from search.domain.config import Method
from search.domain.network import NetworkSpec
from search.domain.objective import Constraint
from search.domain.space import Decisions, Genome, SearchSpace
from search.evaluation import evaluate, logits_of
from search.known_figures import PLAN_METRICS, bounds_problem, check_tables, plan_figures
from search.lowering import lower
from search.models.checkpoint import load_checkpoint, save_checkpoint
from search.models.zoo import build_model
from search.networks.build import build_classifier, build_joined
from search.networks.file import Network, read_network
from search.pruning.resolution import check_resolutions
from search.pruning.trace import trace_network
from search.space_builder import build_space, check_budget
from search.tasks.base import CLASSIFICATION, task_of
from search.tasks.own import OwnTask, TaskError, load_task
from search.training.finetuning import train_from_scratch
from search.training.sgd import EpochReport, Watcher
from server.states import JobStage
from server.worker.data import load_search_data
from server.worker.run import SearchRun

STAGE = JobStage.PREPARING

#: On which a task of one's own is tried before anything else is done.
_IMAGES_TRIED = 8

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
    task = load_task(config.task)
    if task is not None and task.follows_geometry and config.space.resolution is not None:
        raise TaskError(
            f"the targets of the task {task.name!r} say where things are in an image, and would be wrong for a resized "
            "one: leave space.resolution out"
        )
    base = _base_network(run, task)
    input_shape = base.input_shape
    data, digests = load_search_data(run, input_shape, None if found is None else found[1], task)
    model = base.build(data.split.train)
    spec = trace_network(model, input_shape, base.name)
    torch.set_num_threads(run.settings.evaluator_threads or _num_threads(spec, config.training.batch_size))
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
        if Method.EXACT in (config.method.name, config.method.seed_with):
            check_tables(spec, space)
        _check_budget_before_measuring(run, spec, space)
        _tell(run, spec, space, f"{prepared_metric(data)}{100 * baseline_accuracy:.2f}")
        prepared = {"model_sha256": digest, "baseline_accuracy": baseline_accuracy, "worker_data": digests}
        run.save(STAGE, 0, prepared | {"metric_name": task_of(data.split.train).metric_name})
    return Prepared(model=model, spec=spec, space=space, data=data, baseline_accuracy=baseline_accuracy)


@dataclass(frozen=True, slots=True, kw_only=True)
class _BaseNetwork:
    """The network of a search before it is built; `build` takes the images that it will be trained on."""

    name: str
    input_shape: tuple[int, int, int]
    build: Callable[[ImageData], nn.Module]


def _base_network(run: SearchRun, task: OwnTask | None) -> _BaseNetwork:
    """The zoo's architecture, or the user's own network. Raises `ContractError` where that is not sound."""
    name, own = run.config.model.architecture, run.config.model.network
    if own is not None:
        network = read_network(run.artifact_path(own))
        document = network.document
        return _BaseNetwork(
            name=document.name,
            input_shape=document.input.shape,
            build=lambda train: _own_model(network, train, task),
        )
    assert name is not None
    shape = ARCHITECTURES[name].input_shape
    return _BaseNetwork(
        name=name,
        input_shape=shape,
        build=lambda train: build_model(name, num_classes=train.num_classes, input_shape=shape),
    )


def _own_model(network: Network, train: ImageData, task: OwnTask | None) -> nn.Module:
    """A user's network, whose outputs the task was seen to take."""
    if task is None:
        return build_classifier(network, train.num_classes).model
    model = build_joined(network).model
    images, targets = as_tensors(train.evenly(_IMAGES_TRIED))
    # Brightness does not matter here: what is tried is whether shapes and types fit.
    with torch.no_grad():
        outputs = logits_of(model, images.permute(0, 3, 1, 2).float() / 255.0)
    task.check(outputs, targets)
    return model


def _num_threads(spec: NetworkSpec, batch_size: int) -> int:
    """Threads that torch should use for this network: all there are, or one where a step is too short to share."""
    return 1 if spec.plan.macs * batch_size < MIN_SHARED_MACS else _ALL_THREADS


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
        run.got_further()
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


def prepared_metric(data: LoadedData) -> str:
    """What stands before a percentage on the test set: nothing where it is accuracy, as everybody expects."""
    task = task_of(data.split.train)
    return "" if task is CLASSIFICATION else f"{task.metric_name} "


def _tell(run: SearchRun, spec: NetworkSpec, space: SearchSpace, baseline: str) -> None:
    dense = lower(spec, Decisions())
    run.message(
        f"{spec.architecture}: {dense.macs / 1e6:.1f} M MACs, {dense.parameters / 1e3:.1f} k parameters, "
        f"{baseline} % on the test set; {len(spec.groups)} pruning groups proved, "
        f"{len(spec.refused)} kept dense; {len(spec.blocks)} blocks can be removed; {len(space.variables)} variables"
    )
