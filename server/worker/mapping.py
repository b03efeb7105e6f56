"""What the methods that map schemes to layers know before they search: latency tables, and rates found once."""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch

from device_agent.contracts import PruningScheme, WeightPruning
from search.domain.config import DataDifficulty, MappingConfig, Method, RateSource, TrainingConfig
from search.domain.space import SchemeChoice, SearchSpace, VariableKind
from search.known_figures import NetworkFigures
from search.mapping import MappingInput, RateVector, network_layers
from search.pruning.apply import PrunedModel
from search.rates import threshold_rates
from search.training.finetuning import finetune
from search.training.reweighted import ReweightedRegulariser, group_scores
from search.training.sgd import EpochReport, Watcher
from server.searches.repository import get_document
from server.states import JobStage
from server.worker.run import SearchRun
from server.worker.stages.preparing import Prepared

#: The document with the rates, once they are found: a search that is taken up again does not look for them twice.
MAPPING_RATES = "mapping-rates"

_METHODS = frozenset({Method.RULE_MAPPING, Method.POLICY_GRADIENT})


def mapping_input(run: SearchRun, prepared: Prepared, figures: NetworkFigures) -> MappingInput | None:
    """The layers and rates of the search's network; None where its method has no use for them."""
    if run.config.method.name not in _METHODS:
        return None
    config = run.config.mapping or MappingConfig()
    return MappingInput(
        layers=network_layers(prepared.spec, prepared.space, figures.latency_tables(), figures.with_sums),
        rates=_rates(run, prepared, config),
        betas=config.betas,
        patterns_on_3x3=config.data is DataDifficulty.HARD,
    )


def _rates(run: SearchRun, prepared: Prepared, config: MappingConfig) -> tuple[RateVector, ...]:
    groups = rated_groups(prepared.space)
    if not groups:
        return ()
    with run.database.read() as session:
        text = get_document(session, run.search_id, MAPPING_RATES)
    if text is None:
        found = _found(run, prepared, config, groups)
        text = json.dumps({"rates": [{"target": r.target, "densities": dict(r.densities)} for r in found]})
        run.put_document(MAPPING_RATES, text)
    return tuple(RateVector(target=r["target"], densities=r["densities"]) for r in json.loads(text)["rates"])


def _found(
    run: SearchRun, prepared: Prepared, config: MappingConfig, groups: Mapping[str, WeightPruning]
) -> tuple[RateVector, ...]:
    model = prepared.model
    checkpoint = run.work_dir / "mapping-rates.safetensors"
    if config.rates is RateSource.REWEIGHTED:
        run.message(f"looking for pruning rates: {config.epochs:g} epochs of reweighted regularisation")

        def on_epoch(report: EpochReport) -> None:
            run.got_further()
            note = f"pruning rates, epoch {report.epoch} of {report.epochs:g}"
            run.progress(JobStage.SEARCHING, 0, run.config.method.generations, note)

        settings = TrainingConfig(
            epochs=config.epochs,
            batch_size=run.config.training.batch_size,
            learning_rate=config.learning_rate,
            distillation=0.0,
        )
        model = finetune(
            PrunedModel(model=model, masks={}, kept={}),
            prepared.data,
            settings,
            torch.Generator().manual_seed(run.config.method.seed),
            regulariser=ReweightedRegulariser(groups, config.strength, config.epochs),
            watcher=Watcher(on_epoch=on_epoch, on_step=run.check, checkpoint_path=checkpoint),
        ).model
    macs = {op.name: float(op.kernel.dense_macs) for op in prepared.spec.plan.ops}
    found = threshold_rates(
        group_scores(model, groups), macs, config.targets, min_density=_smallest_densities(prepared.space)
    )
    for rates in found:
        values = rates.densities.values()
        run.message(
            f"pruning rates that keep {rates.target:g} of the multiply-accumulates ({config.rates.value}): densities "
            f"from {min(values):.2f} to {max(values):.2f}"
        )
    checkpoint.unlink(missing_ok=True)
    return found


def rated_groups(space: SearchSpace) -> dict[str, WeightPruning]:
    """For each layer whose density varies the groups that are regularised: of its first scheme with blocks."""
    offered = {
        v.target: [SchemeChoice.parse(str(c)) for c in v.choices]
        for v in space.variables
        if v.kind is VariableKind.SCHEME
    }
    groups = {}
    for variable in space.variables:
        if variable.kind is VariableKind.DENSITY:
            schemes = offered.get(variable.target, [space.default_scheme])
            sparse = [s for s in schemes if s.scheme is not PruningScheme.DENSE]
            # Kernels of patterns are only ranked where nothing finer is offered.
            sparse.sort(key=lambda s: s.scheme is PruningScheme.PATTERN)
            groups[variable.target] = sparse[0].with_density(float(variable.choices[0]))
    return groups


def _smallest_densities(space: SearchSpace) -> dict[str, float]:
    return {v.target: float(v.choices[0]) for v in space.variables if v.kind is VariableKind.DENSITY}
