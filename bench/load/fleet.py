"""Devices, their tokens and their work, put into the database directly; and what their agents say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from sqlalchemy.orm import Session

from bench.load.stack import Stack
from device_agent.contracts import (
    Block,
    Conditions,
    CpuCluster,
    DeviceProfile,
    EnrolmentRequest,
    HeartbeatRequest,
    KernelSpec,
    KernelTask,
    Measurement,
    MeasuringSetup,
    Op,
    Provenance,
    RuntimeInfo,
    Source,
    Verdict,
    dumps,
    encode,
)
from device_agent.contracts.statistics import summarize
from device_agent.contracts.verdict import judge
from search.domain.config import parse_config
from server.accounts.service import Scope, mint_agent_token, mint_user_token
from server.accounts.tokens import SecretHasher
from server.fleet.repository import insert_device
from server.ids import uuid7
from server.latency.source import SqlLatencySource
from server.searches.queries import insert_search

SETUP = MeasuringSetup(runtime="native")
#: Samples of a measurement: what a small kernel gives within the default budget, about.
BLOCKS, SAMPLES = 12, 8

PROFILE = DeviceProfile(
    machine="aarch64",
    system="Linux 6.6.20",
    os_build="Debian 12",
    cpu_model="Cortex-A72",
    clusters=(CpuCluster(model="Cortex-A72", core_ids=(0, 1, 2, 3)),),
    isa_features=("neon",),
    memory_bytes=4 << 30,
    simulated=True,
)
RUNTIME = RuntimeInfo(name="native", version="1.0", binary_sha256="ab" * 32, isa="neon")
_CONFIG = {
    "name": "load",
    "model": {"architecture": "small_cnn"},
    "dataset": {"name": "digits"},
    "space": {"channels": {}},
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Agent:
    device_id: str
    token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """`search_id` is of a search that no worker takes up; `user_token` may do everything."""

    agents: tuple[Agent, ...]
    search_id: str
    user_token: str

    @classmethod
    def enrolled(cls, stack: Stack, count: int) -> Fleet:
        hasher = SecretHasher.from_settings(stack.settings)
        agents = []
        with stack.database.write() as session:
            for number in range(count):
                request = EnrolmentRequest(
                    code="none",
                    agent_key=f"load-agent-{number:012d}",
                    device_name=f"load {number:06d}",
                    profile=PROFILE,
                    runtimes=(RUNTIME,),
                    agent_version="0.1.0",
                )
                device_id = insert_device(session, request, f"{number:064x}")
                token = mint_agent_token(session, hasher, device_id=device_id, name=f"agent {number}")
                agents.append(Agent(device_id=device_id, token=token))
            user_token = mint_user_token(session, hasher, name="load", scopes=(Scope.ADMIN,))
            search_id = _submit(session, agents[0].device_id)
        return cls(agents=tuple(agents), search_id=search_id, user_token=user_token)

    def submit(self, stack: Stack, count: int) -> None:
        """`count` more searches that wait for a worker."""
        with stack.database.write() as session:
            for number in range(count):
                _submit(session, self.agents[number % len(self.agents)].device_id)

    def give_work(self, stack: Stack, agents: Sequence[Agent], tasks_each: int, first: int = 0) -> None:
        """`tasks_each` waiting tasks for each of `agents`, of kernels from number `first` on."""
        source = SqlLatencySource(stack.database)
        tasks = [kernel_task(first + number) for number in range(tasks_each)]
        for agent in agents:
            source.request(agent.device_id, tasks, self.search_id)


def _submit(session: Session, device_id: str) -> str:
    config = encode(parse_config({**_CONFIG, "device": device_id}))
    return insert_search(session, name="load", device_id=device_id, config=config, created_by="load").id


def kernel_task(number: int) -> KernelTask:
    spec = KernelSpec(
        op=Op.CONV2D, in_channels=8, out_channels=16, input_h=8, input_w=8, kernel_h=3, kernel_w=3, seed=number
    )
    return KernelTask(kernel=spec, setup=SETUP)


def heartbeat() -> str:
    request = HeartbeatRequest(
        profile=PROFILE, runtimes=(RUNTIME,), agent_version="0.1.0", conditions=Conditions(), spooled_reports=0
    )
    return dumps(request)


def lease_request(max_leases: int, wait_s: float) -> str:
    return json.dumps({"max_leases": max_leases, "wait_s": wait_s})


class Reporter:
    """Makes batches of reports as text: one measurement, with the samples of a real one, under new keys."""

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        blocks = tuple(
            Block(
                thread_cpu_ns=tuple(times := [float(t) for t in rng.normal(52_000.0, 300.0, SAMPLES).round(1)]),
                wall_ns=tuple(t + 20.0 for t in times),
                reference_ns=(10_000.0, 10_010.0),
            )
            for _ in range(BLOCKS)
        )
        statistics = summarize(blocks, SETUP.clock)
        verdict, reasons = judge(blocks, statistics, SETUP, Conditions(), Conditions(), frozenset(), None)
        measurement = Measurement(
            provenance=Provenance(
                source=Source.SIMULATED,
                runtime=RUNTIME.name,
                runtime_version=RUNTIME.version,
                runtime_sha256=RUNTIME.binary_sha256,
                isa=RUNTIME.isa,
                threads=1,
                agent_version="0.1.0",
            ),
            blocks=blocks,
            iterations_per_sample=100,
            warmup_runs=30,
            statistics=statistics,
            verdict=verdict,
            reasons=reasons,
            before=Conditions(),
            after=Conditions(),
            output_sha256="cd" * 32,
        )
        assert verdict is Verdict.TRUSTED, reasons
        self._result = dumps(measurement)

    @property
    def report_bytes(self) -> int:
        return len(self._result)

    def batch(self, leases: Sequence[dict[str, object]]) -> str:
        return f'{{"reports":[{",".join(self._reports(leases))}]}}'

    def _reports(self, leases: Sequence[dict[str, object]]) -> Iterator[str]:
        for lease in leases:
            head = {
                "result_key": str(uuid7()),
                "lease_id": lease["lease_id"],
                "task_id": lease["task_id"],
                "attempt": lease["attempt"],
            }
            yield f'{json.dumps(head)[:-1]}, "result": {self._result}}}'
