"""`kerf demo`: the main job on data that needs no download."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from device_agent.contracts import MeasuringSetup, encode
from search.domain.config import (
    AccuracyConfig,
    ChannelsConfig,
    DatasetConfig,
    MeasuringConfig,
    Method,
    MethodConfig,
    ModelConfig,
    SearchConfig,
    SelectionConfig,
    SpaceConfig,
    TrainingConfig,
    WeightsConfig,
)
from search.domain.objective import Constraint, Metric
from server.cli.console import JsonOption, make_console, print_json
from server.cli.local_stack import StackOptions, running_stack
from server.cli.searches import run_search


def demo_config(quick: bool) -> SearchConfig:
    """The demo's search: a small CNN on scikit-learn's 8x8 digits. `quick` shrinks every budget, not the flow."""
    config = SearchConfig(
        name="digits demo",
        model=ModelConfig(architecture="small_cnn", train_epochs=30),
        dataset=DatasetConfig(
            name="digits", mean=(0.3,), std=(0.37,), holdout_fraction=0.25, flip=False, crop_padding=1
        ),
        space=SpaceConfig(
            channels=ChannelsConfig(min_ratio=0.25, multiple_of=4, max_choices=7),
            weights=WeightsConfig(densities=(0.1, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0)),
        ),
        method=MethodConfig(name=Method.JCW, population=32, generations=12, seed=0),
        # Before training, at least 3 of 10 digits right: worse candidates do not recover in a short fine-tuning.
        constraints=(Constraint(metric=Metric.ERROR, max=0.7),),
        accuracy=AccuracyConfig(calibration_images=256, evaluation_images=300),
        measuring=MeasuringConfig(
            kernels=MeasuringSetup(runtime="native", budget_s=0.25, ci_half_width=0.03),
            networks=MeasuringSetup(runtime="native", budget_s=1.5, ci_half_width=0.02),
            max_kernels=120,
        ),
        selection=SelectionConfig(candidates=8),
        training=TrainingConfig(epochs=12, batch_size=64, learning_rate=0.02),
    )
    if not quick:
        return config
    return replace(
        config,
        model=replace(config.model, train_epochs=10),
        method=replace(config.method, population=16, generations=5),
        measuring=replace(
            config.measuring,
            kernels=replace(config.measuring.kernels, budget_s=0.1, ci_half_width=0.05),
            networks=replace(config.measuring.networks, budget_s=0.6),
            max_kernels=60,
        ),
        training=replace(config.training, epochs=4),
    )


def demo(
    output: Annotated[Path, typer.Option("--output", help="Folder for the result and the local state.")] = Path(
        "demo-out"
    ),
    quick: Annotated[bool, typer.Option("--quick", help="At most 90 s.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Run the whole flow on this machine: server, worker and agent, a small CNN on 8x8 digits, and its front."""
    console = make_console(as_json=as_json)
    with running_stack(StackOptions(state_dir=output / "state")) as stack, stack.client() as client:
        console.print(f"server and dashboard: {stack.url}")
        result = run_search(client, demo_config(quick), {}, output, console)
    if as_json:
        print_json(encode(result))
