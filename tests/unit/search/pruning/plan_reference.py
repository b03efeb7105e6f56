"""A plan run by torch, operator by operator: what fused plans are compared with in tests."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from device_agent.contracts import NETWORK_INPUT, NetworkPlan, Op, PlanOp
from tests.unit.device_agent.torch_parts import activated, moved_channels, num_groups, with_second


def run_plan(plan: NetworkPlan, tensors: Mapping[str, np.ndarray], x: Tensor) -> Tensor:
    """Outputs (n, c, h, w) of a plan for inputs (n, c, h, w), in double precision."""
    values = {NETWORK_INPUT: x.double()}
    for op in plan.ops:
        y = _run_op(op, [values[name] for name in op.inputs], tensors)
        if op.residual is not None:
            y = y + values[op.residual]
        values[op.name] = activated(y, op.kernel.activation)
    return values[plan.output_name]


def _run_op(op: PlanOp, inputs: list[Tensor], tensors: Mapping[str, np.ndarray]) -> Tensor:
    k, x = op.kernel, inputs[0]
    if k.op.has_weights:
        weight = torch.from_numpy(tensors[f"{op.name}.weight"]).double()
        bias = torch.from_numpy(tensors[f"{op.name}.bias"]).double()
        assert weight.shape == k.weight_shape
        return F.conv2d(x, weight, bias, stride=k.stride, padding=k.padding, groups=num_groups(k))
    if len(inputs) > 1:
        return with_second(k, x, inputs[1])
    if k.op is Op.MAX_POOL:
        return F.max_pool2d(x, (k.kernel_h, k.kernel_w), k.stride, k.padding)
    if k.op is Op.AVG_POOL:
        return F.avg_pool2d(x, (k.kernel_h, k.kernel_w), k.stride)
    if k.op is Op.GLOBAL_AVG_POOL:
        return x.mean((2, 3), keepdim=True)
    if k.op in (Op.FIRST_CHANNELS, Op.LAST_CHANNELS, Op.CHANNEL_SHUFFLE):
        return moved_channels(k, x)
    behind = k.out_channels - k.in_channels - k.pad_channels_before
    return F.pad(x[:, :, :: k.stride, :: k.stride], (0, 0, 0, 0, k.pad_channels_before, behind))
