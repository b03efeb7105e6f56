"""Faults, hundreds of them, on real processes; then what was lost, doubled or stuck, which must be nothing.

    python -m tests.chaos [--quick] [--seed 0] [--faults 500] [--json bench/results/chaos.json]

The whole runs half of the faults on SQLite and half on PostgreSQL; --quick takes under 50 s. Logs of all processes stay
in --folder. Ends with code 1 where anything was lost, doubled or stuck, or a search ended in another front.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from search.domain.config import SearchConfig
from tests.chaos.campaign import TASK_S, Campaign
from tests.chaos.deadly import DeadlyFindings, deadly_kernels
from tests.chaos.faults import FaultLog
from tests.chaos.ledger import Findings
from tests.chaos.processes import ChaosStack, chaos_stack, wait_until
from tests.chaos.unsteady_agent import Disturbance
from tests.end_to_end.stacks import simulated_search

#: An undisturbed search takes half a minute at most.
SEARCH_LIMIT_S = 300.0


def chaos_search(seed: int, *, quick: bool) -> SearchConfig:
    """A search of seconds, with all stages and some seventy measurements."""
    config = simulated_search("chaos")
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, train_epochs=1 if quick else 4),
        method=dataclasses.replace(config.method, seed=seed, generations=2 if quick else 4),
        selection=dataclasses.replace(config.selection, candidates=1 if quick else 3),
    )


def with_worker_and_agents(stack: ChaosStack, agents: Sequence[str]) -> None:
    """Start them, and wait until the devices are there."""
    stack.add("worker", [sys.executable, "-m", "server.cli", "worker"])
    for name in agents:
        stack.add_agent(name)
        stack.disturb(name, Disturbance(task_s=TASK_S))
    for name in agents:
        wait_until((stack.state_dir / name / "credentials.json").exists, f"{name} to enrol")


def undisturbed(campaign: Campaign, name: str, config: SearchConfig, agent: str) -> Any:
    """What a search finds when nothing happens to it."""
    campaign.submit(name, config, agent)
    wait_until(lambda: campaign.is_over(name), f"{name} to end", SEARCH_LIMIT_S)
    return campaign.outcome(name)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CampaignResult:
    """What one database's campaign came to."""

    searches: int
    differing: tuple[str, ...]
    findings: Findings
    deadly: DeadlyFindings | None
    unexpected_ends: tuple[str, ...]
    watchdog_resets: int


def run_campaign(
    folder: Path, log: FaultLog, *, postgresql: bool, seed: int, faults: int, quick: bool
) -> CampaignResult:
    """`faults` more faults on a new service, and everything that is to be looked at afterwards."""
    agents = ("agent-a", "agent-b")
    chance = random.Random(seed)
    seeds = (0,) if quick else (0, 1)
    configs = {s: chaos_search(s, quick=quick) for s in seeds}
    with chaos_stack(folder, log, postgresql=postgresql) as stack:
        with_worker_and_agents(stack, agents)
        campaign = Campaign(stack=stack, log=log, chance=chance, agents=agents)
        if quick:
            campaign.wire_share, campaign.mean_pause_s = 0.3, 1.0
        reference = {s: undisturbed(campaign, f"undisturbed {s}", configs[s], agents[0]) for s in seeds}
        log.note(f"undisturbed: {[found['state'] for found in reference.values()]}")
        used: dict[str, int] = {}

        def next_search(number: int) -> str:
            name, s = f"disturbed {number}", seeds[number % len(seeds)]
            used[name] = s
            log.note(f"search {name}")
            campaign.submit(name, configs[s], agents[number % 2])
            return name

        goal = log.total + faults
        names = campaign.run(lambda: log.total >= goal, next_search)
        differing = []
        for name in names:
            outcome = campaign.outcome(name)
            if json.dumps(outcome) != json.dumps(reference[used[name]]):
                differing.append(f"{name}: {outcome.get('error') or 'another front'}")
                (folder / f"{name}.json").write_text(json.dumps([outcome, reference[used[name]]], indent=1))
        deadly = None if quick else deadly_kernels(campaign, configs[0], agents, "agent-c")
        return CampaignResult(
            searches=len(names),
            differing=tuple(differing),
            findings=campaign.settled(),
            deadly=deadly,
            unexpected_ends=tuple(stack.unexpected_ends),
            watchdog_resets=stack.watchdog_resets,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one search on SQLite, under 50 s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", type=int, default=520, help="in the whole run (default: %(default)s)")
    parser.add_argument("--database", choices=("sqlite", "postgresql", "both"), default="both")
    parser.add_argument("--folder", type=Path, help="for logs (default: a temporary one, removed if all is well)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="kerf-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    began_at = time.monotonic()
    log = FaultLog(folder / "faults.log")
    databases = ["sqlite", "postgresql"] if options.database == "both" and not options.quick else [options.database]
    if databases == ["both"]:
        databases = ["sqlite"]
    results: dict[str, CampaignResult] = {}
    for number, database in enumerate(databases):
        results[database] = run_campaign(
            folder / database,
            log,
            postgresql=database == "postgresql",
            seed=options.seed + number,
            faults=16 if options.quick else -(-options.faults // len(databases)),
            quick=options.quick,
        )
    result = summary(log, results) | {"seed": options.seed, "seconds": round(time.monotonic() - began_at, 1)}
    print(json.dumps(result, indent=1))
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    is_well = result["fronts_equal"] and not any(
        result[name] for name in ("lost", "duplicated", "stuck", "unexpected_ends", "wrong")
    )
    if is_well and options.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    if not is_well:
        print(f"the logs are in {folder}", file=sys.stderr)
    return 0 if is_well else 1


def summary(log: FaultLog, results: dict[str, CampaignResult]) -> dict[str, Any]:
    """The figures of all campaigns together, and what was wrong in words."""
    found = [result.findings for result in results.values()]
    wrong = [
        f"{database}: {line}"
        for database, result in results.items()
        for line in (
            *result.findings.lost,
            *result.findings.duplicated,
            *result.findings.stuck,
            *result.differing,
            *result.unexpected_ends,
            *(result.deadly.wrong if result.deadly else ()),
        )
    ]
    return {
        "faults": log.total,
        "accepted": sum(f.accepted for f in found),
        "lost": sum(len(f.lost) for f in found),
        "duplicated": sum(len(f.duplicated) for f in found),
        "stuck": sum(len(f.stuck) for f in found),
        "fronts_equal": not any(result.differing for result in results.values()),
        "searches": sum(result.searches for result in results.values()),
        "unexpected_ends": sum(len(result.unexpected_ends) for result in results.values()),
        "databases": list(results),
        "faults_by_kind": log.by_kind,
        "deadly": {name: r.deadly.ends for name, r in results.items() if r.deadly is not None},
        "wrong": wrong[:50],
    }


if __name__ == "__main__":
    sys.exit(main())
