"""What is timed: one fused kernel, described in a few hundred bytes.

Weights and masks are generated from `seed` on the device (`device_agent.synthesis`), so a kernel task
carries no tensors.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from device_agent.contracts.codec import ContractError, content_id


class Op(StrEnum):
    """A fused operator. Values are added, never removed or reused."""

    CONV2D = "conv2d"
    DEPTHWISE_CONV2D = "depthwise_conv2d"
    FULLY_CONNECTED = "fully_connected"
    ADD = "add"
    MAX_POOL = "max_pool"
    AVG_POOL = "avg_pool"
    GLOBAL_AVG_POOL = "global_avg_pool"
    #: Spatial subsampling by `stride` followed by zero channels in front and behind: the shortcut without
    #: parameters of He et al. 2015 (arXiv 1512.03385), option A.
    SHORTCUT_PAD = "shortcut_pad"
    #: Each channel times its own factor, the second input of shape (channels, 1, 1): the gate of squeeze-and-excite
    #: (Hu et al. 2018, arXiv 1709.01507, section 3).
    MUL = "mul"
    #: The channels of two inputs one after the other: `in_channels` of the first, all others of the second.
    CONCAT = "concat"
    #: The first `out_channels` channels of the input: a part of a channel split.
    FIRST_CHANNELS = "first_channels"
    #: The last `out_channels` channels of the input.
    LAST_CHANNELS = "last_channels"
    #: Channel i of block b becomes channel i * groups + b, where the channels are `groups` blocks one after the other
    #: (ShuffleNet: Zhang et al. 2018, arXiv 1707.01083, section 3.1).
    CHANNEL_SHUFFLE = "channel_shuffle"

    @property
    def has_weights(self) -> bool:
        return self in (Op.CONV2D, Op.DEPTHWISE_CONV2D, Op.FULLY_CONNECTED)


class Activation(StrEnum):
    """The function fused behind an operator."""

    NONE = "none"
    RELU = "relu"
    RELU6 = "relu6"
    SIGMOID = "sigmoid"
    #: relu6(x + 3) / 6 (Howard et al. 2019, arXiv 1905.02244, section 5.2).
    HARDSIGMOID = "hardsigmoid"
    #: x * hardsigmoid(x), from the same section.
    HARDSWISH = "hardswish"
    #: x * sigmoid(x) (Elfwing et al. 2017, arXiv 1702.03118, equation 5).
    SILU = "silu"

    @property
    def is_clamp(self) -> bool:
        """Whether it only bounds its values, which runtimes fuse into the operator in front. Others are passes of
        their own over a tensor.
        """
        return self in (Activation.NONE, Activation.RELU, Activation.RELU6)

    @property
    def is_non_negative(self) -> bool:
        """Whether no output is below zero."""
        return self not in (Activation.NONE, Activation.HARDSWISH, Activation.SILU)


class DType(StrEnum):
    """The element type of weights and activations."""

    FLOAT32 = "float32"


class PruningScheme(StrEnum):
    """The structure that the zeros of a weight tensor have."""

    #: No zeros are exploited.
    DENSE = "dense"
    #: Any single weight may be zero.
    UNSTRUCTURED = "unstructured"
    #: `block_filters` consecutive output channels share one mask (JCW, arXiv 2110.08013).
    GROUP = "group"
    #: Blocks of `block_filters` x `block_channels` kernels share their zero positions
    #: (YOLObile's block-punched pruning; Gong et al. 2021, arXiv 2111.11581).
    BLOCK_PUNCHED = "block_punched"
    #: Each 3x3 kernel keeps `pattern_entries` positions; `block_filters` consecutive filters share the pattern
    #: (PatDNN, arXiv 2001.00138). A density below `pattern_entries`/9 removes whole kernels (connectivity pruning).
    PATTERN = "pattern"
    #: Fully connected layers: in blocks of `block_filters` x `block_channels`, columns and rows are removed,
    #: independently of each other (BCR of GRIM, arXiv 2108.11033; "block-based" in Gong et al. 2021, arXiv 2111.11581).
    BLOCK = "block"


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightPruning:
    """How the weights of one kernel are pruned. `density` is the kept part, in (0, 1]."""

    scheme: PruningScheme = PruningScheme.DENSE
    density: float = 1.0
    block_filters: int = 1
    block_channels: int = 1
    pattern_entries: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.density <= 1.0:
            raise ContractError(f"density {self.density!r} is not in (0, 1]")
        if self.block_filters < 1 or self.block_channels < 1:
            raise ContractError(
                f"a block of {self.block_filters} x {self.block_channels} is empty: both sides must be at least 1"
            )
        if self.scheme is PruningScheme.DENSE and self.density != 1.0:
            raise ContractError(f"a dense kernel has density 1, not {self.density!r}: name a pruning scheme")
        if self.scheme is PruningScheme.UNSTRUCTURED and (self.block_filters, self.block_channels) != (1, 1):
            raise ContractError("unstructured pruning has 1 x 1 blocks: use GROUP or BLOCK_PUNCHED for larger ones")
        if self.scheme in (PruningScheme.GROUP, PruningScheme.PATTERN) and self.block_channels != 1:
            raise ContractError(f"{self.scheme} spans one input channel: block_channels must be 1")
        if self.scheme is PruningScheme.PATTERN:
            if not 1 <= self.pattern_entries <= 9:
                raise ContractError(f"pattern_entries {self.pattern_entries!r} is not in 1..9")
            if self.density > self.pattern_entries / 9 + 1e-9:
                raise ContractError(
                    f"a pattern of {self.pattern_entries} of 9 entries keeps at most "
                    f"{self.pattern_entries / 9:.3f} of the weights, not {self.density!r}"
                )
        elif self.pattern_entries:
            raise ContractError(f"pattern_entries belongs to PATTERN, not to {self.scheme}")


DENSE = WeightPruning()

_PARTS = (Op.FIRST_CHANNELS, Op.LAST_CHANNELS)
_FREE_CHANNELS = (Op.CONV2D, Op.DEPTHWISE_CONV2D, Op.FULLY_CONNECTED, Op.SHORTCUT_PAD, Op.CONCAT, *_PARTS)
_WITHOUT_WINDOW = (Op.MUL, Op.CONCAT, Op.CHANNEL_SHUFFLE, *_PARTS)

#: Above any layer that a phone runs, and small enough that a hostile spec cannot ask for terabytes.
MAX_EXTENT = 65536
MAX_WEIGHTS = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelSpec:
    """One fused kernel for one image (batch 1), in the NCHW sense of shapes.

    `padding` is symmetric and in elements, as in torch. `residual` says that a tensor of the output's shape is
    added before the activation. ADD, MUL and CONCAT have two inputs (`input_shapes`). For SHORTCUT_PAD,
    `out_channels - in_channels` zero channels are added, `pad_channels_before` of them in front.

    `groups` above 1 makes a CONV2D a grouped one: blocks of filters that read one block of input channels each; it is
    dense, and takes no residual. One input channel for each group is a DEPTHWISE_CONV2D instead, which writes one or
    more channels for each that it reads. Of a CHANNEL_SHUFFLE, `groups` is the number of blocks.

    Raises `ContractError` on impossible shapes.
    """

    op: Op
    in_channels: int
    out_channels: int
    input_h: int = 1
    input_w: int = 1
    kernel_h: int = 1
    kernel_w: int = 1
    stride: int = 1
    padding: int = 0
    residual: bool = False
    activation: Activation = Activation.NONE
    pruning: WeightPruning = field(default_factory=WeightPruning)
    dtype: DType = DType.FLOAT32
    pad_channels_before: int = 0
    seed: int = 0
    groups: int = 1

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "input_h", "input_w", "kernel_h", "kernel_w", "stride"):
            value = getattr(self, name)
            if not 1 <= value <= MAX_EXTENT:
                raise ContractError(f"{name} {value!r} is not in 1..{MAX_EXTENT}")
        if not 0 <= self.padding <= max(self.kernel_h, self.kernel_w) // 2:
            raise ContractError(f"padding {self.padding!r} is more than half of the kernel, or negative")
        if self.output_h < 1 or self.output_w < 1:
            raise ContractError(
                f"a {self.kernel_h}x{self.kernel_w} kernel does not fit a {self.input_h}x{self.input_w} input "
                f"with padding {self.padding}"
            )
        if not self.op.has_weights and self.pruning.scheme is not PruningScheme.DENSE:
            raise ContractError(f"{self.op} has no weights to prune")
        if self.op not in _FREE_CHANNELS and self.in_channels != self.out_channels:
            raise ContractError(f"{self.op} keeps its channels, but {self.in_channels} != {self.out_channels}")
        if self.op is Op.SHORTCUT_PAD and not (0 <= self.pad_channels_before <= self.out_channels - self.in_channels):
            raise ContractError(
                f"pad_channels_before {self.pad_channels_before!r} does not fit "
                f"{self.in_channels} -> {self.out_channels} channels"
            )
        if self.op is Op.CONCAT and self.out_channels <= self.in_channels:
            raise ContractError(
                f"concat writes the {self.in_channels} channels of its first input and those of its second, "
                f"not {self.out_channels}"
            )
        self._check_groups()
        window = (self.kernel_h, self.kernel_w, self.stride, self.padding)
        if self.op in _WITHOUT_WINDOW and window != (1, 1, 1, 0):
            raise ContractError(f"{self.op} has no window, but kernel, stride and padding say {window}")
        if self.residual and self.op is not Op.CONV2D:
            raise ContractError(f"only conv2d takes a residual, not {self.op}: use an add")
        if self.pruning.scheme is PruningScheme.PATTERN and (self.kernel_h, self.kernel_w) != (3, 3):
            raise ContractError(f"patterns are defined on 3x3 kernels, not {self.kernel_h}x{self.kernel_w}")
        if self.pruning.scheme is PruningScheme.BLOCK and self.op is not Op.FULLY_CONNECTED:
            raise ContractError(
                f"{self.pruning.scheme} prunes fully connected layers, not {self.op}: use BLOCK_PUNCHED"
            )
        if self.num_weights > MAX_WEIGHTS:
            raise ContractError(f"{self.num_weights} weights exceed the limit of {MAX_WEIGHTS}")
        if self.in_channels * self.input_h * self.input_w > MAX_WEIGHTS:
            raise ContractError("the input tensor exceeds the limit of 2^28 elements")

    def _check_groups(self) -> None:
        if self.op in _PARTS and self.out_channels >= self.in_channels:
            raise ContractError(
                f"{self.op} leaves {self.out_channels} of {self.in_channels} channels: it must be fewer"
            )
        if self.op is Op.DEPTHWISE_CONV2D and self.out_channels % self.in_channels:
            raise ContractError(
                f"{self.op} writes as many channels for each that it reads, but {self.out_channels} is no multiple of "
                f"{self.in_channels}"
            )
        if self.groups == 1:
            return
        if self.op not in (Op.CONV2D, Op.CHANNEL_SHUFFLE):
            raise ContractError(f"{self.op} has no groups, but groups is {self.groups!r}")
        if self.groups < 1 or self.in_channels % self.groups or self.out_channels % self.groups:
            raise ContractError(
                f"{self.groups!r} groups do not divide {self.in_channels} input and {self.out_channels} output channels"
            )
        if self.op is Op.CONV2D and (self.residual or self.pruning.scheme is not PruningScheme.DENSE):
            raise ContractError("a grouped convolution is dense and takes no residual: prune its channels, use an add")

    @property
    def channel_multiplier(self) -> int:
        """How many channels a DEPTHWISE_CONV2D writes for each that it reads; 1 for other operators."""
        return self.out_channels // self.in_channels if self.op is Op.DEPTHWISE_CONV2D else 1

    @property
    def output_h(self) -> int:
        return self._output_extent(self.input_h, self.kernel_h)

    @property
    def output_w(self) -> int:
        return self._output_extent(self.input_w, self.kernel_w)

    def _output_extent(self, extent: int, kernel: int) -> int:
        if self.op in (Op.GLOBAL_AVG_POOL, Op.FULLY_CONNECTED):
            return 1
        return (extent + 2 * self.padding - kernel) // self.stride + 1

    @property
    def input_shapes(self) -> tuple[tuple[int, int, int], ...]:
        """(channels, h, w) of each tensor that the operator reads, without a residual."""
        first = (self.in_channels, self.input_h, self.input_w)
        if self.op is Op.ADD:
            return (first, first)
        if self.op is Op.MUL:
            return (first, (self.in_channels, 1, 1))
        if self.op is Op.CONCAT:
            return (first, (self.out_channels - self.in_channels, self.input_h, self.input_w))
        return (first,)

    @property
    def weight_shape(self) -> tuple[int, int, int, int]:
        """(out_channels, in_channels per filter, kernel_h, kernel_w); all zero for an operator without weights."""
        if self.op is Op.CONV2D:
            return (self.out_channels, self.in_channels // self.groups, self.kernel_h, self.kernel_w)
        if self.op is Op.DEPTHWISE_CONV2D:
            return (self.out_channels, 1, self.kernel_h, self.kernel_w)
        if self.op is Op.FULLY_CONNECTED:
            return (self.out_channels, self.in_channels, 1, 1)
        return (0, 0, 0, 0)

    @property
    def num_weights(self) -> int:
        """Weights of the dense kernel, without bias."""
        o, i, h, w = self.weight_shape
        return o * i * h * w

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the dense kernel (convolutions and fully connected; 0 for the rest)."""
        return self.num_weights * self.output_h * self.output_w

    @property
    def macs(self) -> int:
        """Multiply-accumulates that remain at this density."""
        return round(self.dense_macs * self.pruning.density)

    @property
    def parameters(self) -> int:
        """Weights kept and biases."""
        return round(self.num_weights * self.pruning.density) + (self.out_channels if self.op.has_weights else 0)


def kernel_id(spec: KernelSpec) -> str:
    """The one identity of a kernel: the hash of its canonical JSON."""
    return content_id("k", spec)
