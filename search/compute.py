"""Where torch computes: on the processor, or on a GPU.

What chooses and removes weights runs on the processor whatever is asked for: it is little, and equal everywhere. Only
running and training networks moves to the GPU.
"""

from __future__ import annotations

import torch
from torch import nn

from device_agent.contracts import ContractError

CPU = torch.device("cpu")


def gpu() -> torch.device:
    """The first GPU that this process sees: a Ray cluster shows each of its processes what was set aside for it.

    Raises `ContractError` where torch sees none.
    """
    if not torch.cuda.is_available():
        raise ContractError(
            f"KERF_EVALUATOR_GPUS asks for a GPU, and torch {torch.__version__} sees none in this process: look "
            "whether `nvidia-smi` shows one and torch is a build with CUDA, or set KERF_EVALUATOR_GPUS to 0"
        )
    return torch.device("cuda", 0)


def device_of(model: nn.Module) -> torch.device:
    """Where a network's weights are; a network without any runs on the processor."""
    return next((tensor.device for tensor in model.parameters()), CPU)
