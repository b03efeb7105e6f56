"""Settings of server and worker, each from one environment variable."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from device_agent.contracts import ContractError
from kerf.local import ADDRESS_FILE, TOKEN_FILE, default_data_dir

ENV_PREFIX = "KERF_"

#: A check takes a device some seconds.
MIN_DRIFT_INTERVAL_S = 60.0

_TOKEN_KEY = re.compile(r"(?:[0-9a-fA-F]{2}){32,}")

#: Schemes of `artifacts_url`; `file` is a folder that several hosts mount.
OBJECT_STORES = ("s3", "gs", "az", "file")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Each field is read from `KERF_` and its name in capitals, for example `KERF_DATA_DIR`.

    Attributes:
        data_dir: Where artifacts, the key of the tokens and (by default) the database are kept.
        database_url: `sqlite:///FILE` or `postgresql+psycopg://...`. Empty means `kerf.db` in `data_dir`.
        artifacts_url: Object store for artifacts, such as `s3://bucket/prefix`, so that several hosts share them; the
            credentials are in the variables of that store (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...). Empty is the
            folder `artifacts` in `data_dir`.
        artifacts_cache_bytes: With an object store, that folder is a cache of this size.
        token_key: Hex digits of the secret under which tokens are hashed, 32 bytes or more: the same for all servers
            and workers on one database. Empty is a file in `data_dir`, which is made on first use.
        host: Address to listen on. Other than loopback, anyone who reaches it can try tokens.
        port: TCP port to listen on; 0 takes a free one.
        max_artifact_bytes: Larger uploads are refused with 413.
        max_body_bytes: Larger JSON bodies are refused with 413.
        max_requests_per_minute: Of one token, a user's or an agent's, at each server process; more are answered with
            429. 0 is without limit.
        max_failed_sign_ins_per_minute: Wrong tokens and enrolment codes from one address; more are answered with 429.
            0 is without limit.
        max_streams: Event streams that one token may have open at each server process: more are answered with 429. 0 is
            without limit.
        lease_duration_s: A lease that is not renewed for so long goes to another attempt.
        max_attempts: A task that failed so often for reasons that count is given up.
        heartbeat_interval_s: Told to agents: how often they report in.
        lease_wait_s: Told to agents: how long they wait for work in one request. Below the 50 to 60 s after which
            common proxies drop an idle connection.
        poll_interval_s: How often waiting agents and event streams look for what other processes wrote.
        reap_interval_s: How often expired leases are collected.
        job_stale_s: A running search whose worker has not reported for so long is taken over.
        max_takeovers: A search that lost so many workers in a row, none of which got further than the one before, fails
            with the reason. 0 is without limit.
        datasets_dir: Folder on the worker below which searches may read data sets (`dataset.train: worker:PATH`);
            none by default.
        evaluators: How many processes of a worker estimate and train candidates at the same time; 1 is the worker
            itself, 0 one for every four cores.
        evaluator_threads: Threads of each; 0 shares the cores. Equal numbers give equal fronts to the last bit,
            whatever the number of processes.
        evaluator_gpus: The part of a GPU that each of these processes takes; 0 computes on the processor. Without a Ray
            cluster, all take the machine's first.
        worker_memory_bytes: What each process of a worker may take for data (heap and stacks); a search that needs more
            fails with the reason. 0 is without limit.
        max_work_s: How long a worker may compute for one search at a stretch, not counting what it waits for devices; a
            search that takes more fails with the reason. 0 is without limit.
        ray_address: Head of a Ray cluster, "HOST:PORT", whose processes estimate and train instead; "auto" on one of
            its hosts. Empty is the worker's own machine.
        drift_interval_s: How often the sentinel kernels of each series in use are measured again, while its device is
            idle, to see whether it drifted; 0 is never. Each time costs the device a few seconds.
        open_dashboard: Whether browsers on the server's own machine see the dashboard without signing in. `kerf up`
            sets it. Leave it off where several people share the machine, or where a proxy on it serves others.
        open_metrics: Whether /metrics needs no token. Without it, requests from this machine itself need none.
        multi_user: Whether users see only the searches that were submitted with a token of their own name, and only the
            files that are their own or registered. Admins see all; devices, latencies, models and data sets stay
            shared.
        log_json: Whether log lines are JSON instead of text.
    """

    data_dir: Path = field(default_factory=default_data_dir)
    database_url: str = field(default="", repr=False)
    artifacts_url: str = ""
    artifacts_cache_bytes: int = 16 << 30
    token_key: str = field(default="", repr=False)
    host: str = "127.0.0.1"
    port: int = 8321
    max_artifact_bytes: int = 4 << 30
    max_body_bytes: int = 32 << 20
    max_requests_per_minute: int = 30_000
    max_failed_sign_ins_per_minute: int = 60
    max_streams: int = 250
    lease_duration_s: float = 120.0
    max_attempts: int = 3
    heartbeat_interval_s: float = 45.0
    lease_wait_s: float = 45.0
    poll_interval_s: float = 0.25
    reap_interval_s: float = 5.0
    job_stale_s: float = 60.0
    max_takeovers: int = 10
    datasets_dir: Path | None = None
    evaluators: int = 0
    evaluator_threads: int = 0
    evaluator_gpus: float = 0.0
    worker_memory_bytes: int = 0
    max_work_s: float = 0.0
    ray_address: str = ""
    drift_interval_s: float = 0.0
    open_dashboard: bool = False
    open_metrics: bool = False
    multi_user: bool = False
    log_json: bool = False

    def __post_init__(self) -> None:
        for name in ("lease_duration_s", "heartbeat_interval_s", "poll_interval_s", "reap_interval_s", "job_stale_s"):
            if not getattr(self, name) > 0:
                raise ContractError(f"{name} {getattr(self, name)!r} must be positive")
        if not (self.drift_interval_s == 0 or self.drift_interval_s >= MIN_DRIFT_INTERVAL_S):
            raise ContractError(
                f"drift_interval_s {self.drift_interval_s!r} is neither 0 (never) nor {MIN_DRIFT_INTERVAL_S:g} or "
                "more: checks that often would keep the device from resting"
            )
        if not self.database_url and "?" in str(self.data_dir):
            raise ContractError(f"data_dir {str(self.data_dir)!r} has a '?', which ends the address of a database")
        if self.max_attempts < 1:
            raise ContractError(f"max_attempts {self.max_attempts!r} must be at least 1")
        if self.max_takeovers < 0:
            raise ContractError(f"max_takeovers {self.max_takeovers!r} is negative: 0 is without limit")
        if not 0 <= self.port <= 65535:
            raise ContractError(f"port {self.port!r} is not in 0..65535")
        if not 0 <= self.lease_wait_s <= 60:
            raise ContractError(f"lease_wait_s {self.lease_wait_s!r} is not in 0..60")
        if self.artifacts_url and self.artifacts_url.partition("://")[0] not in OBJECT_STORES:
            raise ContractError(
                f"artifacts_url {self.artifacts_url!r} has to begin with one of {', '.join(OBJECT_STORES)} and '://': "
                "leave it empty for a folder in data_dir"
            )
        if self.token_key and not _TOKEN_KEY.fullmatch(self.token_key):
            raise ContractError("token_key must be 64 hex digits or more: make one with `openssl rand -hex 32`")
        for name in ("evaluators", "evaluator_threads"):
            if not 0 <= getattr(self, name) <= 1024:
                raise ContractError(f"{name} {getattr(self, name)!r} is not in 0..1024")
        if not (0 <= self.evaluator_gpus <= 1):
            raise ContractError(
                f"evaluator_gpus {self.evaluator_gpus!r} is not in 0..1: a process uses a GPU, or shares it with others"
            )
        if self.worker_memory_bytes < 0:
            raise ContractError(f"worker_memory_bytes {self.worker_memory_bytes!r} is negative: 0 is without limit")
        if not (0 <= self.max_work_s < math.inf):
            raise ContractError(f"max_work_s {self.max_work_s!r} must be at least 0, which is without limit")
        if "://" in self.ray_address:
            raise ContractError(
                f"ray_address {self.ray_address!r} is of another client: write HOST:PORT of the head, or auto"
            )
        if self.artifacts_cache_bytes < 0:
            raise ContractError(f"artifacts_cache_bytes {self.artifacts_cache_bytes!r} must not be negative")
        if min(self.max_artifact_bytes, self.max_body_bytes) < 1:
            raise ContractError("max_artifact_bytes and max_body_bytes must be at least 1")
        for name in ("max_requests_per_minute", "max_failed_sign_ins_per_minute", "max_streams"):
            if getattr(self, name) < 0:
                raise ContractError(f"{name} {getattr(self, name)!r} is negative: 0 is without limit")
        if self.multi_user and self.open_dashboard:
            raise ContractError(
                "multi_user hides searches of others, and open_dashboard shows all of them without a sign-in: set "
                "KERF_OPEN_DASHBOARD=0"
            )

    @property
    def url(self) -> str:
        """The database's URL, with the default file and PostgreSQL's driver filled in."""
        if not self.database_url:
            return f"sqlite:///{self.data_dir / 'kerf.db'}"
        scheme, separator, rest = self.database_url.partition("://")
        return f"postgresql+psycopg{separator}{rest}" if scheme in ("postgres", "postgresql") else self.database_url

    @property
    def artifacts_dir(self) -> Path:
        return self.data_dir / "artifacts"

    @property
    def key_file(self) -> Path:
        """The secret under which tokens are hashed."""
        return self.data_dir / "token.key"

    @property
    def local_token_file(self) -> Path:
        """The user token that the embedded mode makes for this machine's user."""
        return self.data_dir / TOKEN_FILE

    @property
    def local_address_file(self) -> Path:
        """Where the embedded mode's server is: the only one that clients show that token to."""
        return self.data_dir / ADDRESS_FILE

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Settings from the environment; `overrides` win. Raises `ContractError` naming a bad variable."""
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for item in fields(cls):
            name = ENV_PREFIX + item.name.upper()
            if environ.get(name):
                values[item.name] = _parse(name, environ[name], str(item.type))
        return cls(**{**values, **overrides})


def _parse(name: str, text: str, kind: str) -> Any:
    try:
        if kind == "bool":
            return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}[text.lower()]
        return {"Path": Path, "Path | None": Path, "str": str, "int": int, "float": float}[kind](text)
    except (KeyError, ValueError):
        raise ContractError(f"{name}={text!r} is no {kind}: correct or unset the variable") from None
