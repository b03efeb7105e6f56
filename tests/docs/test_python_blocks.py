"""The Python that pages show: all of it compiles, and what is said to be complete is tried."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from device_agent.contracts import KernelTask, Measurement, MeasuringSetup
from device_agent.measuring.task import Surroundings, measure_task
from search.algorithms.base import Searcher
from search.algorithms.repair import least_violating
from search.domain.objective import Constraint, Objective
from search.domain.space import SearchSpace
from search.problem import SearchProblem
from tests.docs.blocks import blocks, pages
from tests.unit.device_agent.runtimes.runtime_samples import KERNELS
from tests.unit.search.algorithms.searcher_suite import SPACE, TWO, SearcherSuite

SHOWN = [block for page in pages() for block in blocks(page) if block.language == "python"]


def names_of(page: str) -> dict[str, Any]:
    """What the first block of a page defines."""
    block = next(block for block in SHOWN if block.page == page)
    names: dict[str, Any] = {}
    exec(compile(block.text, block.where, "exec"), names)
    return names


@pytest.mark.parametrize("block", SHOWN, ids=lambda block: block.where)
def test_what_is_shown_is_python(block: Any) -> None:
    compile(block.text, block.where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


class TestShownSearcher(SearcherSuite):
    """The searcher of how-to/new-searcher.md does all that a searcher must."""

    METHOD = "climbing"

    def make(
        self,
        space: SearchSpace = SPACE,
        *,
        population: int = 12,
        seed: int = 0,
        objectives: Sequence[Objective] = TWO,
        constraints: Sequence[Constraint] = (),
        **known: Any,
    ) -> Searcher:
        problem = SearchProblem(space=space, objectives=tuple(objectives), constraints=tuple(constraints), **known)
        if problem.known_constraints:
            least_violating(problem)  # as `make_searcher` does for all of them
        searcher: Searcher = names_of("docs/how-to/new-searcher.md")["ClimbingSearcher"](
            problem, population=population, seed=seed
        )
        return searcher


@pytest.mark.parametrize("name", ["conv", "conv residual", "concatenate", "fully connected"])
def test_the_shown_runtime_is_measured(name: str, tmp_path: Path) -> None:
    runtime = names_of("docs/how-to/new-runtime.md")["NumpyRuntime"]()
    setup = MeasuringSetup(runtime="numpy", budget_s=0.05, min_sample_s=1e-5, samples_per_block=2, min_warmup_s=0.0)
    kernel = KERNELS[name]
    found = measure_task(
        KernelTask(kernel=kernel, setup=setup), surroundings=Surroundings(cores=(), make_runtime=lambda _: runtime)
    )
    assert isinstance(found, Measurement), found
    assert found.provenance.runtime_version == f"numpy {np.__version__}"
