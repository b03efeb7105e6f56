"""TRAINING: the selected candidates, one after the other, resumable between any two steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from search.evaluation import evaluate
from search.models.checkpoint import load_checkpoint, save_checkpoint
from search.pruning.apply import PrunedModel, apply_decisions
from search.standing import accuracy_ci95
from search.training.regimes import CandidateTrainer
from search.training.sgd import EpochReport, Watcher
from server.searches.repository import CandidateRecord, set_candidate_result
from server.states import JobStage
from server.worker.run import SearchFailed, SearchRun
from server.worker.stages.preparing import Prepared, prepared_metric
from server.worker.stages.searching import Front

STAGE = JobStage.TRAINING


def train(run: SearchRun, prepared: Prepared, front: Front) -> None:
    """Train every selected candidate that has no trained weights yet, and take its accuracy on the test set."""
    run.enter(STAGE)
    trainer = CandidateTrainer(
        prepared.model, prepared.spec, prepared.data, run.config.training, run.config.method.seed, run.message
    )
    total = len(front.selected)
    for position, candidate in enumerate(front.selected):
        run.progress(STAGE, position, total, f"candidate {candidate.candidate_id[:10]}")
        if STAGE.value not in candidate.results:
            result = _train_one(run, prepared, trainer, candidate, position, total)
            with run.database.write() as session:
                set_candidate_result(session, run.claim, candidate.candidate_id, STAGE.value, result)
    run.progress(STAGE, total, total)


def load_trained(run: SearchRun, prepared: Prepared, candidate: CandidateRecord) -> PrunedModel:
    """The candidate with its trained weights. Raises `SearchFailed` where it was not trained."""
    result = candidate.results.get(STAGE.value)
    if result is None:
        raise SearchFailed(f"candidate {candidate.candidate_id} has no trained weights: submit the search again")
    pruned = apply_decisions(prepared.model, prepared.spec, prepared.space.decode(candidate.genome))
    load_checkpoint(pruned.model, run.artifact_path(result["weights_sha256"]))
    # Where the zeros are was decided in training.
    masks = {name: pruned.model.get_parameter(f"{name}.weight").detach() != 0 for name in pruned.masks}
    return replace(pruned, masks=masks)


def _train_one(
    run: SearchRun,
    prepared: Prepared,
    trainer: CandidateTrainer,
    candidate: CandidateRecord,
    position: int,
    total: int,
) -> dict[str, Any]:
    short_id = candidate.candidate_id[:10]

    def on_epoch(report: EpochReport) -> None:
        phase = f"{report.phase} " if report.phase else ""
        note = f"candidate {short_id}, {phase}epoch {report.epoch} of {report.epochs:g}"
        run.progress(STAGE, position, total, note)

    watcher = Watcher(
        on_epoch=on_epoch,
        on_step=run.check,
        checkpoint_path=run.work_dir / f"{candidate.candidate_id}.training.safetensors",
    )
    trained = trainer.train(prepared.space.decode(candidate.genome), watcher)
    tested = evaluate(trained.model, prepared.data.split.test, prepared.data.normalise, resolution=trained.resolution)
    path = run.work_dir / f"{candidate.candidate_id}.safetensors"
    save_checkpoint(trained.model, path)
    digest = run.put_artifact(path.read_bytes())
    path.unlink()
    watcher.remove_checkpoints()
    metric = prepared_metric(prepared.data)
    run.message(f"candidate {short_id}: {metric}{100 * tested.accuracy:.2f} % on the test set")
    return {
        "weights_sha256": digest,
        "accuracy": tested.accuracy,
        "accuracy_ci95": list(accuracy_ci95(tested.accuracy, len(prepared.data.split.test.labels))),
        "loss": tested.loss,
    }
