"""Whether a rebuilt network computes what the original does: outputs, gradients, and training."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from device_agent.contracts import ContractError
from search.networks.build import BuiltNetwork
from search.networks.capture import Capture
from search.networks.walker import Walker, place_of

#: Of the largest value, or absolutely where all are below 1: float32 sums in another order differ by less.
TOLERANCE = 1e-5
#: Gradients are sums over all pixels, and their terms cancel.
GRADIENT_TOLERANCE = 1e-4
_RANDOM_BATCHES = 3


def check_agreement(capture: Capture, walker: Walker, built: BuiltNetwork, example: Tensor | None) -> tuple[str, ...]:
    """Compare the original with the rebuilt network. Returns notes on what differs in training.

    Raises `ContractError` naming the first difference.
    """
    generator = torch.Generator().manual_seed(1)
    fixed = capture.batch if not capture.is_module and isinstance(capture.batch, int) else None
    inputs = [
        torch.randn(fixed or count, *capture.input_shape, generator=generator)
        for count in range(2, 2 + _RANDOM_BATCHES)
    ]
    for x in (*inputs, *(() if example is None else (example,))):
        _check_outputs(capture, walker, built, x)
    _check_gradients(capture, walker, built, inputs[0], generator)
    if not capture.is_module:
        return ("how the network differs in training was not compared, as an exported program only evaluates",)
    return _compare_training(capture.source, built.model, inputs[0])


def difference(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value where that is above 1; infinite for other shapes."""
    if actual.shape != expected.shape:
        return float("inf")
    if not actual.numel():
        return 0.0
    scale = max(1.0, float(expected.abs().max()))
    found = float((actual - expected).abs().max()) / scale
    return found if found == found else float("inf")


@torch.no_grad()
def _check_outputs(capture: Capture, walker: Walker, built: BuiltNetwork, x: Tensor) -> None:
    try:
        expected = _tensors(capture.source(x))
    except RuntimeError as error:
        raise ContractError(
            f"the network does not run on {len(x)} images: {str(error).splitlines()[0]:.200}. It must take any number"
        ) from None
    actual = _tensors(built.model(x))
    worst = max((difference(a, e) for a, e in zip(actual, expected, strict=False)), default=0.0)
    if len(actual) != len(expected) or not worst <= TOLERANCE:
        raise ContractError(
            f"the converted network differs from the original by {worst:.3g} on {len(x)} images, more than "
            f"{TOLERANCE:g}: {_first_difference(capture, walker, built, x)}{_writes(walker)}"
        )


def _writes(walker: Walker) -> str:
    """Where the original writes into tensors: a part that is read under another name is the likeliest difference."""
    if not walker.writes:
        return ""
    return (
        f". The original writes into tensors that it reads, at {place_of(walker.writes[0])}: where a part of such a "
        "tensor is written or read afterwards, compute a new tensor instead (x = x * 2 for x.mul_(2))"
    )


class Recorder(fx.Interpreter):
    """Runs a graph and keeps a copy of the tensor of each node, as it is when its node has run."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            self.found[n] = result.clone()
        return result


def _first_difference(capture: Capture, walker: Walker, built: BuiltNetwork, x: Tensor) -> str:
    original, rebuilt = Recorder(capture.program.graph_module), Recorder(built.model)
    leaves = capture.leaves
    placeholders = [node for node in capture.program.graph.nodes if node.op == "placeholder"]
    try:
        original.run(*(x if n is capture.image else leaves[n.name].tensor.clone() for n in placeholders))
        rebuilt.run(x)
    except (RuntimeError, KeyError):
        return "the place was not found"
    for node, name in walker.computed_by.items():
        made = built.graph_nodes.get(name)
        if made in rebuilt.found and node in original.found:
            found = difference(rebuilt.found[made], original.found[node])
            if not found <= TOLERANCE:
                return f"the first difference is at {name!r} ({node.target}), {found:.3g}"
    return "no single node differs, so something is done outside of the traced graph"


def _check_gradients(
    capture: Capture, walker: Walker, built: BuiltNetwork, x: Tensor, generator: torch.Generator
) -> None:
    """Gradients of a random linear function of the outputs, with respect to every parameter of the original."""
    original = capture.source
    names = {leaf.name for leaf in capture.leaves.values() if leaf.is_trained}
    wanted = {n: p for n, p in original.named_parameters() if n in names and p.requires_grad}
    outputs = _tensors(original(x))
    factors = [torch.randn(o.shape, generator=generator) for o in outputs]
    expected = _gradients(outputs, factors, wanted)
    rebuilt = dict(built.model.named_parameters())
    actual = _gradients(_tensors(built.model(x)), factors, {n: p for n, p in rebuilt.items() if p.requires_grad})
    for name, gradient in expected.items():
        mine = actual.get(walker.renamed.get(name, ""))
        if gradient is None or not bool(gradient.any()):
            if mine is not None and bool(mine.any()):
                raise ContractError(
                    f"the original does not train {name!r}, but the converted network would: use .detach() in its "
                    "source rather than .data, or set requires_grad=False"
                )
            continue
        found = float("inf") if mine is None else _relative(mine.reshape(gradient.shape), gradient)
        if not found <= GRADIENT_TOLERANCE:
            raise ContractError(
                f"the gradient of {name!r} in the converted network differs from the original's by {found:.3g}, more "
                f"than {GRADIENT_TOLERANCE:g} of its largest value"
            )


def _relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


def _gradients(
    outputs: Sequence[Tensor], factors: Sequence[Tensor], parameters: Mapping[str, Tensor]
) -> dict[str, Tensor | None]:
    loss = torch.stack([(o * f).sum() for o, f in zip(outputs, factors, strict=True)]).sum()
    if not parameters or not loss.requires_grad:
        return dict.fromkeys(parameters)
    try:
        found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    except RuntimeError as error:
        raise ContractError(
            f"the network cannot be trained, as its gradients cannot be computed: {str(error).splitlines()[0]:.200}. "
            "Where it is an operator in place, compute a new tensor instead (x = x + 1 for x += 1)"
        ) from None
    return dict(zip(parameters, found, strict=True))


@torch.no_grad()
def _compare_training(original: nn.Module, rebuilt: nn.Module, x: Tensor) -> tuple[str, ...]:
    """Whether both do the same in training mode with the same random numbers; what does not is told, not refused."""
    found = []
    for model in (original, rebuilt):
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            try:
                found.append(_tensors(copy.deepcopy(model).train()(x)))
            except (RuntimeError, ValueError) as error:
                return (f"training mode was not compared, as it does not run: {str(error).splitlines()[0]:.200}",)
    theirs, ours = found
    if len(theirs) == len(ours) and all(difference(a, e) <= TOLERANCE * 10 for a, e in zip(ours, theirs, strict=True)):
        return ()
    return (
        "in training mode the original computes something else (such as stochastic depth or auxiliary outputs): the "
        "file holds what it does in evaluation mode, with dropout and batch norm, and that is what will be trained",
    )


def _tensors(result: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]
