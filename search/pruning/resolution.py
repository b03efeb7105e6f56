"""Whether a network takes another resolution: shapes may be written into it."""

from __future__ import annotations

import torch
from torch import nn

from device_agent.contracts import ContractError
from search.domain.network import NetworkSpec
from search.domain.space import Decisions, SearchSpace, VariableKind
from search.lowering import lower
from search.pruning.fold import first_difference
from search.pruning.fuse import fuse_network
from search.pruning.operators import UnsupportedNetwork


def check_resolutions(model: nn.Module, spec: NetworkSpec, space: SearchSpace) -> None:
    """Trace `model` at each resolution of `space`, and compare it with what lowering says.

    Raises `ContractError`, naming the side and why, for the first that the network does not take.
    """
    for variable in space.variables:
        if variable.kind is not VariableKind.RESOLUTION:
            continue
        for choice in variable.choices:
            reason = _reason_to_refuse(model, spec, int(choice))
            if reason is not None:
                raise ContractError(
                    f"{spec.architecture} does not take an input of {choice}x{choice}: {reason}. Give sides that it "
                    "takes (space.resolution.sides), or leave space.resolution out"
                )


@torch.no_grad()
def _reason_to_refuse(model: nn.Module, spec: NetworkSpec, side: int) -> str | None:
    channels = spec.plan.input_shape[0]
    try:
        plan = lower(spec, Decisions(resolution=side))
        fused = fuse_network(model, (channels, side, side), spec.plan.name)
    except (ContractError, UnsupportedNetwork) as error:
        return str(error)
    return first_difference(fused.plan, plan)
