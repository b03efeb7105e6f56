// Depthwise convolution of 3x3 and 5x5 kernels.
//
// Each output is one chain of multiply-adds in tap order, started from the bias.
#ifndef KERF_DEPTHWISE_H
#define KERF_DEPTHWISE_H

#include "kerf_native.h"
#include "vec.h"
#include "window.h"

namespace {

// Taps and biases of C channels.
template <int VL, int K, int C> struct DepthwiseWindow {
  typedef typename Vec<VL>::Float Float;
  typedef typename Vec<VL>::Bits Bits;
  struct Row {
    Float columns[K];
  };
  static constexpr float OUTSIDE = 0.0f;
  Float taps[C][K * K], lower, upper;
  const float *bias;

  KERF_METHOD DepthwiseWindow(const KerfStep &step, int channel)
      : lower(splat<VL>(step.lower)), upper(splat<VL>(step.upper)), bias(step.bias + channel) {
    KERF_UNROLL for (int c = 0; c < C; c++)
      KERF_UNROLL for (int i = 0; i < K * K; i++)
        taps[c][i] = splat<VL>(step.weights[(int64_t)(channel + c) * K * K + i]);
  }
  KERF_METHOD Float start(int c) const { return splat<VL>(bias[c]); }
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
