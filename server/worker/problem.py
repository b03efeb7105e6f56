"""The problem of a search as its methods see it: the space, known figures, and error estimates where they are used."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from device_agent.contracts import encode
from search.canonical import CanonicalForm
from search.domain.config import Method
from search.domain.objective import Metric
from search.domain.space import Genome
from search.known_figures import NetworkFigures
from search.parallel.crew import Crew
from search.pareto import FloatArray, IntArray
from search.problem import SearchProblem
from search.reconstruction.estimates import ErrorEstimates, errors_from_json, errors_to_json, estimate_errors
from search.unprofitable import ProfitableForm
from server.searches.repository import EXCLUDED_CHOICES, LAYER_ERRORS, get_document
from server.states import JobStage
from server.worker.evaluating import make_one_shot_estimator
from server.worker.mapping import mapping_input
from server.worker.run import SearchFailed, SearchRun
from server.worker.stages.preparing import Prepared


def make_problem(run: SearchRun, prepared: Prepared, figures: NetworkFigures, crew: Crew) -> SearchProblem:
    """What the config states. Errors of layers are estimated once, some by `crew`, and stored with the search."""
    config = run.config
    needs_errors = Method.EXACT in (config.method.name, config.method.seed_with)
    canonical = CanonicalForm(prepared.spec, prepared.space)
    profitable = _profitable_form(run, prepared, figures)

    def designs(genomes: ArrayLike) -> IntArray:
        return canonical(genomes if profitable is None else profitable(genomes))

    def known(genomes: ArrayLike) -> Mapping[Metric, FloatArray]:
        return figures(designs(genomes))

    def known_latencies(genomes: ArrayLike) -> Mapping[str, FloatArray]:
        return figures.latencies_ms(designs(genomes))

    # Tables stay those of all choices: no sum of theirs is below the figure of the design that a genome stands for.
    return SearchProblem(
        space=prepared.space,
        objectives=config.objectives,
        constraints=config.constraints,
        known=figures if profitable is None else known,
        known_metrics=NetworkFigures.METRICS,
        tables=figures.tables,
        known_latencies=figures.latencies_ms if profitable is None else known_latencies,
        device_tables=figures.device_tables,
        canonical=designs,
        errors=_errors(run, prepared, crew).factors if needs_errors else (),
        mapping=mapping_input(run, prepared, figures),
    )


def _profitable_form(run: SearchRun, prepared: Prepared, figures: NetworkFigures) -> ProfitableForm | None:
    """What leaves out choices that do not pay, where the config wants it. The count is told and stored once."""
    if not run.config.excludes_unprofitable:
        return None
    form = ProfitableForm(prepared.space, figures.layer_latencies(), figures.with_sums)
    with run.database.read() as session:
        stored = get_document(session, run.search_id, EXCLUDED_CHOICES)
    if stored is None:
        run.put_document(EXCLUDED_CHOICES, json.dumps(encode(form.excluded)))
        run.message(
            f"{form.excluded.excluded} of {form.excluded.pruned} prunings of layers, each shape counted by itself, are "
            "not tried: a denser one takes no longer"
        )
    return form


def _errors(run: SearchRun, prepared: Prepared, crew: Crew) -> ErrorEstimates:
    with run.database.read() as session:
        stored = get_document(session, run.search_id, LAYER_ERRORS)
    if stored is not None:
        return errors_from_json(stored)
    run.message("estimating what pruning each layer costs in loss")

    def losses(genomes: Sequence[Genome]) -> FloatArray:
        found = make_one_shot_estimator(run, crew).estimate([prepared.space.decode(g) for g in genomes], run.check)
        failures = [estimate.failure for estimate in found if estimate.failure is not None]
        if failures:
            raise SearchFailed(f"a choice of the space could not be evaluated by itself: {failures[0]}")
        return np.array([estimate.loss for estimate in found])

    def on_layer(done: int, total: int) -> None:
        run.check()
        run.progress(JobStage.SEARCHING, done, total, "layers estimated")

    estimates = estimate_errors(
        prepared.model,
        prepared.spec,
        prepared.space,
        prepared.data.split.calibration,
        prepared.data.normalise,
        losses,
        least_squares=run.config.method.reconstruct,
        on_layer=on_layer,
    )
    run.put_document(LAYER_ERRORS, errors_to_json(estimates))
    # What is read back is rounded: a search that is resumed must see the same.
    return errors_from_json(errors_to_json(estimates))
