// Copies between layouts, and the split of a tensor into the phases that a strided convolution reads.
#ifndef KERF_SPLIT_H
#define KERF_SPLIT_H

#include "kerf_native.h"
#include "memory.h"
#include "vec.h"

namespace {

template <int VL, bool EVEN, bool ODD>
static void split_rows(const float *source, int64_t source_step, int num_rows, int width, float *even, float *odd,
                       int64_t target_row) {
  for (int y = 0; y < num_rows; y++, source += source_step, even += target_row, odd += target_row)
    split_row_by_two<VL, EVEN, ODD>(source, width, even, odd);
}

// Not in vectors of 16: rows with padding lie anywhere, and each store of a whole cache line would cross a border.
template <bool EVEN, bool ODD>
static void split_rows_by_two(const float *source, int64_t source_step, int num_rows, int width, float *even,
                              float *odd, int64_t target_row) {
#if KERF_MAX_VECTOR_LENGTH >= 8
  if (width >= 16) return split_rows<8, EVEN, ODD>(source, source_step, num_rows, width, even, odd, target_row);
#endif
  if (width >= 8) return split_rows<4, EVEN, ODD>(source, source_step, num_rows, width, even, odd, target_row);
  split_rows<0, EVEN, ODD>(source, source_step, num_rows, width, even, odd, target_row);
}

static void copy_rows(const KerfStep &step, const float *in, float *out, Share rows) {
  if (step.input_row == step.output_w && step.output_row == step.output_w) {
    const int64_t first = (int64_t)rows.first * step.output_w;
    copy_floats(out + first, in + first, (int64_t)(rows.last - rows.first) * step.output_w);
    return;
  }
  for (int y = rows.first; y < rows.last; y++)
    copy_floats(out + (int64_t)y * step.output_row, in + (int64_t)y * step.input_row, step.output_w);
}

// The phases of the rows stride * y + phase_y of one channel, where the stride is 2.
static void split_channel_by_two(const KerfStep &step, const float *in, float *out, int phase_y, Share rows) {
  const int32_t *phases = step.phases + phase_y * 2;
  const float *source = in + (int64_t)(2 * rows.first + phase_y) * step.input_row;
  out += (int64_t)rows.first * step.output_row;
  const int64_t source_step = 2 * (int64_t)step.input_row;
  const int num_rows = rows.last - rows.first;
  float *const even = phases[0] < 0 ? 0 : out + phases[0] * step.output_plane;
  float *const odd = phases[1] < 0 ? 0 : out + phases[1] * step.output_plane;
  if (phases[0] >= 0 && phases[1] >= 0)
    split_rows_by_two<true, true>(source, source_step, num_rows, step.input_w, even, odd, step.output_row);
  else if (phases[0] >= 0)
    split_rows_by_two<true, false>(source, source_step, num_rows, step.input_w, even, even, step.output_row);
  else if (phases[1] >= 0)
    split_rows_by_two<false, true>(source, source_step, num_rows, step.input_w, odd, odd, step.output_row);
}

static void split_channel(const KerfStep &step, const float *in, float *out, int phase_y, Share rows) {
  const int s = step.stride;
  for (int phase_x = 0; phase_x < s; phase_x++) {
    const int32_t phase = step.phases[phase_y * s + phase_x];
    if (phase < 0) continue;
    const int count = phase_x < step.input_w ? (step.input_w - phase_x + s - 1) / s : 0;
    for (int y = rows.first; y < rows.last; y++) {
      const float *source = in + (int64_t)(y * s + phase_y) * step.input_row + phase_x;
      float *row = out + phase * step.output_plane + (int64_t)y * step.output_row;
      for (int x = 0; x < count; x++) row[x] = source[x * s];
      for (int x = count; x < step.output_w; x++) row[x] = 0.0f;
    }
  }
}

// Phase (y, x) of a tensor holds its elements (s * i + y, s * j + x). All phases have the extent of phase (0, 0);
// what they lack is filled with zeros.
static void split(const KerfStep &step, int part, int parts) {
  const PlaneShare share = share_of_planes(step.channels, step.output_h, part, parts);
  const int s = step.stride;
  for (int c = share.channels.first; c < share.channels.last; c++) {
    const float *in = step.input + c * step.input_plane;
    float *out = step.output + (int64_t)c * step.num_phases * step.output_plane;
    if (s == 1) {
      copy_rows(step, in, out, share.rows);
      continue;
    }
    for (int phase_y = 0; phase_y < s; phase_y++) {
      const int num_rows = phase_y < step.input_h ? (step.input_h - phase_y + s - 1) / s : 0;
      Share rows = share.rows;
      rows.last = rows.last < num_rows ? rows.last : num_rows;
      rows.first = rows.first < rows.last ? rows.first : rows.last;
      if (s == 2) split_channel_by_two(step, in, out, phase_y, rows);
      else split_channel(step, in, out, phase_y, rows);
      for (int phase_x = 0; phase_x < s; phase_x++) {
        const int32_t phase = step.phases[phase_y * s + phase_x];
        for (int y = num_rows > share.rows.first ? num_rows : share.rows.first; phase >= 0 && y < share.rows.last; y++)
          clear_floats(out + phase * step.output_plane + (int64_t)y * step.output_row, step.output_w);
      }
    }
  }
}

static void zero(const KerfStep &step, int part, int parts) {
  const Share share = share_of(step.channels, part, parts);
  clear_floats(step.output + share.first * step.output_plane, (share.last - share.first) * step.output_plane);
}

}  // namespace

#endif
