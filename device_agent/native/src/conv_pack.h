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

// How many of `copies` pack_by_two() packs together: three that see the same rows as the columns -1, 0 and 1 of a window,
// or one that begins with the image. 0 where it packs none: it looks back over the rows before, which must be there.
static inline int num_packed_by_two(const KerfStep &step, const KerfCopy *copies, int count) {
  if (step.stride != 2 || step.row_vectors > 0 || step.input_row < step.pack_row) return 0;
  if (2 * copies[0].first_row + copies[0].phase_y < -1) return 0;
  // A single copy of longer rows is faster written row by row.
  if (copies[0].shift_x == 0) return 2 * step.pack_row <= KERF_MAX_VECTOR_LENGTH ? 1 : 0;
  if (count < 3) return 0;
  for (int i = 0; i < 3; i++)
    if (copies[i].phase_y != copies[0].phase_y || copies[i].first_row != copies[0].first_row ||
        copies[i].extra_rows != copies[0].extra_rows || copies[i].shift_x != i - 1)
      return 0;
  return 3;
}

// What a vector of a copy holds at stride 2: pieces of some rows of the image, the next one where the last one ends. Piece
// p begins, as if it filled the vector, at element `offsets[p]` of a channel. `even` tells the lanes of its even elements
// that are part of the vector, `odd` those of its odd elements.
struct VectorOfRows {
  int num_pieces;
  int64_t offsets[KERF_MAX_VECTOR_LENGTH];
  Vec<KERF_MAX_VECTOR_LENGTH>::Bits even[KERF_MAX_VECTOR_LENGTH], odd[KERF_MAX_VECTOR_LENGTH];
  Vec<KERF_MAX_VECTOR_LENGTH>::Bits inside_rows;  // the lanes that do not begin a row
};

// The vector that begins at column x of row `row` of a copy, whose row 0 is row y of the image; both go to its end.
static void next_vector_of_rows(const KerfStep &step, int y, int num_rows, int &row, int &x, VectorOfRows &vector) {
  const int VL = KERF_MAX_VECTOR_LENGTH;
  typedef Vec<VL>::Bits Bits;
  typedef Vec<VL>::Int Int;
  const Int lane = lane_numbers<VL>();
  vector.num_pieces = 0;
  vector.inside_rows = ~Bits{};
  for (int lanes = 0; lanes < VL && row < num_rows;) {
    const int left = step.pack_row - x, taken = left < VL - lanes ? left : VL - lanes;
    const int source_row = y + 2 * row;
    if (x == 0) vector.inside_rows &= (Bits)(lane != lanes);
    if (source_row >= 0 && source_row < step.input_h) {
      const Int column = lane + (x - lanes), is_taken = (lane >= lanes) & (lane < lanes + taken);
      vector.offsets[vector.num_pieces] = (int64_t)source_row * step.input_row + 2 * (x - lanes);
      vector.even[vector.num_pieces] = (Bits)(is_taken & (column < (step.input_w + 1) / 2));
      vector.odd[vector.num_pieces] = (Bits)(is_taken & (column < step.input_w / 2));
      vector.num_pieces++;
    }
    lanes += taken;
    x += taken;
    if (x == step.pack_row) x = 0, row++;
  }
}

template <bool ODD>
KERF_INLINE void add_piece(const float *from, Vec<KERF_MAX_VECTOR_LENGTH>::Bits even_lanes,
                           Vec<KERF_MAX_VECTOR_LENGTH>::Bits odd_lanes, Vec<KERF_MAX_VECTOR_LENGTH>::Bits &even,
                           Vec<KERF_MAX_VECTOR_LENGTH>::Bits &odd) {
  const int VL = KERF_MAX_VECTOR_LENGTH;
  typedef Vec<VL>::Bits Bits;
  const Vec<VL>::Float a = load<VL>(from), b = load<VL>(from + VL);
  even |= (Bits)even_of<VL>(a, b) & even_lanes;
  if (ODD) odd |= (Bits)odd_of<VL>(a, b) & odd_lanes;
}

// Writes `vector` of each of `count` channels: the even elements to `middle` and, if COLUMNS is 3, the odd ones to `right`
// and those of one column before to `left`. `before` is where in `right` the vector before begins, or any other for the
// first one. PIECES of them, or as many as there are if 0.
template <int COLUMNS, int PIECES>
static void pack_vector(const KerfStep &step, const VectorOfRows &vector, const float *channel, int count, float *left,
                        float *middle, float *right, const float *before) {
  const int VL = KERF_MAX_VECTOR_LENGTH;
  typedef Vec<VL>::Float Float;
  typedef Vec<VL>::Bits Bits;
  // Copies of what lies in memory: for all that the compiler knows, stores could change it.
  int64_t offsets[PIECES ? PIECES : 1];
  Bits even_lanes[PIECES ? PIECES : 1], odd_lanes[PIECES ? PIECES : 1];
  KERF_UNROLL for (int p = 0; p < PIECES; p++) {
    offsets[p] = vector.offsets[p];
    even_lanes[p] = vector.even[p];
    odd_lanes[p] = vector.odd[p];
  }
  const Bits inside_rows = vector.inside_rows;
  const int num_pieces = vector.num_pieces;
  const int64_t input_plane = step.input_plane, plane = step.pack_plane;
  int64_t target = 0;
  for (int c = 0; c < count; c++, channel += input_plane, target += plane) {
    Bits even = {}, odd = {};
    if constexpr (PIECES > 0) {
      KERF_UNROLL for (int p = 0; p < PIECES; p++)
        add_piece<COLUMNS == 3>(channel + offsets[p], even_lanes[p], odd_lanes[p], even, odd);
    } else {
      for (int p = 0; p < num_pieces; p++)
        add_piece<COLUMNS == 3>(channel + vector.offsets[p], vector.even[p], vector.odd[p], even, odd);
    }
    store<VL>(middle + target, (Float)even);
    if constexpr (COLUMNS == 3) {
      const Bits shifted = (Bits)shift_in<VL>(load<VL>(before + target), (Float)odd);
      store<VL>(left + target, (Float)(shifted & inside_rows));
      store<VL>(right + target, (Float)odd);
    }
  }
}

// Rows [first, first + num_rows) of one copy at stride 2 without a shift, or of three that see the same rows as columns
// -1, 0 and 1. Rows without a gap: each vector is put together from the rows that it holds and written once, as a whole.
template <int COLUMNS>
static void pack_by_two(const KerfStep &step, const KerfCopy *copies, const float *channel, int count, int first,
                        int num_rows, float *scratch) {
  const int VL = KERF_MAX_VECTOR_LENGTH;
  float *left = scratch + copies[0].offset, *middle = scratch + copies[COLUMNS / 2].offset;
  float *right = scratch + copies[COLUMNS - 1].offset;
  const float *before = right;
  VectorOfRows vector;
  for (int row = 0, x = 0; row < num_rows; before = right, left += VL, middle += VL, right += VL) {
    next_vector_of_rows(step, 2 * first + copies[0].phase_y, num_rows, row, x, vector);
    if (vector.num_pieces == 1)
      pack_vector<COLUMNS, 1>(step, vector, channel, count, left, middle, right, before);
    else if (vector.num_pieces == 2)
      pack_vector<COLUMNS, 2>(step, vector, channel, count, left, middle, right, before);
    else
      pack_vector<COLUMNS, 0>(step, vector, channel, count, left, middle, right, before);
  }
}

// The channels [first, first + count) for output rows [row, row + num_rows), to `scratch`.
static void pack_channels(const KerfStep &step, int first, int count, int row, int num_rows, float *scratch) {
  const float *channel = step.input + first * step.input_plane;
  for (int i = 0; i < step.num_copies;) {
    const KerfCopy &copy = step.copies[i];
    const int first_row = row + copy.first_row, rows = num_rows + copy.extra_rows;
    const int by_two = num_packed_by_two(step, &copy, step.num_copies - i);
    float *target = scratch + copy.offset;
    if (by_two == 3) pack_by_two<3>(step, &copy, channel, count, first_row, rows, scratch);
    else if (by_two == 1) pack_by_two<1>(step, &copy, channel, count, first_row, rows, scratch);
    else if (is_packed_flat(step)) pack_flat(step, copy, channel, count, first_row, rows, target);
    else if (step.stride == 1) pack_rows<1>(step, copy, channel, count, first_row, rows, target);
    else if (step.stride == 2) pack_rows<2>(step, copy, channel, count, first_row, rows, target);
    else pack_rows<0, 0>(step, copy, channel, count, first_row, rows, target);
    i += by_two ? by_two : 1;
  }
}

}  // namespace

#endif
