"""TRAINING: the selected candidates, as many at a time as there are processes for, resumable between any two steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from search.models.checkpoint import load_checkpoint
from search.parallel.crew import Crew, Lost, work_through
from search.pruning.apply import PrunedModel, apply_decisions
from search.standing import accuracy_ci95
from search.training.crewed import TrainedCandidate, TrainingPiece, TrainingWork
from search.training.sgd import EpochReport, Watcher
from server.searches.repository import CandidateRecord, set_candidate_result
from server.states import JobStage
from server.worker.crews import make_crew, num_threads, shares_files
from server.worker.run import SearchFailed, SearchRun
from server.worker.stages.preparing import Prepared, prepared_metric
from server.worker.stages.searching import Front

STAGE = JobStage.TRAINING


def train(run: SearchRun, prepared: Prepared, front: Front) -> None:
    """Train every selected candidate that has no trained weights yet, and take its accuracy on the test set."""
    run.enter(STAGE)
    missing = [candidate for candidate in front.selected if STAGE.value not in candidate.results]
    total, done = len(front.selected), len(front.selected) - len(missing)
    if missing:
        with training_crew(run, prepared) as crew:
            train_candidates(run, prepared, crew, missing, done, total)
    run.progress(STAGE, total, total)


def training_crew(run: SearchRun, prepared: Prepared) -> Crew:
    """Who trains candidates of this search. The caller closes it."""
    work = TrainingWork(
        model=prepared.model,
        spec=prepared.spec,
        data=prepared.data,
        settings=run.config.training,
        seed=run.config.method.seed,
        threads=num_threads(run.settings),
        uses_gpu=run.settings.evaluator_gpus > 0,
    )
    return make_crew(run.settings, work)


def train_candidates(
    run: SearchRun, prepared: Prepared, crew: Crew, candidates: Sequence[CandidateRecord], done: int, total: int
) -> None:
    """Train these, with `done` of `total` before them, and store what came out of each as soon as it did."""
    metric = prepared_metric(prepared.data)
    test_images = len(prepared.data.split.test.labels)
    finished = done

    def on_note(index: int, note: EpochReport | str) -> None:
        if isinstance(note, str):
            run.message(note)
            return
        if shares_files(run.settings):
            run.got_further()
        phase = f"{note.phase} " if note.phase else ""
        text = f"candidate {_short(candidates[index])}, {phase}epoch {note.epoch} of {note.epochs:g}"
        run.progress(STAGE, finished, total, text)

    def on_result(index: int, trained: TrainedCandidate | Lost) -> None:
        nonlocal finished
        candidate = candidates[index]
        if isinstance(trained, Lost):
            raise SearchFailed(
                f"candidate {_short(candidate)} could not be trained: {trained.reason}. Give the worker more memory, "
                "or choose a smaller training.batch_size"
            )
        result = {
            "weights_sha256": run.put_artifact(trained.weights),
            "accuracy": trained.accuracy,
            "accuracy_ci95": list(accuracy_ci95(trained.accuracy, test_images)),
            "loss": trained.loss,
        }
        with run.database.write() as session:
            set_candidate_result(session, run.claim, candidate.candidate_id, STAGE.value, result)
        Watcher(checkpoint_path=_checkpoint_path(run, candidate)).remove_checkpoints()
        finished += 1
        run.message(f"candidate {_short(candidate)}: {metric}{100 * trained.accuracy:.2f} % on the test set")
        run.progress(STAGE, finished, total)

    pieces = [
        TrainingPiece(
            decisions=prepared.space.decode(candidate.genome),
            checkpoint_path=_checkpoint_path(run, candidate) if shares_files(run.settings) else None,
        )
        for candidate in candidates
    ]
    run.progress(STAGE, done, total, f"candidate {_short(candidates[0])}")
    work_through(crew, pieces, on_result=on_result, on_note=on_note, check=run.check)


def _short(candidate: CandidateRecord) -> str:
    return candidate.candidate_id[:10]


def _checkpoint_path(run: SearchRun, candidate: CandidateRecord) -> Path:
    return run.work_dir / f"{candidate.candidate_id}.training.safetensors"


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
