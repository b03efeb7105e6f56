// Depthwise convolution of 3x3 and 5x5 kernels.
//
// Each output is one chain of multiply-adds in tap order, started from the bias.
#ifndef KERF_DEPTHWISE_H
#define KERF_DEPTHWISE_H

#include "kerf_native.h"
#include "vec.h"
#include "window.h"

namespace {

// Taps and biases of C vectors, each of which has N channels side by side.
template <int VL, int K, int C, int N> struct DepthwiseWindow {
  typedef typename Vec<VL>::Float Float;
  typedef typename Vec<VL>::Bits Bits;
  struct Row {
    Float columns[K];
  };
  static constexpr float OUTSIDE = 0.0f;
  Float taps[C][K * K], lower, upper, pair_bias;
  const float *bias;

  // What is at `p` for the first channel of a vector and `apart` further on for the second one.
  KERF_METHOD static Float of_channels(const float *p, int apart) {
    if constexpr (N == 2) return halves_of<VL>(*p, p[apart]);
    else return splat<VL>(*p);
  }
  KERF_METHOD DepthwiseWindow(const KerfStep &step, int channel)
      : lower(splat<VL>(step.lower)), upper(splat<VL>(step.upper)), bias(step.bias + channel) {
    KERF_UNROLL for (int c = 0; c < C; c++)
      KERF_UNROLL for (int i = 0; i < K * K; i++)
        taps[c][i] = of_channels(step.weights + (int64_t)(channel + c * N) * K * K + i, K * K);
    if (N == 2) pair_bias = of_channels(bias, 1);
  }
  // A broadcast from memory costs nothing, and a register is then free.
  KERF_METHOD Float start(int c) const { return N == 2 ? pair_bias : splat<VL>(bias[c]); }
  KERF_METHOD Float mask(Float value, Bits inside) const { return (Float)((Bits)value & inside); }
  KERF_METHOD Row row(const Float *values) const {
    Row result;
    KERF_UNROLL for (int kx = 0; kx < K; kx++) result.columns[kx] = values[kx];
    return result;
  }
  KERF_METHOD Float add(Float sum, const Row &row, int ky, int c) const {
    KERF_UNROLL for (int kx = 0; kx < K; kx++) sum += row.columns[kx] * taps[c][ky * K + kx];
    return sum;
  }
  KERF_METHOD Float finish(Float sum) const { return clamp<VL>(sum, lower, upper); }
};

static bool depthwise(const KerfStep &step, int part, int parts) {
  const PlaneShare share = share_of_planes(step.channels, step.output_h, part, parts);
  if (!is_walkable(step)) return false;
  switch (4 * step.kernel_h + step.stride) {
    case 4 * 3 + 1: window_rows<DepthwiseWindow, 3, 1>(step, share); return true;
    case 4 * 3 + 2: window_rows<DepthwiseWindow, 3, 2>(step, share); return true;
    case 4 * 5 + 1: window_rows<DepthwiseWindow, 5, 1>(step, share); return true;
    case 4 * 5 + 2: window_rows<DepthwiseWindow, 5, 2>(step, share); return true;
    default: return false;
  }
}

}  // namespace

#endif
