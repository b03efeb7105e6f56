"""EXPORTING: the files of each trained candidate, stored by content."""

from __future__ import annotations

from search.export import export_files
from server.searches.repository import set_candidate_result
from server.states import JobStage
from server.worker.networks import fold
from server.worker.run import SearchRun
from server.worker.stages.preparing import Prepared
from server.worker.stages.searching import Front
from server.worker.stages.training import load_trained

STAGE = JobStage.EXPORTING


def export(run: SearchRun, prepared: Prepared, front: Front) -> None:
    """Write packed, TFLite and plain files of every selected candidate; those that are written are kept."""
    run.enter(STAGE)
    for done, candidate in enumerate(front.selected, start=1):
        run.check()
        if STAGE.value not in candidate.results:
            decisions = prepared.space.decode(candidate.genome)
            network = fold(prepared, load_trained(run, prepared, candidate), decisions)
            files = {name: run.put_artifact(data) for name, data in export_files(network.plan, network.tensors).items()}
            with run.database.write() as session:
                set_candidate_result(session, run.claim, candidate.candidate_id, STAGE.value, {"files": files})
        run.progress(STAGE, done, len(front.selected), "networks")
