"""The server, the token, and the fleet: what can be seen over REST."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

from device_agent import __version__
from device_agent.contracts import WIRE_VERSION
from kerf import ApiError, Client, KerfError, NotFound, ServerUnavailable, Unauthorized
from kerf.schemas import DeviceView
from server.accounts.service import Scope
from server.cli.connection import NO_SERVER_REMEDY
from server.cli.diagnosis.finding import Finding, broken, ok, unknown, warning

#: A worker takes a search within seconds unless all of them have one.
PENDING_TOO_LONG = timedelta(minutes=2)
EXPIRES_SOON = timedelta(days=7)
_STEADY_GOVERNORS = ("performance", "userspace", "powersave")


def service_findings(client: Client, now: datetime | None = None) -> Iterator[Finding]:
    """What there is to say about a server, from whether it answers to what its devices can do."""
    now = now or datetime.now(UTC)
    try:
        client.status.health()
    except (ApiError, ServerUnavailable) as error:
        yield broken("server", str(error), NO_SERVER_REMEDY)
        return
    yield ok("server", f"answers at {client.server}")
    try:
        client.status.ready()
    except KerfError as error:
        detail = error.detail if isinstance(error, ApiError) else str(error)
        yield broken("server ready", detail, "do what it says on the server's machine; its log says more")
        return
    yield _version(client)
    try:
        yield from _token(client, now)
        yield from _workers(client, now)
        yield from _devices(client.devices.list(limit=10_000))
    except Unauthorized as error:
        remedy = "make one on the server's machine with `kerf tokens create`, and give it as --token or KERF_TOKEN"
        yield broken("token", error.detail, remedy)
    except KerfError as error:
        yield broken("server", str(error), "its log says more")


def _version(client: Client) -> Finding:
    found = client.status.version()
    if found["version"] == __version__ and found["wire"] == WIRE_VERSION:
        return ok("version", f"{__version__} here and at the server")
    return warning(
        "version",
        f"the server has {found['version']} (messages of version {found['wire']}), here is {__version__} "
        f"({WIRE_VERSION})",
        "install the server's version here, and on the devices",
    )


def _token(client: Client, now: datetime) -> Iterator[Finding]:
    try:
        token = client.tokens.current()
    except NotFound:
        yield unknown("token", "the server is too old to tell what the token allows")
        return
    found = f"of {token['name']!r}, allows {', '.join(token['scopes'])}"
    expires = token["expires_at"]
    if Scope.AGENT in token["scopes"]:
        yield broken("token", f"{found}: it is a device's", "use a user's token: `kerf tokens create`")
    elif not {Scope.ADMIN, Scope.SEARCHES_WRITE} & set(token["scopes"]):
        yield warning("token", f"{found}: it cannot run searches", "ask for one with the scope 'searches:write'")
    elif expires is not None and datetime.fromisoformat(expires) - now < EXPIRES_SOON:
        yield warning("token", f"{found}, expires {expires}", "make a new one in time: `kerf tokens create`")
    else:
        yield ok("token", found)


def _workers(client: Client, now: datetime) -> Iterator[Finding]:
    """Whether somebody takes searches up, and does."""
    try:
        workers = client.workers.list(limit=10_000)
    except NotFound:
        yield unknown("workers", "the server is too old to tell")
        yield _queue(client, now)
        return
    alive = [worker for worker in workers if worker["state"] != "silent"]
    remedy = "start one on the server's machine: `kerf worker` (`kerf up` has one)"
    if not alive:
        yield broken("workers", "none is running: searches wait", remedy)
    else:
        busy = sum(worker["state"] == "busy" for worker in alive)
        yield ok("workers", f"{len(alive)} running, {busy} with a search")
    for worker in workers:
        if worker["state"] == "silent":
            found = f"on {worker['host']} ended without a word, last seen {worker['last_seen_at']}"
            yield warning(f"worker {worker['name']}", found, "look at its log (out of memory?), and start it again")
        elif worker["version"] != __version__:
            found = f"on {worker['host']} has version {worker['version']}, here is {__version__}"
            yield warning(f"worker {worker['name']}", found, "install one release everywhere")
    yield _queue(client, now)


def _queue(client: Client, now: datetime) -> Finding:
    """Whether searches are left lying."""
    pending = client.searches.list(state="pending", limit=500)
    late = [s for s in pending if s["created_at"] and now - datetime.fromisoformat(s["created_at"]) > PENDING_TOO_LONG]
    if not late:
        return ok("searches", f"{len(pending)} waiting")
    if client.searches.list(state="running", limit=1):
        return ok("searches", f"{len(pending)} waiting, and others are running")
    return warning(
        "searches",
        f"{len(late)} wait since {late[-1]['created_at']} or later, and none is running",
        "see what is said of workers; their log says why they take none",
    )


def _devices(devices: list[DeviceView]) -> Iterator[Finding]:
    if not any(device["state"] == "online" for device in devices):
        if all(device["state"] == "imported" for device in devices):
            remedy = "enrol one: `kerf enrol-code` prints the command for it"
        else:
            remedy = "start the agent of one: kerf-agent run"
        yield broken("devices", f"none of {len(devices)} is online: nothing can be measured", remedy)
    for device in devices:
        yield _device(device)


def _device(device: DeviceView) -> Finding:
    """The worst that there is to say about a device."""
    name, state = f"device {device['name']}", device["state"]
    usable = [runtime["name"] for runtime in device["runtimes"] if not runtime["unavailable"]]
    if state == "imported":
        return ok(name, "imported figures")
    if state == "disabled":
        return warning(name, "disabled: it gets no work", f"kerf devices enable {device['id']}")
    if state == "offline":
        seen = device["last_seen_at"]
        return warning(name, f"offline since {seen}", "start kerf-agent run on it, and look at its log and network")
    if not usable:
        reasons = "; ".join(f"{r['name']}: {r['unavailable']}" for r in device["runtimes"])
        remedy = "install a runtime on the device: pip install 'kerf[agent]', or a C++ compiler for the native one"
        return broken(name, f"no runtime works: {reasons or 'it has none'}", remedy)
    if device["agent_version"] != __version__:
        remedy = "update its agent; figures of different versions stay apart"
        return warning(name, f"its agent has version {device['agent_version']}, here is {__version__}", remedy)
    if device["drifted_series"]:
        remedy = f"look at the card: kerf latency card {device['drifted_series'][0]}"
        return warning(name, f"{len(device['drifted_series'])} series no longer take what they took", remedy)
    conditions = device["conditions"]
    if conditions is not None and conditions["throttled"]:
        return warning(name, "lowers its clock now", "cool it, or use a stronger power supply")
    governor = None if conditions is None else conditions["governor"]
    if governor is not None and governor not in _STEADY_GOVERNORS:
        return warning(
            name, f"governor {governor}: its frequency moves", "set a governor that keeps it; see docs/devices.md"
        )
    return ok(name, f"online with {', '.join(usable)}")
