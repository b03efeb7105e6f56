"""From a pruned torch model to what the device runs: its plan, and tensors with batch norm folded in."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from device_agent.contracts import DENSE, NetworkPlan
from search.domain.network import NetworkSpec
from search.domain.space import Decisions
from search.errors import SearchError
from search.lowering import lower
from search.pruning.apply import PrunedModel
from search.pruning.fuse import FusedModules, fuse_network

FloatArray = NDArray[np.float32]


class PlanMismatch(SearchError):
    """A pruned model does not have the structure that its decisions say. A defect: do not catch."""


def to_plan_tensors(
    pruned: PrunedModel, spec: NetworkSpec, decisions: Decisions
) -> tuple[NetworkPlan, dict[str, FloatArray]]:
    """The plan of a pruned network and its weights.

    The plan is `lower(spec, decisions)`. The pruned model is traced anew and must fuse to that same plan, so that what
    was predicted, what was trained and what will run are one network.

    Returns:
        The plan, and float32 tensors `<op>.weight` of `KernelSpec.weight_shape`, with zeros, and `<op>.bias`.

    Raises:
        PlanMismatch: The model and the decisions disagree.
    """
    plan = lower(spec, decisions)
    fused = fuse_network(pruned.model, plan.input_shape, plan.name)
    difference = first_difference(fused.plan, plan)
    if difference is not None:
        raise PlanMismatch(difference)
    tensors: dict[str, FloatArray] = {}
    for op in plan.ops:
        if not op.kernel.op.has_weights:
            continue
        weight, bias = fold_batch_norm(pruned.model, fused.modules[op.name])
        weight = weight.reshape(op.kernel.weight_shape)
        mask = pruned.masks.get(fused.modules[op.name].weights)
        if (mask is None) != (op.kernel.pruning == DENSE):
            raise PlanMismatch(f"{op.name}: the plan says {op.kernel.pruning}, but its mask is {mask!r:.40}")
        if mask is not None and bool(np.any(weight[~mask.numpy()])):
            raise PlanMismatch(f"{op.name}: weights are not zero where its mask says so")
        tensors[f"{op.name}.weight"] = weight
        tensors[f"{op.name}.bias"] = bias
    return plan, tensors


def fold_batch_norm(model: nn.Module, modules: FusedModules) -> tuple[FloatArray, FloatArray]:
    """Weight and bias of a layer with the batch norm behind it folded in, computed in double precision.

    Of a batch norm alone, both are (channels,).
    """
    layer = model.get_submodule(modules.weights)
    name = modules.norm
    if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm1d):
        # Batch norm behind a layer that does nothing.
        weight, bias, name = np.ones(layer.num_features), np.zeros(layer.num_features), modules.weights
    else:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        weight = _double(layer.weight)
        bias = np.zeros(len(weight)) if layer.bias is None else _double(layer.bias)
    if name is not None:
        norm = model.get_submodule(name)
        assert isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = 1.0 / np.sqrt(_double(norm.running_var) + norm.eps)
        if norm.affine:
            scale = scale * _double(norm.weight)
        weight = weight * scale.reshape(-1, *(1,) * (weight.ndim - 1))
        bias = (bias - _double(norm.running_mean)) * scale
        if norm.affine:
            bias = bias + _double(norm.bias)
    return weight.astype(np.float32), bias.astype(np.float32)


def _double(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().numpy().astype(np.float64)


def _structure(plan: NetworkPlan, index: int) -> tuple[object, ...]:
    op = plan.ops[index]
    k = op.kernel
    shape = (k.in_channels, k.out_channels, k.input_h, k.input_w, k.kernel_h, k.kernel_w, k.stride, k.padding)
    return (op.name, op.inputs, op.residual, k.op, shape, k.residual, k.activation, k.pad_channels_before, k.groups)


def first_difference(actual: NetworkPlan, expected: NetworkPlan) -> str | None:
    """Where two plans differ in structure, pruning apart; None where they do not."""
    for index in range(min(len(actual.ops), len(expected.ops))):
        if _structure(actual, index) != _structure(expected, index):
            return f"the model has {_structure(actual, index)} where the decisions say {_structure(expected, index)}"
    if len(actual.ops) != len(expected.ops):
        return f"the model has {len(actual.ops)} operators where the decisions say {len(expected.ops)}"
    return None
