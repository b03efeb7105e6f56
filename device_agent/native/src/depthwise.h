// Depthwise convolution of square kernels: vectors run along a row of the output, and a strip of P vectors walks down
// the plane with the sums of all output rows that are under way, so that an input row is loaded once for all of them.
//
// Rows and columns outside the image are left out (rows) or count as zero (columns, by a mask), so neither input nor
// output needs padding. Each output is one chain of multiply-adds in tap order, started from the bias.
#ifndef KERF_DEPTHWISE_H
#define KERF_DEPTHWISE_H

#include "kerf_native.h"
#include "vec.h"

namespace {

// Where a strip lies, and which lanes of its first and its last vector each column of the kernel may read.
template <int VL> struct DepthwiseStrip {
  int x;            // first output column
  int last_vector;  // column of the last vector, relative to x
  int num_columns;  // of the last vector, columns that exist: fewer than VL where the whole row is narrower
  const typename Vec<VL>::Bits *first, *last;
};

// All ones in the lanes whose input column for tap column `kx` is inside the image.
template <int VL> KERF_INLINE typename Vec<VL>::Bits columns_inside(const KerfStep &step, int x, int kx) {
  const typename Vec<VL>::Int column = (x + lane_numbers<VL>()) * step.stride + (kx - step.padding);
  return (typename Vec<VL>::Bits)((column >= 0) & (column < step.input_w));
}

// Column kx of the K taps, for one vector of outputs whose first tap column is at `p`.
template <int VL, int K, int S> KERF_INLINE void load_taps(const float *p, typename Vec<VL>::Float *values) {
  if constexpr (S == 1) {
    KERF_UNROLL for (int kx = 0; kx < K; kx++) values[kx] = load<VL>(p + kx);
  } else if constexpr (K == 3) {
    // With a padding of one, the two loads begin at an even column: they hardly ever cross a border of cache lines.
    const typename Vec<VL>::Float a = load<VL>(p + 1), b = load<VL>(p + 1 + VL);
    values[1] = even_of<VL>(a, b);
    values[2] = odd_of<VL>(a, b);
    values[0] = shift_in<VL>(splat<VL>(*p), values[2]);
  } else {
    KERF_UNROLL for (int kx = 0; kx < K; kx += 2) {
      const typename Vec<VL>::Float a = load<VL>(p + kx), b = load<VL>(p + kx + VL);
      values[kx] = even_of<VL>(a, b);
      if (kx + 1 < K) values[kx + 1] = odd_of<VL>(a, b);
    }
  }
  KERF_UNROLL for (int kx = 0; kx < K; kx++) KERF_IN_REGISTER(values[kx]);
}

// One strip of P vectors of one channel, or of one vector of each of C channels. Round t reads the S input rows that
// output row t starts with; sum[j] belongs to output row t - j, and kernel row S * j + r meets input row
// S * t + r - padding.
template <int VL, int K, int S, int P, int C>
static void depthwise_strip(const KerfStep &step, const DepthwiseStrip<VL> &strip, int channel) {
  static_assert(P == 1 || C == 1, "several vectors of one channel or one of several");
  typedef typename Vec<VL>::Float Float;
  typedef typename Vec<VL>::Bits Bits;
  constexpr int J = (K + S - 1) / S, EDGE = (K - 1) / 2;
  const Float lower = splat<VL>(step.lower), upper = splat<VL>(step.upper);
  Float weights[C][K * K], sum[J][P * C];
  KERF_UNROLL for (int c = 0; c < C; c++)
    KERF_UNROLL for (int i = 0; i < K * K; i++)
      weights[c][i] = splat<VL>(step.weights[(int64_t)(channel + c) * K * K + i]);
  // Copies, because for all that the compiler knows a store to the output could change the step.
  const float *const bias = step.bias + channel;
  const int input_h = step.input_h, num_rounds = step.output_h + J - 1, num_columns = strip.num_columns;
  const int64_t input_row = step.input_row, output_row = step.output_row;
  const int64_t last_vector = strip.last_vector;
  const Bits *const first_mask = strip.first, *const last_mask = strip.last;
  const int64_t input_plane = step.input_plane, output_plane = step.output_plane;
  const float *row =
      step.input + channel * input_plane + (int64_t)strip.x * S - step.padding - step.padding * input_row;
  float *const output = step.output + channel * output_plane;
  float *target = output + strip.x - (J - 1) * output_row;
  // A vector that is stored from here on would reach past the last row.
  const float *const full_end = output + (num_rounds - J) * output_row + step.output_w - VL;
  int input_y = -step.padding;
  for (int t = 0; t < num_rounds; t++, target += output_row) {
    KERF_UNROLL for (int i = 0; i < P * C; i++) sum[0][i] = splat<VL>(bias[C > 1 ? i : 0]);
    KERF_UNROLL for (int r = 0; r < S; r++, input_y++, row += input_row) {
      if (input_y < 0 || input_y >= input_h) continue;
      KERF_UNROLL for (int i = 0; i < P * C; i++) {
        Float values[K];
        load_taps<VL, K, S>(row + (C > 1 ? i * input_plane : (i == P - 1 ? last_vector : i * VL) * S), values);
        KERF_UNROLL for (int kx = 0; kx < EDGE; kx++) {
          if (C > 1 || i == 0) values[kx] = (Float)((Bits)values[kx] & first_mask[kx]);
          if (C > 1 || i == P - 1) values[K - 1 - kx] = (Float)((Bits)values[K - 1 - kx] & last_mask[K - 1 - kx]);
          // The last vector of a row can begin in its second column.
          if (EDGE > 1 && P > 1 && i == P - 1) values[kx] = (Float)((Bits)values[kx] & last_mask[kx]);
        }
        KERF_UNROLL for (int j = 0; j < J; j++)
          if (S * j + r < K)
            KERF_UNROLL for (int kx = 0; kx < K; kx++)
              sum[j][i] += values[kx] * weights[C > 1 ? i : 0][(S * j + r) * K + kx];
      }
    }
    if (t >= J - 1) {
      KERF_UNROLL for (int i = 0; i < P * C; i++) {
        const Float value = clamp<VL>(sum[J - 1][i], lower, upper);
        float *const at = target + (C > 1 ? i * output_plane : i == P - 1 ? last_vector : i * VL);
        if (P > 1 || num_columns == VL) {
          store<VL>(at, value);
        } else if (target <= full_end) {
          // Lanes past the row are zero like padding, or are overwritten by the next row.
          store<VL>(at, (Float)((Bits)value & (Bits)(lane_numbers<VL>() < num_columns)));
        } else {
          store_first<VL>(at, value, num_columns);
        }
      }
    }
    KERF_UNROLL for (int j = J - 1; j > 0; j--)
      KERF_UNROLL for (int i = 0; i < P * C; i++) sum[j][i] = sum[j - 1][i];
  }
}

template <int VL> struct DepthwiseKernels {
  typedef void (*Strip)(const KerfStep &, const DepthwiseStrip<VL> &, int);
  // Sums, weights and a few values fit the registers.
  static constexpr int MAX_VECTORS = KERF_NUM_REGISTERS == 32 ? 4 : 2;
  template <int K, int S> static Strip find(int num_vectors) {
    switch (num_vectors) {
      case 1: return depthwise_strip<VL, K, S, 1, 1>;
      case 2: return depthwise_strip<VL, K, S, 2, 1>;
#if KERF_NUM_REGISTERS == 32
      case 3: return depthwise_strip<VL, K, S, 3, 1>;
      case 4: return depthwise_strip<VL, K, S, 4, 1>;
#endif
      default: return 0;
    }
  }
};

// The strips of one channel after the other, so that a plane is read while it is near.
template <int VL, int K, int S> static void depthwise_channels(const KerfStep &step, Share share) {
  typedef DepthwiseKernels<VL> Kernels;
  typename Vec<VL>::Bits all[K], left[K], right[K];
  const int width = step.output_w, rightmost = width > VL ? width - VL : 0;
  for (int kx = 0; kx < K; kx++) {
    all[kx] = ~(typename Vec<VL>::Bits){};
    left[kx] = columns_inside<VL>(step, 0, kx);
    right[kx] = columns_inside<VL>(step, rightmost, kx);
  }
  const int num_vectors = (width + VL - 1) / VL;
  const int num_strips = (num_vectors + Kernels::MAX_VECTORS - 1) / Kernels::MAX_VECTORS;
  int c = share.first;
  if (KERF_NUM_REGISTERS == 32 && K == 3 && num_vectors == 1) {
    const DepthwiseStrip<VL> strip = {0, 0, width < VL ? width : VL, left, right};
    for (; c + 2 <= share.last; c += 2) depthwise_strip<VL, 3, S, 1, 2>(step, strip, c);
  }
  for (; c < share.last; c++)
    for (int i = 0; i < num_strips; i++) {
      const Share vectors = share_of(num_vectors, i, num_strips);
      const int x = vectors.first * VL, count = vectors.last - vectors.first;
      const bool is_last = i == num_strips - 1;
      // The last vector of a row ends with the row, and repeats a few columns of the one before.
      const DepthwiseStrip<VL> strip = {x, is_last ? rightmost - x : (count - 1) * VL, width < VL ? width : VL,
                                        i == 0 ? left : all, is_last ? right : all};
      Kernels::template find<K, S>(count)(step, strip, c);
    }
}

template <int VL> static bool depthwise_of(const KerfStep &step, Share share) {
  switch (4 * step.kernel_h + step.stride) {
    case 4 * 3 + 1: depthwise_channels<VL, 3, 1>(step, share); return true;
    case 4 * 3 + 2: depthwise_channels<VL, 3, 2>(step, share); return true;
    case 4 * 5 + 1: depthwise_channels<VL, 5, 1>(step, share); return true;
    case 4 * 5 + 2: depthwise_channels<VL, 5, 2>(step, share); return true;
    default: return false;
  }
}

static bool depthwise(const KerfStep &step, int part, int parts) {
  const Share share = share_of(step.channels, part, parts);
  if (step.kernel_h != step.kernel_w || 2 * step.padding >= step.kernel_h) return false;
#if KERF_MAX_VECTOR_LENGTH >= 16
  if (step.output_w > 8) return depthwise_of<16>(step, share);
#endif
#if KERF_MAX_VECTOR_LENGTH >= 8
  if (step.output_w > 4) return depthwise_of<8>(step, share);
#endif
  return depthwise_of<4>(step, share);
}

}  // namespace

#endif
