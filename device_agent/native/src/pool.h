// Max, average and global average pooling.
#ifndef KERF_POOL_H
#define KERF_POOL_H

#include "kerf_native.h"
#include "memory.h"
#include "split.h"
#include "vec.h"
#include "window.h"

namespace {

struct Maximum {
  static constexpr float NEUTRAL = -__builtin_inff();
  template <class T> KERF_INLINE T apply(T a, T b) { return a > b ? a : b; }
};
struct Sum {
  static constexpr float NEUTRAL = 0.0f;
  template <class T> KERF_INLINE T apply(T a, T b) { return a + b; }
};

// A pool as window.h walks it: the columns of a row are combined first, then the rows.
template <class Combine> struct PoolOf {
  template <int VL, int K, int C, int N> struct Window {
    typedef typename Vec<VL>::Float Float;
    typedef typename Vec<VL>::Bits Bits;
    static constexpr float OUTSIDE = Combine::NEUTRAL;
    Float lower, upper, scale;

    KERF_METHOD Window(const KerfStep &step, int) : lower(splat<VL>(step.lower)), upper(splat<VL>(step.upper)),
                                                   scale(splat<VL>(step.scale)) {}
    KERF_METHOD Float start(int) const { return splat<VL>(Combine::NEUTRAL); }
    KERF_METHOD Float mask(Float value, Bits inside) const {
      return (Float)(((Bits)value & inside) | ((Bits)splat<VL>(Combine::NEUTRAL) & ~inside));
    }
    KERF_METHOD Float row(const Float *values) const {
      Float result = values[0];
      KERF_UNROLL for (int kx = 1; kx < K; kx++) result = Combine::apply(result, values[kx]);
      return result;
    }
    KERF_METHOD Float add(Float sum, Float row, int, int) const { return Combine::apply(sum, row); }
    KERF_METHOD Float finish(Float sum) const { return clamp<VL>(sum * scale, lower, upper); }
  };
};

// Combines windows first over their rows, into a row with margins of `neutral`, then over their columns. The row is
// split into `stride` phases, so that column k of all windows is a run of consecutive elements.
template <class Combine> static void pool_by_rows(const KerfStep &step, PlaneShare share, int part) {
  const int s = step.stride, padded_w = step.input_w + 2 * step.padding;
  const int phase_w = (padded_w + s - 1) / s;
  float *const row = step.scratch + (int64_t)part * step.scratch_size;
  float *const inner = row + step.padding;
  float *const phases = s == 1 ? row : row + padded_w;
  for (int x = 0; x < step.padding; x++) row[x] = inner[step.input_w + x] = Combine::NEUTRAL;
  for (int c = share.channels.first; c < share.channels.last; c++) {
    const float *in = step.input + c * step.input_plane;
    for (int y = share.rows.first; y < share.rows.last; y++) {
      int first = y * s - step.padding, last = first + step.kernel_h;
      first = first < 0 ? 0 : first;
      last = last > step.input_h ? step.input_h : last;
      copy_floats(inner, in + (int64_t)first * step.input_row, step.input_w);
      for (int input_y = first + 1; input_y < last; input_y++) {
        const float *__restrict source = in + (int64_t)input_y * step.input_row;
        float *__restrict target = inner;
        for (int x = 0; x < step.input_w; x++) target[x] = Combine::apply(target[x], source[x]);
      }
      if (s == 2) {
        split_rows_by_two<true, true>(row, 0, 1, padded_w, phases, phases + phase_w, 0);
      } else if (s > 2) {
        for (int x = 0; x < padded_w; x++) phases[(x % s) * phase_w + x / s] = row[x];
      }
      float *__restrict out = step.output + c * step.output_plane + (int64_t)y * step.output_row;
      copy_floats(out, phases, step.output_w);
      for (int k = 1; k < step.kernel_w; k++) {
        const float *__restrict column = phases + (k % s) * phase_w + k / s;
        for (int x = 0; x < step.output_w; x++) out[x] = Combine::apply(out[x], column[x]);
      }
      for (int x = 0; x < step.output_w; x++) out[x] = clamp_one(out[x] * step.scale, step.lower, step.upper);
    }
  }
}

template <class Combine> static void pool(const KerfStep &step, int part, int parts) {
  const PlaneShare share = share_of_planes(step.channels, step.output_h, part, parts);
  switch (is_walked_pool(step) ? 4 * step.kernel_h + step.stride : 0) {
    case 4 * 2 + 1: window_rows<PoolOf<Combine>::template Window, 2, 1>(step, share); break;
    case 4 * 2 + 2: window_rows<PoolOf<Combine>::template Window, 2, 2>(step, share); break;
    case 4 * 3 + 1: window_rows<PoolOf<Combine>::template Window, 3, 1>(step, share); break;
    case 4 * 3 + 2: window_rows<PoolOf<Combine>::template Window, 3, 2>(step, share); break;
    default: pool_by_rows<Combine>(step, share, part);
  }
}

// Adds neighbours until VL sums are left, each over 16 lanes of one channel: `lanes` holds them channel by channel.
template <int VL> KERF_INLINE typename Vec<VL>::Float sums_of_channels(typename Vec<VL>::Float *lanes) {
  KERF_UNROLL for (int count = 8; count > 0; count /= 2)
    KERF_UNROLL for (int i = 0; i < count; i++)
      lanes[i] = even_of<VL>(lanes[2 * i], lanes[2 * i + 1]) + odd_of<VL>(lanes[2 * i], lanes[2 * i + 1]);
  return lanes[0];
}

// The averages of `count` channels from `channel` on, VL of them where ALL.
template <int VL, bool ALL> static void average_channels(const KerfStep &step, int channel, int count) {
  constexpr int PIECES = 16 / VL;
  typedef typename Vec<VL>::Float Float;
  typedef typename Vec<VL>::Bits Bits;
  // One to 16 positions are left for the last vectors.
  const int whole = (step.positions - 1) / 16 * 16, rest = step.positions - whole;
  Float lanes[16] = {};
  KERF_UNROLL for (int c = 0; c < VL; c++) {
    if (!ALL && c >= count) continue;
    const float *in = step.input + (channel + c) * step.input_plane;
    Float sum[PIECES] = {};
    for (int q = 0; q < whole; q += 16)
      KERF_UNROLL for (int k = 0; k < PIECES; k++) sum[k] += load<VL>(in + q + k * VL);
    KERF_UNROLL for (int k = 0; k < PIECES; k++) {
      const Bits inside = (Bits)(lane_numbers<VL>() + k * VL < rest);
      lanes[c * PIECES + k] = sum[k] + (Float)((Bits)load<VL>(in + whole + k * VL) & inside);
    }
  }
  const Float value =
      clamp<VL>(sums_of_channels<VL>(lanes) * step.scale, splat<VL>(step.lower), splat<VL>(step.upper));
  if (step.output_plane == 1) store_first<VL>(step.output + channel, value, count);
  else
    for (int c = 0; c < count; c++) step.output[(channel + c) * step.output_plane] = value[c];
}

// Position q of a channel is added to lane q % 16 in all backends, which fixes the order of summation. Padding between
// rows is zero; past the last position anything can be.
static void global_avg_pool(const KerfStep &step, int part, int parts) {
  constexpr int VL = KERF_MAX_VECTOR_LENGTH;
  const Share share = share_of((step.channels + VL - 1) / VL, part, parts);
  for (int block = share.first; block < share.last; block++) {
    const int channel = block * VL, rest = step.channels - channel;
    if (rest >= VL) average_channels<VL, true>(step, channel, VL);
    else average_channels<VL, false>(step, channel, rest);
  }
}

}  // namespace

#endif
