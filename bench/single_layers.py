"""Times single layers on the native executor beside the core's peak and the dense baselines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.layers import Layer, direct_bound
from bench.peak import PeakLoop
from bench.timing import MIN_SAMPLE_NS, Times, Variant, time_interleaved
from device_agent.contracts import DENSE, KernelSpec, PruningScheme, WeightPruning
from device_agent.native.executor import NativeKernel
from device_agent.runtimes import Runtime, UnsupportedTask
from device_agent.runtimes.base import FloatArray
from device_agent.runtimes.reference import output_agrees
from device_agent.synthesis import kernel_inputs, synthesize_weights

PEAK = "peak"
#: Writing as much as the layer's output, and nothing else.
WRITES = "writes"
#: The dense kernel as a direct convolution, where the tuner prefers Winograd's algorithm.
DIRECT = "native dense direct"
#: Output channels that are checked against the reference before a kernel is timed.
_CHECKED_CHANNELS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """Figures of one layer at one density. Ratios are medians over rounds; `gflops` is that of the fastest round.

    `gflops` counts two operations for each weight that is not zero and each output position: those of the direct
    algorithm, so that Winograd's can be above the peak. `bound` is what `bench.layers.direct_bound` allows, with loads
    and stores for free. `bound_with_writes` is what is left of it when the output is written after the products, as
    fast as the core wrote so much memory in the same rounds: kernels whose writes overlap with products can be above.
    `of_ideal_speedup` is the speed-up over the own direct dense kernel times the density. `direct_fraction_of_peak` is
    that of the direct kernel in the row of a kernel by Winograd's algorithm.
    """

    layer: str
    scheme: str
    density: float
    gflops: float
    fraction_of_peak: float
    speedup_vs_xnnpack: float | None
    speedup_vs_ncnn: float | None
    bound: float
    bound_with_writes: float | None
    of_ideal_speedup: float | None
    direct_fraction_of_peak: float | None
    algorithm: str
    block_filters: int
    median_us: float
    minimum_us: float
    xnnpack_median_us: float | None
    ncnn_median_us: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTimer:
    """What the layers of one run have in common. `baselines` maps `xnnpack` and `ncnn` to the runtime to time."""

    peak: PeakLoop
    baselines: dict[str, Runtime]
    rounds: int
    min_sample_ns: int = MIN_SAMPLE_NS
    isa: str | None = None

    def rows(self, layer: Layer, prunings: Sequence[WeightPruning]) -> tuple[list[LayerRow], Times]:
        """Time `layer` dense in every baseline, and natively with each of `prunings`, all interleaved."""
        x, second = kernel_inputs(layer.kernel)
        output = _cache_lines(layer.kernel.out_channels * layer.kernel.output_h * layer.kernel.output_w)
        variants = [Variant(PEAK, self.peak.repeat), Variant(WRITES, self.peak.filler(output))]
        for name, runtime in self.baselines.items():
            try:
                executable = runtime.load_kernel(layer.kernel, 1)
            except UnsupportedTask as error:
                print(f"{layer.name}: no {name}: {error}")
                continue
            _check(layer.kernel, synthesize_weights(layer.kernel), executable.run(x, second), name)
            variants.append(Variant(name, executable.repeat))
        weights, natives = [], []
        for pruning in prunings:
            native, num_weights = self._native(layer.pruned(pruning))
            weights.append(num_weights)
            natives.append(native)
            variants.append(Variant(_name(pruning), native.repeat))
            if pruning == DENSE and native.winograd_ops:
                direct, _ = self._native(layer.kernel, exact=True)
                variants.append(Variant(DIRECT, direct.repeat))
        times = time_interleaved(variants, self.rounds, min_sample_ns=self.min_sample_ns)
        rows = [
            layer_row(times, layer, pruning, num_weights, self.peak.flops, is_winograd=bool(native.winograd_ops))
            for pruning, num_weights, native in zip(prunings, weights, natives, strict=True)
        ]
        return rows, times

    def _native(self, kernel: KernelSpec, *, exact: bool = False) -> tuple[NativeKernel, int]:
        """The kernel with its input set, and its weights that are not zero. Its output is checked first."""
        tensors = synthesize_weights(kernel)
        native = NativeKernel(kernel, tensors, isa=self.isa, exact=exact)
        x, second = kernel_inputs(kernel)
        _check(kernel, tensors, native.run(x, second), "native")
        return native, int(np.count_nonzero(tensors["weight"])) if tensors else 0


def _cache_lines(count: int) -> FloatArray:
    """`count` zeros that begin with a cache line, as the planes of tensors do."""
    memory = np.zeros(count + 15, np.float32)
    start = -memory.ctypes.data // memory.itemsize % 16
    return memory[start : start + count]


def _check(kernel: KernelSpec, tensors: Mapping[str, FloatArray], output: FloatArray, name: str) -> None:
    """Raise `RuntimeError` where `output`, for the kernel's own inputs, is not that of the reference."""
    x, second = kernel_inputs(kernel)
    if not output_agrees(kernel, tensors, [x], second, output.reshape(-1), _CHECKED_CHANNELS):
        raise RuntimeError(f"the output of {kernel} in {name} is wrong: its time would mean nothing")


def layer_row(
    times: Times, layer: Layer, pruning: WeightPruning, num_weights: int, peak_flops: int, *, is_winograd: bool = False
) -> LayerRow:
    """The figures of one native variant among `times`. `num_weights` are its weights that are not zero, and
    `peak_flops` the operations in one repetition of the variant `peak`.
    """
    kernel, name = layer.kernel, _name(pruning)
    flops = 2.0 * num_weights * kernel.output_h * kernel.output_w
    dense = _name(DENSE)
    over_dense = times.ratio(DIRECT if DIRECT in times else dense, name)
    bound = direct_bound(kernel, num_weights)
    direct_of_peak = times.ratio(PEAK, DIRECT) if name == dense else None
    return LayerRow(
        layer=layer.name,
        scheme=str(pruning.scheme),
        density=pruning.density,
        gflops=flops / times.minimum_ns(name),
        fraction_of_peak=times.ratio_of(PEAK, name) * flops / peak_flops,
        speedup_vs_xnnpack=times.ratio("xnnpack", name),
        speedup_vs_ncnn=times.ratio("ncnn", name),
        bound=bound,
        bound_with_writes=_bound_with_writes(bound, flops / peak_flops, times.ratio(WRITES, PEAK)),
        of_ideal_speedup=None if over_dense is None else over_dense * pruning.density,
        direct_fraction_of_peak=None if direct_of_peak is None else direct_of_peak * flops / peak_flops,
        algorithm="winograd" if is_winograd else "direct",
        block_filters=pruning.block_filters,
        median_us=times.median_ns(name) / 1e3,
        minimum_us=times.minimum_ns(name) / 1e3,
        xnnpack_median_us=times.median_ns("xnnpack") / 1e3 if "xnnpack" in times else None,
        ncnn_median_us=times.median_ns("ncnn") / 1e3 if "ncnn" in times else None,
    )


def _bound_with_writes(bound: float, products: float, writes: float | None) -> float | None:
    """See `LayerRow`. `products` and `writes` are times, both in repetitions of the peak loop."""
    if writes is None or products == 0:
        return None
    return products / (products / bound + writes)


def table_lines(rows: Sequence[LayerRow]) -> Iterator[str]:
    """The rows as text, one line each."""
    for row in rows:
        yield (
            f"{row.layer:20} {row.scheme:12} {row.density:7.3f} {row.median_us:9.1f} {row.gflops:8.1f} "
            f"{row.fraction_of_peak:8.2f} {row.bound:6.2f} {_number(row.bound_with_writes)} "
            f"{_number(row.speedup_vs_xnnpack)} {_number(row.speedup_vs_ncnn)} {_number(row.of_ideal_speedup)} "
            f"{row.algorithm:>9} {_number(row.direct_fraction_of_peak)}"
        )


TABLE_HEADER = (
    f"{'layer':20} {'scheme':12} {'density':>7} {'us':>9} {'GFLOP/s':>8} {'of peak':>8} {'bound':>6} {'+ writes':>9} "
    f"{'x XNNPACK':>9} {'x ncnn':>9} {'of ideal':>9} {'algorithm':>9} {'direct':>9}"
)


def _number(value: float | None) -> str:
    return f"{'-':>9}" if value is None else f"{value:9.2f}"


def _name(pruning: WeightPruning) -> str:
    """The name of a native variant in a run."""
    if pruning.scheme is PruningScheme.DENSE:
        return "native dense"
    return f"native {pruning.scheme}:{pruning.block_filters} {pruning.density:.4f}"
