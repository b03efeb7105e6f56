"""TRAINING: masked fine-tuning of the selected candidates, one after the other, resumable between and inside them."""

from __future__ import annotations

from typing import Any

import torch

from search.distillation import DistillationTeacher
from search.evaluation import evaluate
from search.models.checkpoint import load_checkpoint, save_checkpoint
from search.pruning.apply import PrunedModel, apply_decisions
from search.training.finetuning import finetune
from search.training.sgd import EpochReport, Watcher
from server.searches.repository import CandidateRecord, set_candidate_result
from server.states import JobStage
from server.worker.run import SearchFailed, SearchRun
from server.worker.stages.preparing import Prepared
from server.worker.stages.searching import Front

STAGE = JobStage.TRAINING


def train(run: SearchRun, prepared: Prepared, front: Front) -> None:
    """Fine-tune every selected candidate that has no trained weights yet, and take its accuracy on the test set."""
    run.enter(STAGE)
    teacher = DistillationTeacher(prepared.model, prepared.data) if run.config.training.distillation > 0 else None
    total = len(front.selected)
    for position, candidate in enumerate(front.selected):
        run.progress(STAGE, position, total, f"candidate {candidate.candidate_id[:10]}")
        if STAGE.value not in candidate.results:
            result = _train_one(run, prepared, teacher, candidate, position, total)
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
    pruned.apply_masks()
    return pruned


def _train_one(
    run: SearchRun,
    prepared: Prepared,
    teacher: DistillationTeacher | None,
    candidate: CandidateRecord,
    position: int,
    total: int,
) -> dict[str, Any]:
    config = run.config.training
    pruned = apply_decisions(prepared.model, prepared.spec, prepared.space.decode(candidate.genome))
    # One stream for all: a result does not depend on which others were selected, and the teacher's outputs are shared.
    seed = run.config.method.seed
    state_path = run.work_dir / f"{candidate.candidate_id}.training.safetensors"

    def on_epoch(report: EpochReport) -> None:
        note = f"candidate {candidate.candidate_id[:10]}, epoch {report.epoch} of {report.epochs:g}"
        run.progress(STAGE, position, total, note)

    trained = finetune(
        pruned,
        prepared.data,
        config,
        torch.Generator().manual_seed(seed),
        teacher=teacher,
        watcher=Watcher(on_epoch=on_epoch, on_step=run.check, checkpoint_path=state_path),
    )
    tested = evaluate(trained.model, prepared.data.split.test, prepared.data.normalise, resolution=trained.resolution)
    path = run.work_dir / f"{candidate.candidate_id}.safetensors"
    save_checkpoint(trained.model, path)
    digest = run.put_artifact(path.read_bytes())
    path.unlink()
    state_path.unlink(missing_ok=True)
    run.message(f"candidate {candidate.candidate_id[:10]}: {100 * tested.accuracy:.2f} % on the test set")
    return {"weights_sha256": digest, "accuracy": tested.accuracy, "loss": tested.loss}
