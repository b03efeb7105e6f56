"""Trainings of the worker stop between two steps of an epoch, and go on to the same bits."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from search.domain.config import Regime, TrainingConfig
from server.cli.demo import demo_config
from server.searches.repository import CandidateRecord
from server.settings import Settings
from server.worker.run import RunInterrupted
from server.worker.stages.preparing import Prepared, prepare
from server.worker.stages.training import train_candidates, training_crew


class LocalRun:
    """What the two stages ask of a `SearchRun`, on files alone. `check` raises at the call number `stop_at`."""

    def __init__(self, folder: Path, training: TrainingConfig, stop_at: int | None = None) -> None:
        config = demo_config(quick=True)
        self.config = dataclasses.replace(
            config, model=dataclasses.replace(config.model, train_epochs=1), training=training
        )
        self.settings = Settings(data_dir=folder, evaluators=1)
        self.claim: Any = None
        self.results: dict[str, Any] = {}
        self.database = self
        self.work_dir = folder
        self._stop_at = stop_at
        self.checks = 0
        self.messages: list[str] = []

    @contextlib.contextmanager
    def write(self) -> Iterator[LocalRun]:
        yield self

    def check(self) -> None:
        self.checks += 1
        if self.checks == self._stop_at:
            raise RunInterrupted

    def message(self, text: str) -> None:
        self.messages.append(text)

    def load(self, stage: object) -> None:
        return None

    def save(self, *_: object) -> None: ...

    def enter(self, stage: object) -> None: ...

    def progress(self, *_: object) -> None: ...

    def got_further(self) -> None: ...

    def put_artifact(self, data: bytes) -> str:
        digest = hashlib.sha256(data).hexdigest()
        (self.work_dir / digest).write_bytes(data)
        return digest

    def artifact_path(self, digest: str) -> Path:
        return self.work_dir / digest


def stopped_and_resumed(
    work: Callable[[LocalRun], Any], folder: Path, training: TrainingConfig, stops: list[int]
) -> Any:
    """The result of `work` where each run but the last was interrupted at that many checks."""
    for stop_at in stops:
        with pytest.raises(RunInterrupted):
            work(LocalRun(folder, training, stop_at))
    return work(LocalRun(folder, training))


def weights_of(prepared: Prepared) -> list[Any]:
    return [tensor.tolist() for tensor in prepared.model.state_dict().values()]


def test_the_base_network_is_trained_the_same_through_interruptions(tmp_path: Path) -> None:
    training = TrainingConfig(epochs=1)
    whole_run = LocalRun(tmp_path / "whole", training)
    whole_run.work_dir.mkdir()
    whole = prepare(whole_run)
    (tmp_path / "again").mkdir()
    again = stopped_and_resumed(prepare, tmp_path / "again", training, [3, 25])

    # Steps, not epochs.
    assert whole_run.checks > 30
    assert weights_of(again) == weights_of(whole)


@pytest.mark.parametrize(
    "training",
    [
        TrainingConfig(epochs=1.5, batch_size=64),
        TrainingConfig(regime=Regime.JCW, schedule_factor=0.01, batch_size=64),
    ],
    ids=["finetune", "jcw"],
)
def test_a_candidate_is_trained_the_same_through_interruptions(
    tmp_path: Path, training: TrainingConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = prepare(LocalRun(tmp_path, TrainingConfig()))
    space = prepared.space
    candidate = CandidateRecord(
        candidate_id="c_0123456789", genome=tuple(n // 2 for n in space.num_choices), metrics={}, generation=1
    )

    def set_result(run: LocalRun, claim: None, candidate_id: str, stage: str, result: dict[str, Any]) -> None:
        run.results[candidate_id] = result

    monkeypatch.setattr("server.worker.stages.training.set_candidate_result", set_result)

    def work(run: LocalRun) -> dict[str, Any]:
        with training_crew(run, prepared) as crew:
            train_candidates(run, prepared, crew, [candidate], 0, 1)
        result: dict[str, Any] = run.results[candidate.candidate_id]
        return result

    folders = [tmp_path / "whole", tmp_path / "again"]
    for folder in folders:
        folder.mkdir()
    whole = work(LocalRun(folders[0], training))
    again = stopped_and_resumed(work, folders[1], training, [5, 19])

    assert again == whole
    # The weights alone are left: checkpoints of finished trainings are removed.
    assert [path.name for path in folders[1].iterdir()] == [again["weights_sha256"]]
