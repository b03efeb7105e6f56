"""A search on the simulated device that is small enough for seconds."""

from __future__ import annotations

import dataclasses

from device_agent.contracts import MeasuringSetup
from search.domain.config import MeasuringConfig, SearchConfig, SelectionConfig
from server.cli.demo import demo_config


def simulated_search(name: str) -> SearchConfig:
    """The demo's search on the simulated device, with every budget cut to seconds."""
    config = demo_config(quick=True)
    setup = MeasuringSetup(runtime="simulated")
    return dataclasses.replace(
        config,
        name=name,
        constraints=(),
        model=dataclasses.replace(config.model, train_epochs=4),
        method=dataclasses.replace(config.method, population=8, generations=3),
        measuring=MeasuringConfig(kernels=setup, networks=setup, calibration_networks=4, max_kernels=60),
        selection=SelectionConfig(candidates=3),
        training=dataclasses.replace(config.training, epochs=1),
    )
