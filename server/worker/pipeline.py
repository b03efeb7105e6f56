"""The stages of a search in their order. Each reads back what it finished before, so a job can be taken up anywhere."""

from __future__ import annotations

import json
from dataclasses import replace

from sqlalchemy.orm import Session

from device_agent.contracts import DeviceProfile, decode, encode
from server.latency.card import outdate_cards
from server.models import DeviceRow
from server.searches.repository import RESOLVED_CONFIG, complete_job
from server.worker.result import store_result
from server.worker.run import SearchRun
from server.worker.stages.exporting import export
from server.worker.stages.preparing import prepare
from server.worker.stages.profiling import profile
from server.worker.stages.searching import load_front, search
from server.worker.stages.training import train
from server.worker.stages.verifying import verify


def run_stages(run: SearchRun) -> None:
    """Carry the job from where it stands to its end. Raises what the stages raise."""
    resolved = run.config if run.config.devices else replace(run.config, device=run.claim.device_id)
    run.put_document(RESOLVED_CONFIG, json.dumps(encode(resolved)))
    prepared = prepare(run)
    run.check()
    profiled = profile(run, prepared)
    run.check()
    profiled = search(run, prepared, profiled)
    run.check()
    train(run, prepared, load_front(run))
    run.check()
    export(run, prepared, load_front(run))
    run.check()
    verify(run, prepared, profiled, load_front(run))
    with run.database.read() as session:
        devices = {device_id: _device(session, device_id) for device_id in run.claim.device_ids}
    store_result(run, prepared, profiled, load_front(run), devices)
    with run.database.write() as session:
        complete_job(session, run.claim)
        outdate_cards(session, run.search_id)


def _device(session: Session, device_id: str) -> tuple[str, DeviceProfile]:
    row = session.get_one(DeviceRow, device_id)
    return row.name, decode(DeviceProfile, row.profile)
