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

// The elements of an image, by the lane of 16 that each is added to: element (y, x) to lane (y * width + x) % 16. Rows
// that lie close together are one row here.
struct SummedRows {
  int count, width;
  int64_t apart, plane;

  explicit SummedRows(const KerfStep &step)
      : count(step.input_h), width(step.input_w), apart(step.input_row), plane(step.input_plane) {
    if (step.input_row == step.input_w) count = 1, width = step.input_h * step.input_w;
  }
};

// Adds the lanes [first, last) of 16 that begin at `p`, of C channels.
template <int VL, int C>
KERF_INLINE void add_lanes(const float *p, int64_t plane, int first, int last,
                           typename Vec<VL>::Float (&sum)[C][16 / VL]) {
  KERF_UNROLL for (int c = 0; c < C; c++)
    KERF_UNROLL for (int k = 0; k < 16 / VL; k++)
      sum[c][k] += load_between<VL>(p + c * plane + k * VL, first - k * VL, last - k * VL);
}

// The sums of C channels from `in` on, each over 16 lanes, in ascending order of the elements.
template <int VL, int C>
KERF_INLINE void sum_lanes(const SummedRows &rows, const float *in, typename Vec<VL>::Float (&sum)[C][16 / VL]) {
  const int64_t plane = rows.plane;
  for (int y = 0; y < rows.count; y++) {
    const float *p = in + y * rows.apart;
    int left = rows.width;
    if (rows.count > 1) {
      // What a vector holds before the row is still in the plane, since the rows before are as long.
      const int lane = y * rows.width % 16, last = lane + left < 16 ? lane + left : 16;
      if (lane > 0) {
        add_lanes<VL, C>(p - lane, plane, lane, last, sum);
        p += last - lane;
        left -= last - lane;
      }
    }
    for (; left > 16; left -= 16, p += 16)
      KERF_UNROLL for (int c = 0; c < C; c++)
        KERF_UNROLL for (int k = 0; k < 16 / VL; k++) sum[c][k] += load<VL>(p + c * plane + k * VL);
    if (left > 0) add_lanes<VL, C>(p, plane, 0, left, sum);
  }
}

// Adds neighbours until COUNT / 2 of COUNT sums are left, in the order of the sums, and so on down to one.
template <int VL, int COUNT> KERF_INLINE typename Vec<VL>::Float add_neighbours(const typename Vec<VL>::Float *sums) {
  if constexpr (COUNT == 1) {
    return sums[0];
  } else {
    const typename Vec<VL>::Float low = add_neighbours<VL, COUNT / 2>(sums);
    const typename Vec<VL>::Float high = add_neighbours<VL, COUNT / 2>(sums + COUNT / 2);
    return even_of<VL>(low, high) + odd_of<VL>(low, high);
  }
}

// The sums of COUNT channels from `in` on, C of them at a time, each in VL / COUNT lanes that are still to be added.
template <int VL, int C, int COUNT>
KERF_INLINE typename Vec<VL>::Float sums_of_channels(const SummedRows &rows, const float *in) {
  if constexpr (COUNT == C) {
    typename Vec<VL>::Float sum[C][16 / VL] = {};
    sum_lanes<VL, C>(rows, in, sum);
    return add_neighbours<VL, C * (16 / VL)>(sum[0]);
  } else {
    const typename Vec<VL>::Float low = sums_of_channels<VL, C, COUNT / 2>(rows, in);
    const typename Vec<VL>::Float high = sums_of_channels<VL, C, COUNT / 2>(rows, in + COUNT / 2 * rows.plane);
    return even_of<VL>(low, high) + odd_of<VL>(low, high);
  }
}

// The sum of one channel, in all lanes; added in the same order as those of several.
template <int VL> KERF_INLINE typename Vec<VL>::Float sum_of_channel(const SummedRows &rows, const float *in) {
  typename Vec<VL>::Float sum[1][16 / VL] = {};
  sum_lanes<VL, 1>(rows, in, sum);
  typename Vec<VL>::Float result = add_neighbours<VL, 16 / VL>(sum[0]);
  KERF_UNROLL for (int lanes = VL; lanes > 1; lanes /= 2)
    result = even_of<VL>(result, result) + odd_of<VL>(result, result);
  return result;
}

// The averages of `count` channels from `channel` on, up to VL.
template <int VL> static void average_channels(const KerfStep &step, const SummedRows &rows, int channel, int count) {
  typedef typename Vec<VL>::Float Float;
  const float *const in = step.input + channel * step.input_plane;
  Float sums = {};
  if (count == VL) {
    sums = sums_of_channels<VL, KERF_NUM_REGISTERS == 32 ? 4 : 2, VL>(rows, in);
  } else {
    for (int c = 0; c < count; c++)
      sums = lane_numbers<VL>() == c ? sum_of_channel<VL>(rows, in + c * step.input_plane) : sums;
  }
  const Float value = clamp<VL>(sums * step.scale, splat<VL>(step.lower), splat<VL>(step.upper));
  if (step.output_plane == 1) store_first<VL>(step.output + channel, value, count);
  else
    for (int c = 0; c < count; c++) step.output[(channel + c) * step.output_plane] = value[c];
}

// The order of summation depends on the extent of the image alone: neither on its rows in memory nor on the backend.
static void global_avg_pool(const KerfStep &step, int part, int parts) {
  constexpr int VL = KERF_MAX_VECTOR_LENGTH;
  const Share share = share_of((step.channels + VL - 1) / VL, part, parts);
  const SummedRows rows(step);
  for (int block = share.first; block < share.last; block++) {
    const int channel = block * VL, rest = step.channels - channel;
    average_channels<VL>(step, rows, channel, rest < VL ? rest : VL);
  }
}

}  // namespace

#endif
