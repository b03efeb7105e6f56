"""Making a search: everything that can be checked without a network or a device is checked before it is stored."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from device_agent.contracts import (
    TFLITE_SPARSE_RUNTIME,
    ContractError,
    DeviceProfile,
    RuntimeInfo,
    canonical_json,
    decode,
    encode,
    why_unusable,
)
from search.domain.config import SearchConfig, parse_config
from server.accounts.service import Principal
from server.catalog.naming import refused
from server.context import Context
from server.errors import NotFound, Unprocessable
from server.latency.repository import IMPORTED_DEVICE
from server.models import DeviceRow, SearchRow
from server.searches import queries
from server.searches.data import check_artifact, usable_dataset
from server.searches.networks import usable_network
from server.searches.repository import LATENCY_TABLE, device_document
from server.searches.visibility import require_visible, sees_only
from server.wire import unprocessable

MAX_KEY_CHARS = 200


def create_search(
    context: Context, data: object, *, principal: Principal, idempotency_key: str | None
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
            earlier = queries.find_idempotency_key(session, principal.token_id, idempotency_key, digest)
            if earlier is not None:
                # Returned even where the config would be refused by now: a device may have gone meanwhile.
                return queries.get_search(session, earlier), False
    owner = sees_only(context.settings, principal)
    config = replace(config, model=usable_network(context, config, principal))
    config = replace(config, dataset=usable_dataset(context, config.dataset, owner))
    with context.database.write() as session:
        _check_artifacts(context, session, config, owner)
        devices = _choose_devices(session, config)
        _check_runtime(config)
        _check_latency_from(session, config, devices, owner)
        row = queries.insert_search(
            session,
            name=config.name,
            device_id=devices[0].id,
            config=encode(_with_identities(config, devices)),
            created_by=principal.token_id,
        )
        if idempotency_key is None:
            return row, True
        earlier = queries.claim_idempotency_key(
            session, principal=principal.token_id, key=idempotency_key, request_sha256=digest, resource_id=row.id
        )
        if earlier is None:
            return row, True
        session.rollback()
    with context.database.read() as session:
        return queries.get_search(session, earlier), False


def _check_artifacts(context: Context, session: Session, config: SearchConfig, owner: str | None) -> None:
    named = {
        "config.model.checkpoint": config.model.checkpoint,
        "config.model.network": config.model.network,
    }
    for field, sha256 in named.items():
        if sha256 is None:
            continue
        check_artifact(context, session, field, sha256, owner)


def _choose_devices(session: Session, config: SearchConfig) -> tuple[DeviceRow, ...]:
    """The devices that the config names by id or name, or the only one that can do it."""
    runtime = config.measuring.networks.runtime
    if config.device is not None:
        return (_named_device(session, config.device, runtime, "config.device"),)
    if not config.devices:
        return (_only_device(session, runtime),)
    found = tuple(_named_device(session, name, runtime, "config.devices") for name in config.devices)
    for i, device in enumerate(found):
        if device in found[:i]:
            first = config.devices[found.index(device)]
            raise refused(
                "config.devices", f"{first!r} and {config.devices[i]!r} are one device: name each device once"
            )
    sources = {device.name: decode(DeviceProfile, device.profile).source for device in found}
    if len(set(sources.values())) > 1:
        told = ", ".join(f"{name!r} is {source.value}" for name, source in sources.items())
        raise refused("config.devices", f"{told}: one search never joins them in one figure; name devices of one kind")
    return found


def _named_device(session: Session, name: str, runtime: str, field: str) -> DeviceRow:
    found = session.scalars(select(DeviceRow).where((DeviceRow.id == name) | (DeviceRow.name == name))).all()
    if not found:
        known = ", ".join(session.scalars(select(DeviceRow.name).order_by(DeviceRow.id).limit(20))) or "none"
        raise refused(field, f"there is no device {name!r}; enrolled are: {known}")
    device = found[0]
    if device.agent_key_hash is None:
        raise refused(field, f"device {device.name!r} {IMPORTED_DEVICE}")
    if not device.enabled:
        raise refused(field, f"device {device.name!r} is disabled: enable it, or name another one")
    reason = _why_unusable(device, runtime)
    if reason is not None:
        raise refused("config.measuring.networks.runtime", f"device {device.name!r} {reason}")
    return device


def _only_device(session: Session, runtime: str) -> DeviceRow:
    has_agent = DeviceRow.agent_key_hash.is_not(None)
    enabled = session.scalars(select(DeviceRow).where(DeviceRow.enabled, has_agent).order_by(DeviceRow.id)).all()
    suitable = [device for device in enabled if _why_unusable(device, runtime) is None]
    if not suitable:
        reasons = "".join(f"; device {device.name!r} {_why_unusable(device, runtime)}" for device in enabled[:3])
        raise refused(
            "config.device",
            f"no enabled device has the runtime {runtime!r}: enrol one with `kerf enrol-code` and kerf-agent{reasons}",
        )
    if len(suitable) > 1:
        names = ", ".join(repr(d.name) for d in suitable[:20])
        raise refused("config.device", f"{len(suitable)} devices could do this ({names}): name one in 'device'")
    return suitable[0]


def _with_identities(config: SearchConfig, devices: Sequence[DeviceRow]) -> SearchConfig:
    """The config with devices by their ids, which no later device can take over: `device` for one, else `devices`."""
    named = config.devices or (config.device,)
    identities = {name: device.id for name, device in zip(named, devices, strict=True)}
    if len(devices) == 1:
        # A bound on the only device is a bound on the latency.
        constraints = tuple(replace(c, device=None) for c in config.constraints)
        return replace(config, device=devices[0].id, devices=(), constraints=constraints)
    constraints = tuple(c if c.device is None else replace(c, device=identities[c.device]) for c in config.constraints)
    return replace(config, devices=tuple(device.id for device in devices), constraints=constraints)


def _why_unusable(device: DeviceRow, runtime: str) -> str | None:
    return why_unusable((decode(RuntimeInfo, data) for data in device.runtimes), runtime)


def _check_runtime(config: SearchConfig) -> None:
    """A search needs every kernel of its network timed, and not every runtime does that."""
    runtime = config.measuring.networks.runtime
    if runtime == TFLITE_SPARSE_RUNTIME:
        raise refused(
            "config.measuring.networks.runtime",
            f"the runtime {runtime!r} times sparse 1x1 convolutions and whole networks of them, and a search needs the "
            "time of every other kernel as well: name 'native' or 'tflite'",
        )


def _check_latency_from(
    session: Session, config: SearchConfig, devices: Sequence[DeviceRow], owner: str | None
) -> None:
    """The search whose latency tables are to be used must be there, and have one of each device."""
    if config.latency_from is None:
        return
    field = "config.latency_from"
    try:
        require_visible(session, config.latency_from, owner)
        source = queries.get_search(session, config.latency_from)
    except NotFound as error:
        raise refused(field, error.detail) from None
    measured_on = queries.device_ids(source)
    for device in devices:
        if device.id not in measured_on:
            raise refused(
                field,
                f"search {source.id} measured on device {', '.join(measured_on)}, not on {device.name!r} "
                f"({device.id}): name a search on all devices of this one, or leave latency_from out",
            )
        name = device_document(LATENCY_TABLE, device.id, measured_on)
        if queries.find_document(session, source.id, name) is None:
            raise refused(field, f"search {source.id} is {source.state.value} and has no latency table yet")
