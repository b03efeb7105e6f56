"""Who does the heavy work of a search: the worker itself, more processes on its machine, or a Ray cluster."""

from __future__ import annotations

import os

import torch

from search.compute import gpu
from search.parallel.crew import Crew, InlineCrew, Prepare
from search.parallel.processes import ProcessCrew
from search.parallel.ray_cluster import RayCrew
from server.settings import Settings

#: By itself, a worker takes a process for so many cores: one uses several as well, and each holds the network and data.
CORES_PER_PROCESS = 4


def num_threads(settings: Settings) -> int | None:
    """Threads of torch in each process; None leaves them as PREPARING set them, for a crew of the worker alone."""
    if settings.evaluator_threads:
        return settings.evaluator_threads
    if settings.ray_address:
        return 1
    processes = _num_processes(settings)
    # What is too small to share among threads is so in every process.
    return None if processes == 1 else min(torch.get_num_threads(), max(1, _cores() // processes))


def make_crew(settings: Settings, prepare: Prepare) -> Crew:
    """The crew that the settings ask for; it starts with its first piece. The caller closes it."""
    if settings.ray_address:
        return RayCrew(
            prepare,
            settings.evaluators,
            address=settings.ray_address,
            cpus=num_threads(settings) or 1,
            gpus=settings.evaluator_gpus,
        )
    processes = _num_processes(settings)
    return InlineCrew(prepare) if processes == 1 else ProcessCrew(prepare, processes)


def require_gpu(settings: Settings) -> None:
    """Raise `ContractError` where the settings ask for a GPU of this machine, and torch sees none."""
    if settings.evaluator_gpus and not settings.ray_address:
        gpu()


def shares_files(settings: Settings) -> bool:
    """Whether all processes of a crew see the worker's own files."""
    return not settings.ray_address


def _num_processes(settings: Settings) -> int:
    return settings.evaluators or max(1, _cores() // CORES_PER_PROCESS)


def _cores() -> int:
    return len(os.sched_getaffinity(0))
