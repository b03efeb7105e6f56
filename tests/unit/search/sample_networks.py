"""Networks as data for tests that need no torch: a CIFAR ResNet-20 and a chain with depthwise convolutions."""

from __future__ import annotations

from device_agent.contracts import NETWORK_INPUT, Activation, KernelSpec, NetworkPlan, Op, PlanOp
from search.domain.network import Axis, GroupMember, NetworkSpec, PruningGroup, RefusedGroup, RemovableBlock


def conv(
    name: str,
    source: str,
    channels: tuple[int, int],
    extent: int,
    *,
    kernel: int = 3,
    stride: int = 1,
    residual: str | None = None,
    op: Op = Op.CONV2D,
) -> PlanOp:
    return PlanOp(
        name=name,
        kernel=KernelSpec(
            op=op,
            in_channels=channels[0],
            out_channels=channels[1],
            input_h=extent,
            input_w=extent,
            kernel_h=kernel,
            kernel_w=kernel,
            stride=stride,
            padding=kernel // 2,
            residual=residual is not None,
            activation=Activation.RELU,
        ),
        inputs=(source,),
        residual=residual,
    )


def _head(source: str, channels: int, extent: int) -> tuple[PlanOp, ...]:
    pool = KernelSpec(
        op=Op.GLOBAL_AVG_POOL, in_channels=channels, out_channels=channels, input_h=extent, input_w=extent
    )
    linear = KernelSpec(op=Op.FULLY_CONNECTED, in_channels=channels, out_channels=10)
    return (
        PlanOp(name="pool", kernel=pool, inputs=(source,)),
        PlanOp(name="linear", kernel=linear, inputs=("pool",)),
    )


def resnet_spec(blocks: int = 3) -> NetworkSpec:
    """CIFAR ResNet with `blocks` blocks a stage (3 is ResNet-20), option A shortcuts, the blocks' conv1 prunable, and
    the blocks that keep their shape removable.
    """
    ops = [conv("conv1", NETWORK_INPUT, (3, 16), 32)]
    groups = []
    removable = []
    source, channels, extent = "conv1", 16, 32
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            first = conv(f"{name}.conv1", source, (channels, width), extent, stride=stride)
            extent = first.kernel.output_h
            ops.append(first)
            shortcut = source
            if stride == 2:
                shortcut = f"{name}.shortcut"
                pad = KernelSpec(
                    op=Op.SHORTCUT_PAD,
                    in_channels=channels,
                    out_channels=width,
                    input_h=extent * 2,
                    input_w=extent * 2,
                    stride=2,
                    pad_channels_before=(width - channels) // 2,
                )
                ops.append(PlanOp(name=shortcut, kernel=pad, inputs=(source,)))
            ops.append(conv(f"{name}.conv2", f"{name}.conv1", (width, width), extent, residual=shortcut))
            groups.append(
                PruningGroup(
                    name=f"{name}.conv1",
                    channels=width,
                    members=(
                        GroupMember(op=f"{name}.conv1", axis=Axis.OUT),
                        GroupMember(op=f"{name}.conv2", axis=Axis.IN),
                    ),
                )
            )
            if shortcut == source:
                removable.append(
                    RemovableBlock(
                        name=name, ops=(f"{name}.conv1", f"{name}.conv2"), reads=source, writes=f"{name}.conv2"
                    )
                )
            source, channels = f"{name}.conv2", width
    ops += _head(source, channels, extent)
    return NetworkSpec(
        architecture=f"resnet{6 * blocks + 2}",
        plan=NetworkPlan(name=f"resnet{6 * blocks + 2}", input_shape=(3, 32, 32), ops=tuple(ops)),
        groups=tuple(groups),
        refused=(RefusedGroup(name="conv1", channels=16, reason="the residual stream is padded"),),
        prunable_ops=tuple(op.name for op in ops if op.kernel.op is Op.CONV2D),
        blocks=tuple(removable),
    )


def mobile_spec() -> NetworkSpec:
    """Stem, then two depthwise-separable blocks; every width prunable."""
    ops = (
        conv("stem", NETWORK_INPUT, (3, 8), 16, stride=2),
        conv("dw1", "stem", (8, 8), 8, op=Op.DEPTHWISE_CONV2D),
        conv("pw1", "dw1", (8, 16), 8, kernel=1),
        conv("dw2", "pw1", (16, 16), 8, stride=2, op=Op.DEPTHWISE_CONV2D),
        conv("pw2", "dw2", (16, 24), 4, kernel=1),
        *_head("pw2", 24, 4),
    )

    def group(producer: str, channels: int, depthwise: str | None, consumer: str) -> PruningGroup:
        members = [GroupMember(op=producer, axis=Axis.OUT)]
        if depthwise is not None:
            members.append(GroupMember(op=depthwise, axis=Axis.OUT))
        members.append(GroupMember(op=consumer, axis=Axis.IN))
        return PruningGroup(name=producer, channels=channels, members=tuple(members))

    return NetworkSpec(
        architecture="mobile",
        plan=NetworkPlan(name="mobile", input_shape=(3, 16, 16), ops=ops),
        groups=(
            group("stem", 8, "dw1", "pw1"),
            group("pw1", 16, "dw2", "pw2"),
            group("pw2", 24, None, "linear"),
        ),
        refused=(),
        prunable_ops=("stem", "pw1", "pw2"),
    )
