// What depthwise convolutions and pools have in common: a square window that moves over one channel.
//
// Vectors run along a row of the output. A strip of P vectors walks down the plane with the results of all output rows
// that are under way, so that an input row is loaded once for all of them. Rows outside the image are left out, columns
// outside it are masked, so neither input nor output needs padding.
//
// Memory: reads up to `padding` elements before the first of the input and up to two vectors past the last; writes the
// rows of the output, and where a row is narrower than a vector perhaps zeros between rows, never past the last row.
#ifndef KERF_WINDOW_H
#define KERF_WINDOW_H

#include "kerf_native.h"
#include "vec.h"
#include "walkable.h"

#define KERF_METHOD inline __attribute__((always_inline))

namespace {

// Where a strip lies, and which lanes of its first and its last vector each column of the window may read.
template <int VL> struct Strip {
  int x;            // first output column
  int last_vector;  // column of the last vector, relative to x
  int num_columns;  // of the last vector, columns that exist: fewer than VL where the whole row is narrower
  const typename Vec<VL>::Bits *first, *last;  // null where no lane has to be masked
};

// All ones in the lanes whose input column for window column `kx` is inside the image, with N channels in a vector.
template <int VL, int N> KERF_INLINE typename Vec<VL>::Bits columns_inside(const KerfStep &step, int x, int kx) {
  const typename Vec<VL>::Int column = (x + lane_numbers<VL>() % (VL / N)) * step.stride + (kx - step.padding);
  return (typename Vec<VL>::Bits)((column >= 0) & (column < step.input_w));
}

// Column kx of the K columns, for one vector of outputs whose first window begins at `p`. With N = 2, the second half
// of the vector belongs to the next channel, `plane` further on. With K = 3 and stride 2, the first element of column 0
// comes from `outside` where the vector begins at the edge of the image, as those with N = 2 do.
template <int VL, int K, int S, int N>
KERF_INLINE void load_columns(const float *p, int64_t plane, bool is_at_edge, typename Vec<VL>::Float outside,
                              typename Vec<VL>::Float *values) {
  typedef typename Vec<VL>::Float Float;
  // Of stride 2: the second half of what is read, and the second half of a vector, are the same shuffle.
  const int64_t further = N == 2 ? plane : VL;
  if constexpr (S == 1) {
    KERF_UNROLL for (int kx = 0; kx < K; kx++) {
      if constexpr (N == 2) values[kx] = load_halves<VL>(p + kx, p + kx + plane);
      else values[kx] = load<VL>(p + kx);
    }
  } else if constexpr (K == 3) {
    // With a padding of one, the two loads begin at an even column: they hardly ever cross a border of cache lines.
    Float a = load<VL>(p + 1), b = load<VL>(p + 1 + further);
    KERF_IN_REGISTER(a);
    KERF_IN_REGISTER(b);
    values[1] = even_of<VL>(a, b);
    values[2] = odd_of<VL>(a, b);
    if constexpr (N == 2) values[0] = shift_in_halves<VL>(outside, values[2]);
    else values[0] = shift_in<VL>(is_at_edge ? outside : splat<VL>(*p), values[2]);
  } else {
    KERF_UNROLL for (int kx = 0; kx < K; kx += 2) {
      const Float a = load<VL>(p + kx), b = load<VL>(p + kx + further);
      values[kx] = even_of<VL>(a, b);
      if (kx + 1 < K) values[kx + 1] = odd_of<VL>(a, b);
    }
  }
  KERF_UNROLL for (int kx = 0; kx < K; kx++) KERF_IN_REGISTER(values[kx]);
}

// What the next strip reads, where a strip is as wide as a plane: planes are then so small that the processor does not
// get far in guessing what comes next. Not for pairs of channels, whose loads are slower with it.
template <int VL, int S> KERF_INLINE void prefetch_row(const float *row) {
  __builtin_prefetch(row + 1);
  if (S == 2) __builtin_prefetch(row + 1 + VL);
}

// Strips of P vectors of one channel, or of one vector of each of C channels, or of C vectors that have N channels side
// by side each, as many of them as `channels` fill. Returns the first channel that is left. Round t reads the S input
// rows that output row t starts with; sum[j] belongs to output row t - j, and window row S * j + r meets input row
// S * t + r - padding.
//
// `Window` says what is computed: start(i) is the value of an empty window of vector i, mask() and OUTSIDE what takes
// the place of columns outside the image, row() what all window rows can share of the columns of one input row, add()
// brings window row ky into the sum, and finish() makes the output.
template <template <int, int, int, int> class Window, int VL, int K, int S, int P, int C, int N = 1>
static __attribute__((noinline)) int window_strips(const KerfStep &step, const Strip<VL> &strip, Share rows,
                                                   Share channels) {
  static_assert(P == 1 || C * N == 1, "several vectors of one channel or one of several");
  typedef typename Vec<VL>::Float Float;
  typedef typename Vec<VL>::Bits Bits;
  constexpr int J = (K + S - 1) / S, EDGE = (K - 1) / 2;
  // One element replaced costs less than a mask.
  constexpr bool LEFT_BY_POINTER = K == 3 && S == 2;
  const Float outside = splat<VL>(Window<VL, K, C, N>::OUTSIDE);
  // Copies, because for all that the compiler knows a store to the output could change the step.
  const int input_h = step.input_h, num_rounds = rows.last - rows.first + J - 1, num_columns = strip.num_columns;
  const int64_t input_row = step.input_row, output_row = step.output_row;
  const int64_t last_vector = strip.last_vector;
  const Bits *const first_mask = strip.first, *const last_mask = strip.last;
  const int64_t input_plane = step.input_plane, output_plane = step.output_plane;
  const float *first_input = step.input + channels.first * input_plane + (int64_t)strip.x * S - step.padding +
                             (int64_t)(rows.first * S - step.padding) * input_row;
  float *first_output = step.output + channels.first * output_plane + rows.first * output_row;
  const int first_input_y = rows.first * S - step.padding, output_x = strip.x;
  // A vector that is stored from here on would reach past the last row, into rows of other threads.
  const int64_t full_end_offset = (num_rounds - J) * output_row + step.output_w - VL;
  const bool is_at_edge = first_mask != 0;
  int channel = channels.first;
  for (; channel + C * N <= channels.last; channel += C * N) {
    const Window<VL, K, C, N> window(step, channel);
    Float sum[J][P * C];
    const float *row = first_input;
    float *target = first_output + output_x - (J - 1) * output_row;
    const float *const full_end = first_output + full_end_offset;
    int input_y = first_input_y;
    first_input += C * N * input_plane;
    first_output += C * N * output_plane;
    for (int t = 0; t < num_rounds; t++, target += output_row) {
      KERF_UNROLL for (int i = 0; i < P * C; i++) sum[0][i] = window.start(C > 1 ? i : 0);
      KERF_UNROLL for (int r = 0; r < S; r++, input_y++, row += input_row) {
        if ((unsigned)input_y >= (unsigned)input_h) continue;
        KERF_UNROLL for (int i = 0; i < P * C; i++) {
          Float values[K];
          const float *const p = row + (C > 1 ? i * N * input_plane : (i == P - 1 ? last_vector : i * VL) * S);
          if constexpr (P == 1 && N == 1) prefetch_row<VL, S>(p + C * input_plane);
          load_columns<VL, K, S, N>(p, input_plane, (C > 1 || i == 0) && is_at_edge, outside, values);
          KERF_UNROLL for (int kx = 0; kx < EDGE; kx++) {
            if ((C > 1 || i == 0) && first_mask && !LEFT_BY_POINTER)
              values[kx] = window.mask(values[kx], first_mask[kx]);
            if ((C > 1 || i == P - 1) && last_mask)
              values[K - 1 - kx] = window.mask(values[K - 1 - kx], last_mask[K - 1 - kx]);
            // The last vector of a row can begin in its second column.
            if (EDGE > 1 && P > 1 && i == P - 1 && last_mask) values[kx] = window.mask(values[kx], last_mask[kx]);
          }
          const auto shared = window.row(values);
          KERF_UNROLL for (int j = 0; j < J; j++)
            if (S * j + r < K) sum[j][i] = window.add(sum[j][i], shared, S * j + r, C > 1 ? i : 0);
        }
      }
      if (t >= J - 1) {
        KERF_UNROLL for (int i = 0; i < P * C; i++) {
          const Float value = window.finish(sum[J - 1][i]);
          float *const at = target + (C > 1 ? i * N * output_plane : i == P - 1 ? last_vector : i * VL);
          if constexpr (N == 2) {
            store_first_of_halves<VL>(at, at + output_plane, value, num_columns);
          } else if (P > 1 || num_columns == VL) {
            store<VL>(at, value);
          } else if (KERF_HAS_MASKED_STORES || target > full_end) {
            store_first<VL>(at, value, num_columns);
          } else {
            // Lanes past the row are zero like padding, or are overwritten by the next row.
            store<VL>(at, (Float)((Bits)value & (Bits)(lane_numbers<VL>() < num_columns)));
          }
        }
      }
      KERF_UNROLL for (int j = J - 1; j > 0; j--)
        KERF_UNROLL for (int i = 0; i < P * C; i++) sum[j][i] = sum[j - 1][i];
    }
  }
  return channel;
}

// `num_vectors` is at most four where there are 32 registers, else two: sums, weights and a few values fit into them.
template <template <int, int, int, int> class Window, int VL, int K, int S>
static void run_strips(const KerfStep &step, const Strip<VL> &strip, Share rows, int num_vectors,
                       Share channels) {
  switch (num_vectors) {
    case 1: window_strips<Window, VL, K, S, 1, 1>(step, strip, rows, channels); break;
    case 2: window_strips<Window, VL, K, S, 2, 1>(step, strip, rows, channels); break;
#if KERF_NUM_REGISTERS == 32
    case 3: window_strips<Window, VL, K, S, 3, 1>(step, strip, rows, channels); break;
    case 4: window_strips<Window, VL, K, S, 4, 1>(step, strip, rows, channels); break;
#endif
  }
}

// The strips of one channel after the other, so that a plane is read while it is near.
template <template <int, int, int, int> class Window, int VL, int K, int S>
static void window_channels(const KerfStep &step, PlaneShare share) {
  typename Vec<VL>::Bits left[K], right[K];
  const int width = step.output_w, rightmost = width > VL ? width - VL : 0;
  for (int kx = 0; kx < K; kx++) {
    left[kx] = columns_inside<VL, 1>(step, 0, kx);
    right[kx] = columns_inside<VL, 1>(step, rightmost, kx);
  }
  // With stride 2 the last window often ends with the image.
  const int past = (width - 1) * S + K - 1 - step.padding - (step.input_w - 1);
  const typename Vec<VL>::Bits *const first = step.padding > 0 ? left : 0, *const last = past > 0 ? right : 0;
  const int num_vectors = (width + VL - 1) / VL, most = KERF_NUM_REGISTERS == 32 ? 4 : 2;
  const int num_strips = (num_vectors + most - 1) / most;
  int c = share.channels.first;
  // Not with stride 2: more loads are then in flight beside stores to addresses that have their last 12 bits in common.
  if (KERF_NUM_REGISTERS == 32 && K <= 3 && S == 1 && num_vectors == 1) {
    const Strip<VL> strip = {0, 0, width < VL ? width : VL, first, last};
    c = window_strips<Window, VL, K <= 3 ? K : 3, S, 1, 2>(step, strip, share.rows, share.channels);
  }
  const int at_once = num_strips == 1 ? share.channels.last - c : 1;
  for (; c < share.channels.last; c += at_once)
    for (int i = 0; i < num_strips; i++) {
      const Share vectors = share_of(num_vectors, i, num_strips);
      const int x = vectors.first * VL, count = vectors.last - vectors.first;
      const bool is_last = i == num_strips - 1;
      // The last vector of a row ends with the row, and repeats a few columns of the one before.
      const Strip<VL> strip = {x, is_last ? rightmost - x : (count - 1) * VL, width < VL ? width : VL,
                               i == 0 ? first : 0, is_last ? last : 0};
      run_strips<Window, VL, K, S>(step, strip, share.rows, count, {c, c + at_once});
    }
}

#if KERF_MAX_VECTOR_LENGTH >= 16
// Two channels in each vector, for rows of at most 8. Returns the channels that are left.
template <template <int, int, int, int> class Window, int K, int S>
static Share window_pairs(const KerfStep &step, PlaneShare share) {
  constexpr int VL = 16;
  typename Vec<VL>::Bits inside[K];
  for (int kx = 0; kx < K; kx++) inside[kx] = columns_inside<VL, 2>(step, 0, kx);
  const int past = (step.output_w - 1) * S + K - 1 - step.padding - (step.input_w - 1);
  const Strip<VL> strip = {0, 0, step.output_w, step.padding > 0 ? inside : 0, past > 0 ? inside : 0};
  return {window_strips<Window, VL, K, S, 1, 1, 2>(step, strip, share.rows, share.channels), share.channels.last};
}
#endif

// The vectors that suit the width of a row.
template <template <int, int, int, int> class Window, int K, int S>
static void window_rows(const KerfStep &step, PlaneShare share) {
#if KERF_MAX_VECTOR_LENGTH >= 16
  if (step.output_w > 8) return window_channels<Window, 16, K, S>(step, share);
  // With stride 2, the windows of pairs begin beside the image or, where they are of even extent, in it.
  if constexpr (K <= 3)
    if (step.output_w > 4 && (S == 1 || step.padding == (K - 1) / 2))
      share.channels = window_pairs<Window, K, S>(step, share);
#endif
#if KERF_MAX_VECTOR_LENGTH >= 8
  if (step.output_w > 4) return window_channels<Window, 8, K, S>(step, share);
#endif
  window_channels<Window, 4, K, S>(step, share);
}

}  // namespace

#endif
