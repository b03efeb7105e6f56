// Max, average and global average pooling.
#ifndef KERF_POOL_H
#define KERF_POOL_H

#include "kerf_native.h"
#include "memory.h"
#include "vec.h"

namespace {

struct Maximum {
  KERF_INLINE float apply(float a, float b) { return a > b ? a : b; }
};
struct Sum {
  KERF_INLINE float apply(float a, float b) { return a + b; }
};

// Combines windows first over their rows, into a row with margins of `neutral`, then over their columns. The row is
// split into `stride` phases, so that column k of all windows is a run of consecutive elements.
template <class Combine> static void pool(const KerfStep &step, int part, int parts, float neutral, float scale) {
  const Share share = share_of(step.channels, part, parts);
  const int s = step.stride, padded_w = step.input_w + 2 * step.padding;
  const int phase_w = (padded_w + s - 1) / s;
  float *const row = step.scratch + (int64_t)part * step.scratch_size;
  float *const inner = row + step.padding;
  float *const phases = s == 1 ? row : row + padded_w;
  for (int x = 0; x < step.padding; x++) row[x] = inner[step.input_w + x] = neutral;
  for (int c = share.first; c < share.last; c++) {
    const float *in = step.input + c * step.input_plane;
    for (int y = 0; y < step.output_h; y++) {
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
        split_row_by_two<true, true>(row, padded_w, phases, phases + phase_w);
      } else if (s > 2) {
        for (int x = 0; x < padded_w; x++) phases[(x % s) * phase_w + x / s] = row[x];
      }
      float *__restrict out = step.output + c * step.output_plane + (int64_t)y * step.output_row;
      copy_floats(out, phases, step.output_w);
      for (int k = 1; k < step.kernel_w; k++) {
        const float *__restrict column = phases + (k % s) * phase_w + k / s;
        for (int x = 0; x < step.output_w; x++) out[x] = Combine::apply(out[x], column[x]);
      }
      for (int x = 0; x < step.output_w; x++) out[x] = clamp_one(out[x] * scale, step.lower, step.upper);
    }
  }
}

static void max_pool(const KerfStep &step, int part, int parts) {
  pool<Maximum>(step, part, parts, -__builtin_inff(), 1.0f);
}

static void avg_pool(const KerfStep &step, int part, int parts) { pool<Sum>(step, part, parts, 0.0f, step.scale); }

// The padding between rows is zero, so whole planes are summed.
static void global_avg_pool(const KerfStep &step, int part, int parts) {
  const Share share = share_of(step.channels, part, parts);
  for (int c = share.first; c < share.last; c++) {
    const float *in = step.input + c * step.input_plane;
    Vec<16>::Float sum = {};
    for (int q = 0; q < step.positions; q += 16) sum += load<16>(in + q);
    step.output[c * step.output_plane] = clamp_one(horizontal_sum<16>(sum) * step.scale, step.lower, step.upper);
  }
}

}  // namespace

#endif
