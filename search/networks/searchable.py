"""What a config asks of a user's network that its document alone can tell: before anything is queued or measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from device_agent.contracts import ContractError
from search.domain.config import TOP1, Method, SearchConfig
from search.networks.document import NetworkDocument
from search.networks.ops import NetworkOp


def check_searchable(document: NetworkDocument, config: SearchConfig) -> None:
    """Raise `ContractError` with the remedy where a search by `config` cannot work on this network."""
    outputs = document.outputs
    if config.task == TOP1 and len(outputs) != 1:
        raise ContractError(
            f"the network {document.name!r} has {len(outputs)} outputs ({', '.join(outputs)}), and top-1 accuracy "
            "would not know which of them are the classes: name a task of your own, which gets them joined, or convert "
            "the network with the output of the classes alone"
        )
    grouped = [n.name for n in document.nodes if n.op is NetworkOp.CONV2D and _is_grouped(n.attributes)]
    if grouped and Method.EXACT in (config.method.name, config.method.seed_with):
        where = "method.name" if config.method.name is Method.EXACT else "method.seed_with"
        raise ContractError(
            f"the network {document.name!r} has grouped convolutions ({', '.join(grouped[:3])}), whose errors cannot "
            f"be estimated layer by layer as {where} 'exact' does: use another method, such as 'jcw' or 'nsga2'"
        )


def _is_grouped(convolution: Mapping[str, Any]) -> bool:
    """Whether a convolution has groups of several channels: one channel each is a depthwise layer."""
    return bool(1 < convolution["groups"] < convolution["in_channels"])
