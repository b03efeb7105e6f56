"""`python -m bench.load`: what one server holds, on SQLite and on PostgreSQL.

python -m bench.load --quick                       # 100 agents on both, under 50 s
python -m bench.load                               # up to 2,000 agents on PostgreSQL, 300 on SQLite: half an hour
python -m bench.load --kinds postgresql --servers 2
python -m bench.load --parts together --soak-s 3600 --pause-s 10    # all at once for an hour: memory over time

The generator runs on the same machine, and everything else that runs there counts as well: `load_average` is noted at
both ends of each part, and CPU time is told beside wall-clock time. Latency queries and pages over 10 million rows are
`python -m bench.dashboard`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load import parts
from bench.load.fleet import Fleet
from bench.load.stack import Stack, running

KINDS = ("sqlite", "postgresql")
PARTS = ("waiting", "exchanging", "queued", "together", "jobs")


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much of everything. `waiting` has the numbers of agents of its curve; the last is the target."""

    waiting: tuple[int, ...]
    hold_s: float
    wakes: int
    exchanging: int
    exchange_s: float
    batches: tuple[int, ...]
    tasks_each: int
    depths: tuple[int, ...]
    claims: int
    jobs: tuple[int, ...]
    soak_s: float
    pause_s: float
    viewers: int


def plan_of(kind: str, *, quick: bool, soak_s: float | None, pause_s: float) -> Plan:
    if quick:
        return Plan(
            waiting=(100,), hold_s=1.5, wakes=3, exchanging=10, exchange_s=2.0, batches=(8,), tasks_each=64,
            depths=(100,), claims=20, jobs=(100,), soak_s=soak_s or 0.0, pause_s=pause_s, viewers=1,
        )  # fmt: skip
    return Plan(
        waiting=(100, 300) if kind == "sqlite" else (100, 300, 1000, 2000),
        hold_s=20.0,
        wakes=20,
        exchanging=20,
        exchange_s=15.0,
        batches=(1, 8, 64),
        tasks_each=400,
        depths=(100, 1000, 10_000),
        claims=50,
        jobs=(100, 1000, 10_000),
        soak_s=120.0 if soak_s is None else soak_s,
        pause_s=pause_s,
        viewers=3,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--servers", type=int, default=1, help="server processes on one database")
    parser.add_argument("--soak-s", type=float, help="how long everything runs at once")
    parser.add_argument("--pause-s", type=float, default=2.0, help="between two seconds of exchanging meanwhile")
    parser.add_argument("--json", type=Path, help="kinds that are not run keep their figures in it")
    given = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    found: dict[str, Any] = {}
    if given.json is not None and given.json.exists():
        found = json.loads(given.json.read_text(encoding="utf-8"))
    for kind in given.kinds:
        with running(kind, servers=given.servers) as stack:
            plan = plan_of(kind, quick=given.quick, soak_s=given.soak_s, pause_s=given.pause_s)
            name = kind if given.servers == 1 else f"{kind}-{given.servers}-servers"
            found[name] = {"quick": given.quick, "servers": given.servers, **_run(stack, plan, given.parts)}
        if given.json is not None:
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _run(stack: Stack, plan: Plan, chosen: Sequence[str]) -> dict[str, Any]:
    fleet = Fleet.enrolled(stack, max(*plan.waiting, plan.exchanging))
    agents, working = fleet.agents, fleet.agents[: plan.exchanging]
    found: dict[str, Any] = {"machine": {"cores": len(os.sched_getaffinity(0))}}
    if "waiting" in chosen:
        found["waiting"] = [
            _measured(
                f"waiting {count}",
                stack,
                lambda count=count, heartbeats=heartbeats: parts.waiting(  # type: ignore[misc]
                    stack, fleet, agents[:count], plan.hold_s, plan.wakes, heartbeats=heartbeats
                ),
            )
            for count in plan.waiting
            for heartbeats in (False, True)
        ]
    if "exchanging" in chosen:
        found["exchanging"] = []
        for number, batch in enumerate(plan.batches):
            fleet.give_work(stack, working, plan.tasks_each, 10_000 * (1 + number))
            found["exchanging"].append(
                _measured(
                    f"exchanging, {batch} at a time",
                    stack,
                    lambda batch=batch: parts.exchanging(stack, working, batch, plan.exchange_s),  # type: ignore[misc]
                )
            )
    if "queued" in chosen:
        found["queued"] = _measured(
            "queued", stack, lambda: _as_figures(parts.queued(stack, fleet, agents[-1], plan.depths, plan.claims))
        )
    if "together" in chosen and plan.soak_s:
        waiting = agents[plan.exchanging : max(plan.waiting)]
        found["together"] = _measured(
            "together",
            stack,
            lambda: parts.together(
                stack, fleet, waiting, working, plan.viewers, plan.tasks_each, plan.soak_s, plan.pause_s
            ),
        )
    if "jobs" in chosen:
        found["jobs"] = _measured("jobs", stack, lambda: _as_figures(parts.jobs(stack, fleet, plan.jobs, plan.claims)))
    found["measurements_stored"] = parts.stored_measurements(stack)
    return found


async def _as_figures(work: Coroutine[Any, Any, list[dict[str, Any]]]) -> dict[str, Any]:
    return {"by_depth": await work}


def _measured(name: str, stack: Stack, work: Callable[[], Coroutine[Any, Any, dict[str, Any]]]) -> dict[str, Any]:
    """A part's figures. Work that it left is withdrawn: the next part begins with its own alone."""
    before = os.getloadavg()[0]
    figures = asyncio.run(work())
    print(f"{name}: {json.dumps(figures)}", flush=True)
    _withdraw(stack)
    return {**figures, "load_average": [round(before, 1), round(os.getloadavg()[0], 1)]}


def _withdraw(stack: Stack) -> None:
    """End what waits or is lent: handed out to see how soon it is felt, or more than was done."""
    from sqlalchemy import update

    from server.models import TaskRow
    from server.states import TaskState

    with stack.database.write() as session:
        session.execute(
            update(TaskRow)
            .where(TaskRow.state.in_([TaskState.PENDING, TaskState.LEASED]))
            .values(state=TaskState.CANCELLED, lease_id=None, lease_expires_at=None)
        )


if __name__ == "__main__":
    main()
