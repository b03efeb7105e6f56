"""Contracts as JSON: round trips, refusals that name the place, and identities that stay."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pytest

from device_agent.contracts import (
    Clock,
    ContractError,
    KernelSpec,
    KernelTask,
    Lease,
    MeasuringSetup,
    NetworkFormat,
    NetworkTask,
    Op,
    PruningScheme,
    ThermalMode,
    WeightPruning,
    canonical_json,
    decode,
    dumps,
    encode,
    kernel_id,
    loads,
    setup_id,
)


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    number: float
    colour: Colour = Colour.RED


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    items: tuple[Inner, ...]
    pair: tuple[int, str] = (1, "a")
    table: dict[str, int] = field(default_factory=dict)
    maybe: Inner | None = None


def kernel(**changes: Any) -> KernelSpec:
    values: dict[str, Any] = {
        "op": Op.CONV2D, "in_channels": 16, "out_channels": 32, "input_h": 8, "input_w": 8,
        "kernel_h": 3, "kernel_w": 3, "padding": 1,
    }  # fmt: skip
    return KernelSpec(**{**values, **changes})


def test_nested_values_come_back_equal() -> None:
    value = Outer(items=(Inner(number=1.5), Inner(number=2)), pair=(3, "b"), table={"x": 1}, maybe=Inner(number=0.0))
    assert loads(Outer, dumps(value)) == value


@pytest.mark.parametrize(
    "task",
    [
        KernelTask(kernel=kernel(), setup=MeasuringSetup(runtime="native")),
        NetworkTask(
            artifact_sha256="0" * 64,
            artifact_bytes=10,
            format=NetworkFormat.TFLITE,
            input_shape=(3, 32, 32),
            setup=MeasuringSetup(runtime="tflite"),
        ),
    ],
)
def test_a_lease_keeps_the_kind_of_its_task(task: KernelTask | NetworkTask) -> None:
    lease = Lease(lease_id="l", task_id="t", attempt=2, duration_s=60.0, deadline_s=30.0, task=task)
    assert loads(Lease, dumps(lease)) == lease


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"items": []} | {"itms": 1}, r"Outer: unknown field 'itms'; known are items, pair, table, maybe"),
        ({}, r"Outer: the field 'items' is missing"),
        ({"items": [{"number": "1"}]}, r"Outer\.items\[0\]\.number: expected float, got '1'"),
        ({"items": [{"number": True}]}, r"number: expected float, got True"),
        ({"items": [{"number": 1, "colour": "blue"}]}, r"colour: 'blue' is not one of 'red'"),
        ({"items": [], "pair": [1]}, r"Outer\.pair: expected 2 items, got 1"),
        ({"items": [], "table": {"x": 1.5}}, r"Outer\.table\.x: expected int, got 1\.5"),
        ({"items": 3}, r"Outer\.items: expected a list, got 3"),
        ([], r"Outer: expected an object, got \[\]"),
        ({"items": [], "maybe": {"number": 1, "color": "red"}}, r"Outer\.maybe: unknown field 'color'"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_place(data: object, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        decode(Outer, data)


@pytest.mark.parametrize("data", [[[]] * 100_000, {"k" * 100_000: 1}, {"items": "x" * 100_000}, {"pair": [{}] * 9_999}])
def test_a_large_value_is_shown_in_part(data: object) -> None:
    with pytest.raises(ContractError) as refused:
        decode(Outer, data)
    assert len(str(refused.value)) < 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """Of its own type, and with alternatives whose order counts."""

    size: float | int = 0
    label: int | float | str = 0
    leaves: tuple[Tree, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)


def test_alternatives_are_tried_in_their_order() -> None:
    tree = decode(Tree, {"size": 1, "label": 1, "leaves": [{"label": "a"}]})
    assert (type(tree.size), type(tree.label)) == (float, int)
    assert tree.leaves == (Tree(label="a"),)
    assert decode(Tree, {"notes": {"any": [1, None]}}).notes == {"any": [1, None]}
    with pytest.raises(
        ContractError, match=r"Tree\.leaves\[0\]\.size: no alternative fits: Tree\.leaves\[0\]\.size: exp"
    ):
        decode(Tree, {"leaves": [{"size": "big"}]})


def test_numbers_that_json_does_not_have_are_refused_both_ways() -> None:
    for number in (math.nan, math.inf):
        with pytest.raises(ContractError, match="JSON"):
            encode(Inner(number=number))
        with pytest.raises(ContractError, match="finite"):
            loads(Inner, json.dumps({"number": number}))
    with pytest.raises(ContractError, match=r"Inner\.number: 1000[\d.]* is not a finite number"):
        loads(Inner, json.dumps({"number": 10**400}))


def test_text_that_is_no_json_is_a_contract_error() -> None:
    with pytest.raises(ContractError, match="not valid JSON"):
        loads(Inner, "{")


def test_a_check_of_the_class_names_the_place() -> None:
    data = encode(kernel()) | {"stride": 0}
    with pytest.raises(ContractError, match=r"KernelSpec: stride 0 is not in 1\.\.65536"):
        decode(KernelSpec, data)


def test_canonical_json_leaves_defaults_out_and_sorts() -> None:
    assert canonical_json(Outer(items=(Inner(number=1.0),))) == '{"items":[{"number":1.0}]}'
    assert canonical_json({"b": 1, "a": 2}) == '{"a":2,"b":1}'


def test_the_identity_of_a_setup_never_changes() -> None:
    # Part of every measurement's key: what was added later must not show in the identities of older setups.
    assert setup_id(MeasuringSetup(runtime="native")) == "m_dbd14224c735042542bcb128f2dc5c4d"
    older = MeasuringSetup(runtime="tflite", threads=2, clock=Clock.WALL, budget_s=3.0, ci_half_width=0.01)
    assert setup_id(older) == "m_24a047b176b57af61177b512a35979a1"
    cold = MeasuringSetup(runtime="native", thermal_mode=ThermalMode.COLD)
    several = MeasuringSetup(runtime="native", processes=6)
    assert len({setup_id(setup) for setup in (MeasuringSetup(runtime="native"), cold, several)}) == 3


def test_the_identity_of_a_kernel_never_changes() -> None:
    # These identities are stored in databases: a change here orphans every measurement.
    sparse = WeightPruning(scheme=PruningScheme.GROUP, density=0.25, block_filters=4)
    assert kernel_id(kernel()) == "k_c80d472af1530b55bd29151e0bf35e59"
    assert kernel_id(kernel(pruning=sparse)) == "k_9e8b116452f43c8254a7954459124f47"
    assert kernel_id(kernel(stride=1)) == kernel_id(kernel())
    assert kernel_id(kernel(seed=1)) != kernel_id(kernel())
