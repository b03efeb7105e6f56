"""Stacks of real processes on a simulated device, and searches small enough for seconds."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from device_agent.contracts import MeasuringSetup
from search.domain.config import MeasuringConfig, SearchConfig, SelectionConfig
from server.cli.demo import demo_config
from server.cli.local_stack import LocalStack, StackOptions, running_stack


@pytest.fixture(scope="session")
def simulated_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """One server, worker and simulated agent for the whole session."""
    options = StackOptions(state_dir=tmp_path_factory.mktemp("stack"), simulated=True)
    with running_stack(options) as stack:
        yield stack


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def simulated_search(name: str) -> SearchConfig:
    """The demo's search on the simulated device, with every budget cut to seconds."""
    config = demo_config(quick=True)
    setup = MeasuringSetup(runtime="simulated")
    return dataclasses.replace(
        config,
        name=name,
        model=dataclasses.replace(config.model, train_epochs=4),
        method=dataclasses.replace(config.method, population=8, generations=3),
        measuring=MeasuringConfig(kernels=setup, networks=setup, calibration_networks=4, max_kernels=60),
        selection=SelectionConfig(candidates=3),
        training=dataclasses.replace(config.training, epochs=1),
    )


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"
