"""A `.kerf` network as it is, dense, in the form that runs."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from device_agent.contracts import ContractError, NetworkPlan
from search.domain.space import Decisions
from search.networks.build import build_joined
from search.networks.file import Network
from search.pruning.apply import apply_decisions
from search.pruning.fold import to_plan_tensors
from search.pruning.operators import UnsupportedNetwork
from search.pruning.trace import trace_network


def dense_network(network: Network) -> tuple[NetworkPlan, dict[str, NDArray[np.float32]]]:
    """The plan and the tensors of a network, as `to_plan_tensors` gives them.

    Raises `ContractError` where it has something that no kernel runs.
    """
    built = build_joined(network)
    document = network.document
    try:
        spec = trace_network(built.model, document.input.shape, document.name)
    except UnsupportedNetwork as error:
        raise ContractError(
            f"{document.name} has something that no kernel runs yet: {error}. `kerf models inspect` lists all of it"
        ) from None
    dense = Decisions()
    return to_plan_tensors(apply_decisions(built.model, spec, dense), spec, dense)
