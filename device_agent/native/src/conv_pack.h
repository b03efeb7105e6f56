// Packing for the convolution: the input of some output rows, copied so that every kernel position is one offset.
//
// Output position q of a block reads, for kernel position (y, x), element q + offset of one of the copies. A copy holds
// the rows of one phase of the stride as one column of the kernel sees them: shifted, strided, with zeros outside the
// image. So neither padding nor stride costs anything in the inner loop, rows need no gap between them, and the copies
// of a chunk of channels stay in the fastest cache.
#ifndef KERF_CONV_PACK_H
#define KERF_CONV_PACK_H

#include "kerf_native.h"
#include "memory.h"
#include "vec.h"

namespace {

// VL elements from source[0] on, STRIDE apart (0: `stride`), zero where `mask` is. Only the first `count` are needed.
template <int VL, int STRIDE>
KERF_INLINE typename Vec<VL>::Float load_strided(const float *source, int stride, const uint32_t *mask, int count) {
  if constexpr (STRIDE == 1) {
    return keep<VL>(load<VL>(source), mask);
  } else if constexpr (STRIDE == 2) {
    return keep<VL>(even_of<VL>(load<VL>(source), load<VL>(source + VL)), mask);
  } else {
    float lanes[VL];
    for (int i = 0; i < VL; i++) lanes[i] = i < count && mask[i] ? source[i * stride] : 0.0f;
    return load<VL>(lanes);
  }
}

static void clear_rows(float *scratch, int count, int64_t plane, int64_t num_elements) {
  if (num_elements > 0)
    for (int c = 0; c < count; c++) clear_floats(scratch + c * plane, num_elements);
}

// Rows [first, first + num_rows) of one copy of the channels from `channel` on, `count` of them. Writes whole vectors, so
// up to VL - 1 elements after the last row. VECTORS in each row, or as many as it takes if 0.
template <int STRIDE, int VECTORS>
static void pack_rows(const KerfStep &step, const KerfCopy &copy, const float *channel, int count, int first, int num_rows,
                      float *scratch) {
  const int VL = KERF_MAX_VECTOR_LENGTH;
  const int stride = STRIDE ? STRIDE : step.stride;
  const int num_vectors = VECTORS ? VECTORS : (step.pack_row + VL - 1) / VL;
  const int64_t row_length = step.pack_row, source_row = (int64_t)stride * step.input_row;
  const int64_t plane = step.pack_plane, input_plane = step.input_plane;
  const uint32_t *mask = step.pack_mask + copy.mask;
  // Rows of the copy that are rows of the image.
  int y = first * stride + copy.phase_y, begin = 0, end = num_rows;
  while (begin < end && y + begin * stride < 0) begin++;
  while (begin < end && y + (end - 1) * stride >= step.input_h) end--;
  const float *source = channel + (int64_t)(y + begin * stride) * step.input_row + copy.shift_x;
  clear_rows(scratch, count, plane, begin * row_length);
  for (int c = 0; c < count; c++) {
    const float *from = source + c * input_plane;
    float *to = scratch + c * plane + begin * row_length;
    for (int row = begin; row < end; row++, from += source_row, to += row_length) {
      KERF_UNROLL for (int v = 0; v < num_vectors; v++)
        store<VL>(to + v * VL, load_strided<VL, STRIDE>(from + v * VL * stride, stride, mask + v * VL, step.output_w - v * VL));
    }
  }
  clear_rows(scratch + end * row_length, count, plane, (num_rows - end) * row_length);
}

template <int STRIDE>
static void pack_rows(const KerfStep &step, const KerfCopy &copy, const float *channel, int count, int first, int num_rows,
                      float *scratch) {
  switch ((step.pack_row + KERF_MAX_VECTOR_LENGTH - 1) / KERF_MAX_VECTOR_LENGTH) {
    case 1: return pack_rows<STRIDE, 1>(step, copy, channel, count, first, num_rows, scratch);
    case 2: return pack_rows<STRIDE, 2>(step, copy, channel, count, first, num_rows, scratch);
    default: return pack_rows<STRIDE, 0>(step, copy, channel, count, first, num_rows, scratch);
  }
}

// Whether rows lie in the input as they do in the copies, which then are one long row with one long mask.
static inline bool is_packed_flat(const KerfStep &step) {
  return step.stride == 1 && step.row_vectors == 0 && step.input_row == step.pack_row;
}

static void pack_flat(const KerfStep &step, const KerfCopy &copy, const float *channel, int count, int first, int num_rows,
                      float *scratch) {
  const int VL = KERF_MAX_VECTOR_LENGTH;
  typedef Vec<VL>::Float Float;
  const float *source = channel + (int64_t)first * step.input_row + copy.shift_x;
  const uint32_t *mask = step.pack_mask + copy.mask + (int64_t)(first - copy.first_row) * step.pack_row;
  const int num_elements = num_rows * step.pack_row;
  const int64_t plane = step.pack_plane, input_plane = step.input_plane;
  for (int c = 0; c < count; c++, source += input_plane, scratch += plane) {
    int i = 0;
    for (; i + 2 * VL <= num_elements; i += 2 * VL) {
      const Float a = keep<VL>(load<VL>(source + i), mask + i), b = keep<VL>(load<VL>(source + i + VL), mask + i + VL);
      store<VL>(scratch + i, a);
      store<VL>(scratch + i + VL, b);
    }
    for (; i < num_elements; i += VL) store<VL>(scratch + i, keep<VL>(load<VL>(source + i), mask + i));
  }
}

// The channels [first, first + count) for output rows [row, row + num_rows), to `scratch`.
static void pack_channels(const KerfStep &step, int first, int count, int row, int num_rows, float *scratch) {
  const float *channel = step.input + first * step.input_plane;
  for (int i = 0; i < step.num_copies; i++) {
    const KerfCopy &copy = step.copies[i];
    const int first_row = row + copy.first_row, rows = num_rows + copy.extra_rows;
    float *target = scratch + copy.offset;
    if (is_packed_flat(step)) pack_flat(step, copy, channel, count, first_row, rows, target);
    else if (step.stride == 1) pack_rows<1>(step, copy, channel, count, first_row, rows, target);
    else if (step.stride == 2) pack_rows<2>(step, copy, channel, count, first_row, rows, target);
    else pack_rows<0, 0>(step, copy, channel, count, first_row, rows, target);
  }
}

}  // namespace

#endif
