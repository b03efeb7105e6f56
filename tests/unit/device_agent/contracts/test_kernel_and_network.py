"""What a kernel and a plan say about themselves, and what they refuse."""

from __future__ import annotations

from typing import Any

import pytest

from device_agent.contracts import (
    Clock,
    ContractError,
    FailureReason,
    KernelSpec,
    MeasuringSetup,
    NetworkPlan,
    Op,
    PlanOp,
    PruningScheme,
    ThermalMode,
    WeightPruning,
)

CONV: dict[str, Any] = {
    "op": Op.CONV2D, "in_channels": 3, "out_channels": 8, "input_h": 7, "input_w": 9,
    "kernel_h": 3, "kernel_w": 3, "padding": 1, "stride": 2,
}  # fmt: skip


def test_shapes_and_counts_of_a_convolution() -> None:
    kernel = KernelSpec(**CONV, pruning=WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.5))
    assert (kernel.output_h, kernel.output_w) == (4, 5)
    assert kernel.weight_shape == (8, 3, 3, 3)
    assert kernel.dense_macs == 8 * 3 * 9 * 4 * 5
    assert kernel.macs == kernel.dense_macs // 2
    assert kernel.parameters == 8 * 3 * 9 // 2 + 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_channels": 0}, "in_channels 0"),
        ({"padding": 2}, "padding 2"),
        ({"input_h": 1, "padding": 0}, "does not fit a 1x9 input"),
        ({"op": Op.ADD}, "keeps its channels, but 3 != 8"),
        ({"op": Op.MUL, "out_channels": 3}, "mul has no window"),
        ({"op": Op.CONCAT, "out_channels": 3}, "the 3 channels of its first input and those of its second, not 3"),
        ({"op": Op.FIRST_CHANNELS, "out_channels": 3}, "leaves 3 of 3 channels: it must be fewer"),
        ({"op": Op.DEPTHWISE_CONV2D}, "8 is no multiple of 3"),
        ({"op": Op.ADD, "out_channels": 3, "groups": 3}, "add has no groups"),
        ({"in_channels": 4, "groups": 3}, "3 groups do not divide 4 input and 8 output channels"),
        ({"in_channels": 4, "groups": 2, "residual": True}, "takes no residual"),
        ({"op": Op.MAX_POOL, "out_channels": 3, "residual": True}, "only conv2d takes a residual"),
        ({"in_channels": 65536, "out_channels": 65536}, "weights exceed the limit"),
        (
            {"kernel_h": 1, "kernel_w": 1, "padding": 0, "pruning": WeightPruning(
                scheme=PruningScheme.PATTERN, density=0.4, pattern_entries=4)},
            "patterns are defined on 3x3 kernels, not 1x1",
        ),
    ],
)  # fmt: skip
def test_impossible_kernels_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        KernelSpec(**{**CONV, **changes})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"density": 0.5}, "name a pruning scheme"),
        ({"scheme": PruningScheme.GROUP, "density": 0.0}, r"density 0\.0"),
        ({"scheme": PruningScheme.UNSTRUCTURED, "density": 0.5, "block_filters": 4}, "1 x 1 blocks"),
        ({"scheme": PruningScheme.GROUP, "density": 0.5, "block_channels": 2}, "block_channels must be 1"),
        ({"scheme": PruningScheme.PATTERN, "density": 0.5, "pattern_entries": 4}, "at most 0.444"),
        ({"scheme": PruningScheme.GROUP, "density": 0.5, "pattern_entries": 4}, "belongs to PATTERN"),
    ],
)
def test_impossible_prunings_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        WeightPruning(**values)


def plan(*ops: PlanOp) -> NetworkPlan:
    return NetworkPlan(name="net", input_shape=(3, 7, 9), ops=ops)


def test_a_plan_counts_its_kernels_and_knows_its_output() -> None:
    conv = PlanOp(name="conv", kernel=KernelSpec(**CONV), inputs=("input",))
    pool = KernelSpec(op=Op.GLOBAL_AVG_POOL, in_channels=8, out_channels=8, input_h=4, input_w=5)
    made = plan(conv, PlanOp(name="pool", kernel=pool, inputs=("conv",)))
    assert made.output_shape == (8, 1, 1)
    assert made.macs == conv.kernel.macs
    assert made.parameters == conv.kernel.parameters


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (PlanOp(name="input", kernel=KernelSpec(**CONV), inputs=("input",)), "two tensors"),
        (PlanOp(name="conv", kernel=KernelSpec(**CONV), inputs=("later",)), "reads 'later', which no earlier"),
        (PlanOp(name="conv", kernel=KernelSpec(**{**CONV, "input_h": 8}), inputs=("input",)), r"expects \(3, 8, 9\)"),
        (PlanOp(name="conv", kernel=KernelSpec(**CONV), inputs=("input", "input")), "takes 1 inputs, not 2"),
        (PlanOp(name="conv", kernel=KernelSpec(**CONV), inputs=("input",), residual="input"), "disagree"),
    ],
)
def test_a_plan_that_reads_what_is_not_there_is_refused(op: PlanOp, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        plan(op)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runtime": ""}, "runtime is empty"),
        ({"threads": 2}, "set clock to 'wall'"),
        ({"min_blocks": 1}, "min_blocks"),
        ({"ci_half_width": 0.0}, "ci_half_width"),
        ({"processes": 3}, "processes 3 must be 1, or 6 to 64"),
        ({"thermal_mode": ThermalMode.COLD, "budget_s": 60.0}, "too long for the thermal mode 'cold'"),
        ({"load_s": 60.0}, "for the thermal mode 'sustained' only"),
        ({"load_s": 0.0, "thermal_mode": ThermalMode.SUSTAINED}, "load_s 0.0 must be positive"),
    ],
)
def test_impossible_setups_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        MeasuringSetup(**{"runtime": "native", **changes})
    assert MeasuringSetup(runtime="native", threads=2, clock=Clock.WALL).threads == 2


def test_every_failure_is_somebodys_fault() -> None:
    assert {reason.fault for reason in FailureReason} == {"task", "device", "agent", "server"}
    lasting = [FailureReason.UNSUPPORTED, FailureReason.INVALID_TASK]
    assert [r for r in FailureReason if r.is_lasting] == lasting
    not_transient = [*lasting, FailureReason.AGENT_OUTDATED, FailureReason.QUARANTINED]
    assert [r for r in FailureReason if not r.is_transient] == not_transient
