"""Sparse-encoded TFLite files: the rules of XNNPACK's sparse path, the encoding, and that they compute the same."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.contracts import Activation, ContractError, KernelSpec, Op, PlanOp, PruningScheme, WeightPruning
from device_agent.formats.tflite import plan_to_tflite, read_plan
from device_agent.formats.tflite_sparse import sparse_blocks
from device_agent.formats.tflite_sparsity import BlockSparseRows
from device_agent.formats.tflite_tensors import read_plan_tensors
from device_agent.runtimes.reference import run_network
from device_agent.synthesis import synthesize_input
from tests.unit.device_agent.runtimes.sparse_samples import (
    mobile_network,
    mobile_ops,
    network_of,
    pointwise,
    stem,
)

schema = pytest.importorskip("ai_edge_litert.schema_py_generated", reason="ai-edge-litert is not installed")
interpreter_module = pytest.importorskip("ai_edge_litert.interpreter", reason="ai-edge-litert is not installed")


def run_model(model: bytes, x: np.ndarray) -> np.ndarray:
    interpreter = interpreter_module.Interpreter(model_content=model, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x.transpose(1, 2, 0)[None])
    interpreter.invoke()
    return interpreter.get_tensor(interpreter.get_output_details()[0]["index"]).reshape(-1)


def test_a_sparse_file_computes_what_the_dense_one_does() -> None:
    plan, tensors = mobile_network()
    x = synthesize_input(plan.input_shape, 1)
    expected = run_network(plan, tensors, x).reshape(-1)
    for sparse in (False, True):
        got = run_model(plan_to_tflite(plan, tensors, sparse_1x1=sparse), x)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_encoding_reads_back_through_the_schema() -> None:
    plan, tensors = mobile_network()
    model = plan_to_tflite(plan, tensors, sparse_1x1=True)
    parsed = schema.ModelT.InitFromPackedBuf(model, 0)
    graph = parsed.subgraphs[0]
    stored = {t.name.decode(): t for t in graph.tensors if t.sparsity is not None}
    assert sorted(stored) == [f"pw{i}.weight.sparse" for i in range(1, 5)]
    csr, blocks = stored["pw1.weight.sparse"].sparsity, stored["pw2.weight.sparse"].sparsity
    weight = tensors["pw1.weight"][:, :, 0, 0]
    assert list(csr.traversalOrder) == [0, 1, 2, 3]
    assert [d.format for d in csr.dimMetadata] == [0, 0, 0, 1]
    assert [d.denseSize for d in csr.dimMetadata][:3] == [16, 1, 1]
    assert list(csr.dimMetadata[3].arraySegments.values) == [0, *np.cumsum((weight != 0).sum(1))]
    assert list(csr.dimMetadata[3].arrayIndices.values) == list(np.nonzero(weight)[1])
    values = parsed.buffers[stored["pw1.weight.sparse"].buffer].data.view("<f4")
    np.testing.assert_array_equal(values, weight[weight != 0])
    assert list(blocks.traversalOrder) == [0, 1, 2, 3, 4]
    assert list(blocks.blockMap) == [0]
    assert [d.denseSize for d in blocks.dimMetadata] == [4, 1, 1, 0, 4]
    kept = (tensors["pw2.weight"].reshape(4, 4, 16) != 0).any(axis=1)
    assert list(blocks.dimMetadata[3].arrayIndices.values) == list(np.nonzero(kept)[1])
    assert read_plan(model) == plan


def test_explicit_padding_where_the_sparse_path_takes_no_same() -> None:
    plan, tensors = mobile_network()
    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if isinstance(value, int)}

    def strided(sparse: bool) -> list[int]:
        parsed = schema.ModelT.InitFromPackedBuf(plan_to_tflite(plan, tensors, sparse_1x1=sparse), 0)
        heavy = [
            op
            for op in parsed.subgraphs[0].operators
            if names[parsed.operatorCodes[op.opcodeIndex].builtinCode] in ("CONV_2D", "DEPTHWISE_CONV_2D")
        ]
        return [op.builtinOptions.padding for op in heavy if op.builtinOptions.strideH == 2]

    assert strided(sparse=True) == [schema.Padding.VALID] * 3
    # On 7x7 TFLite's SAME pads alike, and a dense file says so.
    assert schema.Padding.SAME in strided(sparse=False)


def test_tensors_read_back_as_they_were() -> None:
    plan, tensors = mobile_network()
    for sparse in (False, True):
        read = read_plan_tensors(plan_to_tflite(plan, tensors, sparse_1x1=sparse), plan)
        assert sorted(read) == sorted(tensors)
        for name, values in tensors.items():
            np.testing.assert_array_equal(read[name], values)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_file_never_crashes_the_reader(data: st.DataObject) -> None:
    plan, tensors = mobile_network()
    model = bytearray(plan_to_tflite(plan, tensors, sparse_1x1=True))
    for _ in range(data.draw(st.integers(1, 8))):
        model[data.draw(st.integers(8, len(model) - 1))] = data.draw(st.integers(0, 255))
    try:
        read = read_plan_tensors(bytes(model), plan)
    except ContractError:
        return
    assert {name: values.shape for name, values in read.items()} == {n: v.shape for n, v in tensors.items()}


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 2, 4]), st.floats(0, 1), st.integers(0, 99))
def test_rows_become_dense_again(groups: int, columns: int, block: int, density: float, seed: int) -> None:
    generator = np.random.default_rng(seed)
    dense = generator.standard_normal((groups * block, columns)).astype(np.float32)
    dense[generator.random(dense.shape) > density] = 0
    rows = BlockSparseRows.of(dense.reshape(groups * block, 1, 1, columns), block)
    np.testing.assert_array_equal(rows.to_dense(*dense.shape), dense)


def test_indices_outside_of_the_matrix_are_refused() -> None:
    rows = BlockSparseRows.of(np.eye(4, dtype=np.float32), 2)
    for changed in (
        dataclasses.replace(rows, columns=rows.columns + 3),
        dataclasses.replace(rows, columns=rows.columns - 1),
        dataclasses.replace(rows, segments=rows.segments[::-1].copy()),
        dataclasses.replace(rows, segments=rows.segments[:-1]),
        dataclasses.replace(rows, values=rows.values[:-1]),
        dataclasses.replace(rows, block=0),
    ):
        with pytest.raises(ContractError, match="do not fit 4 x 4"):
            changed.to_dense(4, 4)
    with pytest.raises(ContractError, match="blocks of 3 rows do not divide 4"):
        BlockSparseRows.of(np.eye(4, dtype=np.float32), 3)
    with pytest.raises(ContractError, match=re.escape("not (2, 3, 3, 2)")):
        BlockSparseRows.of(np.zeros((2, 3, 3, 2), np.float32), 1)


def changed_op(name: str, **changes: Any) -> Callable[[list[PlanOp]], list[PlanOp]]:
    """The operators with another kernel of one of them."""

    def change(ops: list[PlanOp]) -> list[PlanOp]:
        return [
            dataclasses.replace(op, kernel=dataclasses.replace(op.kernel, **changes)) if op.name == name else op
            for op in ops
        ]

    return change


def with_stem(kernel: KernelSpec) -> Callable[[list[PlanOp]], list[PlanOp]]:
    return lambda ops: [dataclasses.replace(ops[0], kernel=kernel), *ops[1:]]


def pooled(ops: list[PlanOp]) -> list[PlanOp]:
    pool = KernelSpec(
        op=Op.MAX_POOL, in_channels=8, out_channels=8, input_h=7, input_w=7, kernel_h=3, kernel_w=3, padding=1
    )
    return [ops[0], PlanOp(name="pool", kernel=pool, inputs=("stem",)), *(_reading("pool", ops[1:2])), *ops[2:]]


def _reading(source: str, ops: list[PlanOp]) -> list[PlanOp]:
    return [dataclasses.replace(op, inputs=(source,)) for op in ops]


def full_convolution(ops: list[PlanOp]) -> list[PlanOp]:
    kernel = dataclasses.replace(ops[2].kernel, kernel_h=3, kernel_w=3, padding=1)
    return [*ops[:2], dataclasses.replace(ops[2], kernel=kernel), *ops[3:]]


BROKEN = {
    "stem of 1 channel": (with_stem(stem(in_channels=1)), "'stem' has in_channels 1, not 3"),
    "stem of stride 1": (with_stem(stem(extent=7, stride=1)), "'stem' has stride 1, not 2"),
    "stem of 5x5": (with_stem(stem(kernel_h=5, kernel_w=5, padding=2)), "'stem' has kernel 5x5, not 3x3"),
    "stem without padding": (with_stem(stem(extent=15, padding=0)), "'stem' has padding 0, not 1"),
    "max pool": (pooled, "'pool' is max_pool, and XNNPACK's sparse path has 1x1 and depthwise"),
    "3x3": (full_convolution, "'pw1' is a 3x3 convolution with stride 1 and padding 1"),
    "7x7 depthwise": (
        changed_op("dw1", kernel_h=7, kernel_w=7, padding=3),
        "'dw1' is a 7x7 depthwise convolution with stride 1 and padding 3",
    ),
    "no mean": (lambda ops: ops[:-2], "'pw4' gives the network's output"),
    "two thirds dense": (
        changed_op("pw3", pruning=WeightPruning(scheme=PruningScheme.UNSTRUCTURED, density=0.9)),
        "prune 'pw3', which has the fewest",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_the_first_broken_rule_and_its_operator_are_named(name: str) -> None:
    change, words = BROKEN[name]
    plan, tensors = network_of(change(mobile_ops()))
    with pytest.raises(ContractError, match=re.escape(words)):
        plan_to_tflite(plan, tensors, sparse_1x1=True)
    # The same network can always be written dense.
    assert read_plan(plan_to_tflite(plan, tensors)) == plan


def test_a_network_without_1x1_convolutions_has_nothing_to_skip() -> None:
    ops = mobile_ops()[:2]
    mean = KernelSpec(op=Op.GLOBAL_AVG_POOL, in_channels=8, out_channels=8, input_h=7, input_w=7)
    plan, tensors = network_of([*ops, PlanOp(name="mean", kernel=mean, inputs=("dw1",))])
    with pytest.raises(ContractError, match="no 1x1 convolution"):
        plan_to_tflite(plan, tensors, sparse_1x1=True)


def test_zeros_are_counted_over_all_1x1_weights_and_exactly_two_thirds_are_too_few() -> None:
    plan, tensors = network_of(
        [
            PlanOp(name="stem", kernel=stem(6, 8), inputs=("input",)),
            PlanOp(name="a", kernel=pointwise(6, 6, 4), inputs=("stem",)),
            PlanOp(name="b", kernel=pointwise(6, 6, 4), inputs=("a",)),
            PlanOp(
                name="mean",
                kernel=KernelSpec(op=Op.GLOBAL_AVG_POOL, in_channels=6, out_channels=6, input_h=4, input_w=4),
                inputs=("b",),
            ),
        ]
    )
    first, second = np.zeros((6, 6), np.float32), np.zeros((6, 6), np.float32)
    first.flat[:3] = 1.0
    second.flat[:21] = 1.0
    tensors |= {"a.weight": first.reshape(6, 6, 1, 1), "b.weight": second.reshape(6, 6, 1, 1)}
    with pytest.raises(ContractError, match=re.escape("48 of 72 weights of the 1x1 convolutions are zero (66.7%)")):
        sparse_blocks(plan, tensors)
    first.flat[0] = 0.0
    # The denser one stays dense in the file: without zeros it would be larger.
    assert sparse_blocks(plan, tensors) == {"a": 1}
    model = plan_to_tflite(plan, tensors, sparse_1x1=True)
    x = synthesize_input(plan.input_shape, 0)
    np.testing.assert_allclose(run_model(model, x), run_network(plan, tensors, x).reshape(-1), rtol=1e-4, atol=1e-5)


def test_blocks_are_those_of_group_pruning_where_they_divide_the_filters() -> None:
    def blocks_of(channels_out: int, filters: int) -> dict[str, int]:
        group = WeightPruning(scheme=PruningScheme.GROUP, density=0.2, block_filters=filters)
        kernel = pointwise(8, channels_out, 4, pruning=group, activation=Activation.RELU)
        mean = KernelSpec(
            op=Op.GLOBAL_AVG_POOL, in_channels=channels_out, out_channels=channels_out, input_h=4, input_w=4
        )
        return sparse_blocks(
            *network_of(
                [
                    PlanOp(name="stem", kernel=stem(8, 8), inputs=("input",)),
                    PlanOp(name="kernel", kernel=kernel, inputs=("stem",)),
                    PlanOp(name="mean", kernel=mean, inputs=("kernel",)),
                ]
            )
        )

    assert blocks_of(16, 4) == {"kernel": 4}
    assert blocks_of(16, 2) == {"kernel": 2}
    assert blocks_of(18, 4) == {"kernel": 1}


def test_a_file_with_an_infinite_weight_needs_a_reason() -> None:
    plan, tensors = mobile_network()
    tensors["stem.bias"] = np.full(8, np.inf, np.float32)
    with pytest.raises(ContractError, match=r"'stem\.bias' holds values that are not finite"):
        plan_to_tflite(plan, tensors)
    assert plan_to_tflite(plan, tensors, allow_infinite=True)
