"""A whole network as data: fused kernels in execution order.

The weights travel beside it: tensors named `<op name>.weight` (float32, `KernelSpec.weight_shape`) and
`<op name>.bias` (float32, (out_channels,)), batch norm already folded in.
"""

from __future__ import annotations

from dataclasses import dataclass

from device_agent.contracts.codec import ContractError, content_id
from device_agent.contracts.kernel import KernelSpec

#: The name by which operators refer to the network's input.
NETWORK_INPUT = "input"
#: The name of the second input, of a plan that has one: what a single kernel adds.
NETWORK_RESIDUAL = "residual"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOp:
    """One operator of a plan. `inputs` names earlier operators or "input"; ADD, MUL and CONCAT have two.

    `residual` names the tensor added before the activation when `kernel.residual` is set.
    """

    name: str
    kernel: KernelSpec
    inputs: tuple[str, ...]
    residual: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkPlan:
    """A network in execution order; the last operator's tensor is its output. Shapes are (channels, h, w).

    `residual_shape` gives the plan a second input, named "residual": a single kernel that adds a tensor needs it.
    Raises `ContractError` where an operator reads a tensor that is not there, or one of another shape.
    """

    name: str
    input_shape: tuple[int, int, int]
    ops: tuple[PlanOp, ...]
    version: int = 1
    residual_shape: tuple[int, int, int] | None = None

    def __post_init__(self) -> None:
        if not self.ops:
            raise ContractError(f"the network {self.name!r} has no operators")
        shapes = {NETWORK_INPUT: tuple(self.input_shape)}
        if self.residual_shape is not None:
            shapes[NETWORK_RESIDUAL] = tuple(self.residual_shape)
        for op in self.ops:
            if op.name in shapes:
                raise ContractError(f"two tensors of {self.name!r} are called {op.name!r}")
            _check_op(op, shapes)
            shapes[op.name] = (op.kernel.out_channels, op.kernel.output_h, op.kernel.output_w)

    @property
    def output_name(self) -> str:
        return self.ops[-1].name

    @property
    def output_shape(self) -> tuple[int, int, int]:
        kernel = self.ops[-1].kernel
        return (kernel.out_channels, kernel.output_h, kernel.output_w)

    @property
    def kernels(self) -> tuple[KernelSpec, ...]:
        return tuple(op.kernel for op in self.ops)

    @property
    def macs(self) -> int:
        return sum(k.macs for k in self.kernels)

    @property
    def parameters(self) -> int:
        return sum(k.parameters for k in self.kernels)


def plan_id(plan: NetworkPlan) -> str:
    """The identity of a plan (its structure, not its weights)."""
    return content_id("n", plan)


def _check_op(op: PlanOp, shapes: dict[str, tuple[int, ...]]) -> None:
    kernel = op.kernel
    shapes_read = kernel.input_shapes
    if len(op.inputs) != len(shapes_read):
        raise ContractError(f"{op.name}: {kernel.op} takes {len(shapes_read)} inputs, not {len(op.inputs)}")
    if kernel.residual != (op.residual is not None):
        raise ContractError(f"{op.name}: kernel.residual and the name of the residual tensor disagree")
    for source, want in zip(op.inputs, shapes_read, strict=True):
        if source not in shapes:
            raise ContractError(f"{op.name} reads {source!r}, which no earlier operator writes")
        if shapes[source] != want:
            raise ContractError(f"{op.name} reads {source!r} of shape {shapes[source]}, but expects {want}")
    if op.residual is not None:
        if op.residual not in shapes:
            raise ContractError(f"{op.name} adds {op.residual!r}, which no earlier operator writes")
        want = (kernel.out_channels, kernel.output_h, kernel.output_w)
        if shapes[op.residual] != want:
            raise ContractError(f"{op.name} adds {op.residual!r} of shape {shapes[op.residual]}, but writes {want}")
