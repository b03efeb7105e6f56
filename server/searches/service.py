"""Making a search: everything that can be checked without a network or a device is checked before it is stored."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from device_agent.contracts import (
    TFLITE_SPARSE_RUNTIME,
    ContractError,
    RuntimeInfo,
    canonical_json,
    decode,
    encode,
    why_unusable,
)
from search.domain.config import SearchConfig, parse_config
from server.artifacts.repository import has_artifact
from server.context import Context
from server.errors import NotFound, Unprocessable
from server.models import DeviceRow, SearchRow
from server.searches import queries
from server.searches.repository import LATENCY_TABLE
from server.wire import unprocessable

MAX_KEY_CHARS = 200


def create_search(
    context: Context, data: object, *, principal: str, idempotency_key: str | None
) -> tuple[SearchRow, bool]:
    """Check a config and store the search; returns it, and whether it is new.

    Raises `Unprocessable` naming the field, the value and the remedy.
    """
    try:
        config = parse_config(data)
    except ContractError as error:
        raise unprocessable(error) from None
    if idempotency_key is not None and not 1 <= len(idempotency_key) <= MAX_KEY_CHARS:
        raise Unprocessable(f"the Idempotency-Key must have 1 to {MAX_KEY_CHARS} characters")
    digest = hashlib.sha256(canonical_json(config).encode()).hexdigest()
    if idempotency_key is not None:
        with context.database.read() as session:
            earlier = queries.find_idempotency_key(session, principal, idempotency_key, digest)
            if earlier is not None:
                # Returned even where the config would be refused by now: a device may have gone meanwhile.
                return queries.get_search(session, earlier), False
    with context.database.write() as session:
        _check_artifacts(context, session, config)
        device_id = _choose_device(session, config)
        _check_runtime(config)
        _check_latency_from(session, config, device_id)
        row = queries.insert_search(
            session,
            name=config.name,
            device_id=device_id,
            config=encode(replace(config, device=device_id)),
            created_by=principal,
        )
        if idempotency_key is None:
            return row, True
        earlier = queries.claim_idempotency_key(
            session, principal=principal, key=idempotency_key, request_sha256=digest, resource_id=row.id
        )
        if earlier is None:
            return row, True
        session.rollback()
    with context.database.read() as session:
        return queries.get_search(session, earlier), False


def _check_artifacts(context: Context, session: Session, config: SearchConfig) -> None:
    named = {
        "config.model.checkpoint": config.model.checkpoint,
        "config.dataset.train": config.dataset.train,
        "config.dataset.test": config.dataset.test,
    }
    for field, sha256 in named.items():
        if sha256 is None:
            continue
        try:
            is_stored = context.store.has(sha256) and has_artifact(session, sha256)
        except Unprocessable as error:
            raise _refused(field, f"{error.detail}. For files on your machine use `kerf search run --data`") from None
        if not is_stored:
            raise _refused(field, f"no artifact {sha256} is stored: upload it to /v1/artifacts/sha256/{sha256} first")


def _choose_device(session: Session, config: SearchConfig) -> str:
    """The device that the config names by id or name, or the only one that can do it."""
    runtime = config.measuring.networks.runtime
    if config.device is not None:
        found = session.scalars(
            select(DeviceRow).where((DeviceRow.id == config.device) | (DeviceRow.name == config.device))
        ).all()
        if not found:
            known = ", ".join(session.scalars(select(DeviceRow.name).order_by(DeviceRow.id).limit(20))) or "none"
            raise _refused("config.device", f"there is no device {config.device!r}; enrolled are: {known}")
        device = found[0]
        if not device.enabled:
            raise _refused("config.device", f"device {device.name!r} is disabled: enable it, or name another one")
        reason = _why_unusable(device, runtime)
        if reason is not None:
            raise _refused("config.measuring.networks.runtime", f"device {device.name!r} {reason}")
        return device.id
    enabled = session.scalars(select(DeviceRow).where(DeviceRow.enabled).order_by(DeviceRow.id)).all()
    suitable = [device for device in enabled if _why_unusable(device, runtime) is None]
    if not suitable:
        reasons = "".join(f"; device {device.name!r} {_why_unusable(device, runtime)}" for device in enabled[:3])
        raise _refused(
            "config.device",
            f"no enabled device has the runtime {runtime!r}: enrol one with `kerf enrol-code` and kerf-agent{reasons}",
        )
    if len(suitable) > 1:
        names = ", ".join(repr(d.name) for d in suitable[:20])
        raise _refused("config.device", f"{len(suitable)} devices could do this ({names}): name one in 'device'")
    return suitable[0].id


def _why_unusable(device: DeviceRow, runtime: str) -> str | None:
    return why_unusable((decode(RuntimeInfo, data) for data in device.runtimes), runtime)


def _check_runtime(config: SearchConfig) -> None:
    """A search needs every kernel of its network timed, and not every runtime does that."""
    runtime = config.measuring.networks.runtime
    if runtime == TFLITE_SPARSE_RUNTIME:
        raise _refused(
            "config.measuring.networks.runtime",
            f"the runtime {runtime!r} times sparse 1x1 convolutions and whole networks of them, and a search needs the "
            "time of every other kernel as well: name 'native' or 'tflite'",
        )


def _check_latency_from(session: Session, config: SearchConfig, device_id: str) -> None:
    """The search whose latency table is to be used must be there, of the same device, and have one."""
    if config.latency_from is None:
        return
    field = "config.latency_from"
    try:
        source = queries.get_search(session, config.latency_from)
    except NotFound as error:
        raise _refused(field, error.detail) from None
    if source.device_id != device_id:
        raise _refused(field, f"search {source.id} measured on device {source.device_id}, not on {device_id}")
    if queries.find_document(session, source.id, LATENCY_TABLE) is None:
        raise _refused(field, f"search {source.id} is {source.state.value} and has no latency table yet")


def _refused(field: str, message: str) -> Unprocessable:
    return Unprocessable(f"{field}: {message}", errors=[{"field": field, "message": message}])
