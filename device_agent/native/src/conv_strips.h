// The convolution of stride 1 by single filters, with every load of the inner loop aligned.
//
// A filter of its own shares no input with others, so each multiply-add loads a vector: loads are the limit, and one that
// crosses a cache line counts twice. Here the input of a tile is copied once for each column of the kernel, shifted, into
// strips: the lanes of a vector are `row_blocks` blocks of rows by COLUMNS columns, and vector y of a strip is row y of
// every block. So rows of the kernel are whole vectors apart, and the rows of narrow images fill vectors, too. Between
// chunks of input channels the sums of a tile wait beside the copies, in the order of its vectors.
#ifndef KERF_CONV_STRIPS_H
#define KERF_CONV_STRIPS_H

#include "kerf_native.h"
#include "vec.h"

namespace {

// On every instruction set: an image that was tuned for one may run on another.
constexpr int STRIP_LANES = 16;
typedef Vec<STRIP_LANES>::Bits StripBits;

// A tile: `rows` vectors of each of `strips` strips.
struct StripTile {
  int first_row, rows;
  int first_strip, strips;
  float *copies;  // of one chunk
  float *sums;    // by filter
};

KERF_INLINE int block_height(const KerfStep &step) { return (step.output_h + step.row_blocks - 1) / step.row_blocks; }

// Elements from one strip of a copy to the next.
KERF_INLINE int64_t strip_size(const KerfStep &step) {
  return (int64_t)(step.pack_rows + step.kernel_h - 1) * STRIP_LANES;
}

KERF_INLINE float *sums_of(const KerfStep &step, const StripTile &tile, int filter) {
  return tile.sums + (int64_t)filter * step.max_vectors * STRIP_LANES;
}

// Copies row `at` of BLOCKS blocks of rows side by side, where `mask` has ones.
template <int BLOCKS>
KERF_INLINE void copy_blocks(const float *const (&from)[BLOCKS], int64_t at, const StripBits &mask, float *to) {
#if defined(__AVX512F__)
  __m512 v;
  if constexpr (BLOCKS == 1) {
    v = (__m512)load<16>(from[0] + at);
  } else if constexpr (BLOCKS == 2) {
    const __m512d low = _mm512_castpd256_pd512((__m256d)load<8>(from[0] + at));
    v = (__m512)_mm512_insertf64x4(low, (__m256d)load<8>(from[1] + at), 1);
  } else {
    v = _mm512_castps128_ps512((__m128)load<4>(from[0] + at));
    v = _mm512_insertf32x4(v, (__m128)load<4>(from[1] + at), 1);
    v = _mm512_insertf32x4(v, (__m128)load<4>(from[2] + at), 2);
    v = _mm512_insertf32x4(v, (__m128)load<4>(from[3] + at), 3);
  }
  store<16>(to, (Vec<16>::Float)((StripBits)v & mask));
#else
  constexpr int COLUMNS = STRIP_LANES / BLOCKS;
  for (int b = 0; b < BLOCKS; b++)
    store<COLUMNS>(to + b * COLUMNS, keep<COLUMNS>(load<COLUMNS>(from[b] + at), (const uint32_t *)&mask + b * COLUMNS));
#endif
}

// Rows [first, last) of one strip for all columns of the kernel; `mask` by column of the kernel. KERNEL_W = 0: any.
template <int BLOCKS, int KERNEL_W>
KERF_INLINE void pack_rows_of_strip(const KerfStep &step, const float *const (&from)[BLOCKS], int first, int last,
                                    const StripBits *mask, int64_t copy, float *to) {
  const int kernel_w = KERNEL_W ? KERNEL_W : step.kernel_w;
  for (int y = first; y < last; y++)
    KERF_UNROLL for (int x = 0; x < kernel_w; x++)
      copy_blocks<BLOCKS>(from, y * (int64_t)step.input_row + x, mask[x], to + x * copy + y * STRIP_LANES);
}


// One strip of `count` channels from `channel` on.
template <int BLOCKS, int KERNEL_W>
static void pack_strip(const KerfStep &step, const StripTile &tile, int strip, const float *channel, int count, float *to) {
  constexpr int COLUMNS = STRIP_LANES / BLOCKS;
  const int kernel_w = KERNEL_W ? KERNEL_W : step.kernel_w, height = block_height(step);
  const int num_strips = (step.output_w + COLUMNS - 1) / COLUMNS;
  const int first = tile.first_row - step.padding, rows = tile.rows + step.kernel_h - 1;
  const int64_t row = step.input_row, copy = step.row_vectors * strip_size(step);
  StripBits mask[KERF_MAX_STRIP_KERNEL_W];
  for (int x = 0; x < kernel_w; x++)
    mask[x] = *(const Vec<STRIP_LANES>::BitsUnaligned *)(step.pack_mask + ((int64_t)x * num_strips + strip) * STRIP_LANES);
  // Rows that are inside of the image in all blocks.
  const int last_inside = step.input_h - (BLOCKS - 1) * height - first;
  const int begin = first >= 0 ? 0 : -first < rows ? -first : rows;
  const int end = last_inside >= rows ? rows : last_inside > begin ? last_inside : begin;
  const float *from[BLOCKS];
  for (int b = 0; b < BLOCKS; b++) from[b] = channel + (first + b * height) * row + strip * COLUMNS - step.padding;
  for (int c = 0; c < count; c++, to += step.pack_plane) {
    pack_rows_of_strip<BLOCKS, KERNEL_W>(step, from, begin, end, mask, copy, to);
    for (int b = 0; b < BLOCKS; b++) from[b] += step.input_plane;
  }
  // Of the others, some blocks are zero. They read any row instead.
  const float *const any = channel + strip * COLUMNS - step.padding;
  for (int y = begin > 0 ? 0 : end; y < rows; y = y + 1 == begin ? end : y + 1) {
    StripBits inside[KERF_MAX_STRIP_KERNEL_W];
    const float *at[BLOCKS];
    StripBits blocks = {};
    for (int b = 0; b < BLOCKS; b++) {
      const int image_y = first + y + b * height;
      const bool is_inside = image_y >= 0 && image_y < step.input_h;
      at[b] = any + (is_inside ? image_y * row : 0) - y * row;
      if (is_inside) blocks |= (StripBits)(lane_numbers<STRIP_LANES>() / COLUMNS == b);
    }
    for (int x = 0; x < kernel_w; x++) inside[x] = mask[x] & blocks;
    for (int c = 0; c < count; c++) {
      float *const target = to - (count - c) * (int64_t)step.pack_plane;
      pack_rows_of_strip<BLOCKS, KERNEL_W>(step, at, y, y + 1, inside, copy, target);
      for (int b = 0; b < BLOCKS; b++) at[b] += step.input_plane;
    }
  }
}

template <int BLOCKS> static void pack_strips(const KerfStep &step, const StripTile &tile, int chunk) {
  const int first = chunk * step.chunk_channels;
  const int count = first + step.chunk_channels <= step.channels ? step.chunk_channels : step.channels - first;
  const float *channel = step.input + first * step.input_plane;
  for (int strip = 0; strip < tile.strips; strip++) {
    float *const to = tile.copies + strip * strip_size(step);
    if (step.kernel_w == 3) pack_strip<BLOCKS, 3>(step, tile, tile.first_strip + strip, channel, count, to);
    else pack_strip<BLOCKS, 0>(step, tile, tile.first_strip + strip, channel, count, to);
  }
}

// Visits the runs of columns that a tile's vectors consist of: visit(element of the output's plane, element of the sums,
// whether the vector is whole, columns). Those outside of the image are left out.
template <int BLOCKS, class Visit> KERF_INLINE void visit_runs(const KerfStep &step, const StripTile &tile, Visit visit) {
  constexpr int COLUMNS = STRIP_LANES / BLOCKS;
  for (int strip = 0; strip < tile.strips; strip++) {
    const int x = (tile.first_strip + strip) * COLUMNS;
    const int columns = step.output_w - x < COLUMNS ? step.output_w - x : COLUMNS;
    for (int b = 0; b < BLOCKS; b++) {
      const int y = tile.first_row + b * block_height(step);
      const int rows = step.output_h - y < tile.rows ? step.output_h - y : tile.rows;
      int64_t at = (int64_t)y * step.output_row + x;
      int64_t lane = (int64_t)strip * tile.rows * STRIP_LANES + b * COLUMNS;
      for (int i = 0; i < rows; i++, at += step.output_row, lane += STRIP_LANES) visit(at, lane, columns);
    }
  }
}

// Sums that begin with the residual.
template <int BLOCKS> static void start_sums(const KerfStep &step, const StripTile &tile, Share filters) {
  constexpr int COLUMNS = STRIP_LANES / BLOCKS;
  for (int filter = filters.first; filter < filters.last; filter++) {
    const int channel = step.group_channels[filter];
    const float *second = step.second + channel * step.second_plane;
    float *const sums = sums_of(step, tile, filter);
    const float bias = step.bias[channel];
    visit_runs<BLOCKS>(step, tile, [&](int64_t at, int64_t lane, int columns) {
      store<COLUMNS>(sums + lane, load_first<COLUMNS>(second + at, columns) + bias);
    });
  }
}

template <int BLOCKS> static void store_output(const KerfStep &step, const StripTile &tile, int channel, const float *sums) {
  constexpr int COLUMNS = STRIP_LANES / BLOCKS;
  typedef typename Vec<COLUMNS>::Float Run;
  float *const output = step.output + channel * step.output_plane;
  const Run lower = splat<COLUMNS>(step.lower), upper = splat<COLUMNS>(step.upper);
  visit_runs<BLOCKS>(step, tile, [&](int64_t at, int64_t lane, int columns) {
    const Run v = clamp<COLUMNS>(load<COLUMNS>(sums + lane), lower, upper);
    if (columns == COLUMNS) store<COLUMNS>(output + at, v);
    else store_first<COLUMNS>(output + at, v, columns);
  });
}

typedef void (*StripKernel)(const KerfStep &, const StripTile &, int chunk, Share filters);

#if KERF_MAX_VECTOR_LENGTH >= 16

typedef Vec<STRIP_LANES>::Float StripFloat;

template <int P, int STRIPS>
KERF_INLINE void add_entry(StripFloat (&sum)[P], const float *x, float weight, int64_t strip) {
  const StripFloat w = splat<STRIP_LANES>(weight);
  KERF_UNROLL for (int s = 0; s < STRIPS; s++, x += strip)
    KERF_UNROLL for (int p = 0; p < P / STRIPS; p++) sum[s * (P / STRIPS) + p] += load<STRIP_LANES>(x + p * STRIP_LANES) * w;
}

// Adds the entries of one chunk of FILTERS filters from `filter` on to a tile of P vectors. With few vectors, one filter
// alone would wait for its own sums.
template <int P, int STRIPS, int FILTERS>
KERF_INLINE void add_filters(const KerfStep &step, const StripTile &tile, int chunk, int filter) {
  StripFloat sum[FILTERS][P];
  KERF_UNROLL for (int f = 0; f < FILTERS; f++) {
    const float *sums = sums_of(step, tile, filter + f);
    if (chunk > 0 || step.second) {
      KERF_UNROLL for (int p = 0; p < P; p++) sum[f][p] = load<STRIP_LANES>(sums + p * STRIP_LANES);
    } else {
      const StripFloat bias = splat<STRIP_LANES>(step.bias[step.group_channels[filter + f]]);
      KERF_UNROLL for (int p = 0; p < P; p++) sum[f][p] = bias;
    }
  }
  const int64_t strip = strip_size(step);
  const int32_t *const starts = step.group_starts + (int64_t)chunk * step.num_groups + filter;
  const int32_t *__restrict offset = step.offsets + starts[0];
  const float *__restrict weight = step.weights + starts[0];
  if constexpr (FILTERS == 1) {
    for (const int32_t *end = step.offsets + starts[1]; offset != end; offset++, weight++)
      add_entry<P, STRIPS>(sum[0], tile.copies + *offset, *weight, strip);
  } else {
    // Entries of the second filter follow those of the first one.
    const int counts[2] = {starts[1] - starts[0], starts[2] - starts[1]};
    const int common = counts[0] < counts[1] ? counts[0] : counts[1];
    for (int i = 0; i < common; i++) {
      add_entry<P, STRIPS>(sum[0], tile.copies + offset[i], weight[i], strip);
      add_entry<P, STRIPS>(sum[1], tile.copies + offset[counts[0] + i], weight[counts[0] + i], strip);
    }
    for (int i = common; i < counts[0]; i++) add_entry<P, STRIPS>(sum[0], tile.copies + offset[i], weight[i], strip);
    for (int i = counts[0] + common; i < counts[0] + counts[1]; i++)
      add_entry<P, STRIPS>(sum[1], tile.copies + offset[i], weight[i], strip);
  }
  KERF_UNROLL for (int f = 0; f < FILTERS; f++) {
    float *sums = sums_of(step, tile, filter + f);
    KERF_UNROLL for (int p = 0; p < P; p++) store<STRIP_LANES>(sums + p * STRIP_LANES, sum[f][p]);
  }
}

template <int P, int STRIPS>
static void strip_tile(const KerfStep &step, const StripTile &tile, int chunk, Share filters) {
  int filter = filters.first;
  if constexpr (2 * P <= KERF_MAX_STRIP_VECTORS)
    for (; filter + 2 <= filters.last; filter += 2) add_filters<P, STRIPS, 2>(step, tile, chunk, filter);
  for (; filter < filters.last; filter++) add_filters<P, STRIPS, 1>(step, tile, chunk, filter);
}

template <int STRIPS> struct StripKernels {
  StripKernel by_rows[KERF_MAX_STRIP_VECTORS / STRIPS + 1];
  template <int ROWS> constexpr void fill() {
    by_rows[ROWS] = strip_tile<ROWS * STRIPS, STRIPS>;
    if constexpr (ROWS > 1) fill<ROWS - 1>();
  }
  constexpr StripKernels() : by_rows{} { fill<KERF_MAX_STRIP_VECTORS / STRIPS>(); }
};

static StripKernel find_strip_kernel(int rows, int strips) {
  static constexpr StripKernels<1> of_one{};
  static constexpr StripKernels<2> of_two{};
  return strips == 1 ? of_one.by_rows[rows] : of_two.by_rows[rows];
}

#else

// With shorter vectors a tile is more than the registers hold, and is computed in parts of ROWS rows of a strip.
template <int ROWS>
static void add_filter(const KerfStep &step, const float *copies, int chunk, int filter, float *sums) {
  constexpr int VL = KERF_MAX_VECTOR_LENGTH, P = ROWS * STRIP_LANES / VL;
  typename Vec<VL>::Float sum[P];
  if (chunk > 0 || step.second) {
    KERF_UNROLL for (int p = 0; p < P; p++) sum[p] = load<VL>(sums + p * VL);
  } else {
    KERF_UNROLL for (int p = 0; p < P; p++) sum[p] = splat<VL>(step.bias[step.group_channels[filter]]);
  }
  const int32_t *const starts = step.group_starts + (int64_t)chunk * step.num_groups + filter;
  for (int i = starts[0]; i < starts[1]; i++) {
    const float *const x = copies + step.offsets[i];
    const typename Vec<VL>::Float w = splat<VL>(step.weights[i]);
    KERF_UNROLL for (int p = 0; p < P; p++) sum[p] += load<VL>(x + p * VL) * w;
  }
  KERF_UNROLL for (int p = 0; p < P; p++) store<VL>(sums + p * VL, sum[p]);
}

static void strip_tile(const KerfStep &step, const StripTile &tile, int chunk, Share filters) {
  constexpr int MAX_ROWS = (KERF_NUM_REGISTERS - 4) * KERF_MAX_VECTOR_LENGTH / STRIP_LANES;
  for (int filter = filters.first; filter < filters.last; filter++)
    for (int strip = 0; strip < tile.strips; strip++) {
      float *const sums = sums_of(step, tile, filter) + strip * tile.rows * STRIP_LANES;
      const float *const copies = tile.copies + strip * strip_size(step);
      int row = 0;
      for (; row + MAX_ROWS <= tile.rows; row += MAX_ROWS)
        add_filter<MAX_ROWS>(step, copies + row * STRIP_LANES, chunk, filter, sums + row * STRIP_LANES);
      for (; row < tile.rows; row++)
        add_filter<1>(step, copies + row * STRIP_LANES, chunk, filter, sums + row * STRIP_LANES);
    }
}

static StripKernel find_strip_kernel(int, int) { return strip_tile; }

#endif

template <int BLOCKS> static void run_strips(const KerfStep &step, Share filters, Share tiles, float *scratch) {
  const int columns = STRIP_LANES / BLOCKS, num_strips = (step.output_w + columns - 1) / columns;
  const int tiles_x = (num_strips + step.row_vectors - 1) / step.row_vectors;
  StripTile tile;
  tile.copies = scratch;
  tile.sums = scratch + (int64_t)step.chunk_channels * step.pack_plane;
  for (int i = tiles.first; i < tiles.last; i++) {
    tile.first_row = i / tiles_x * step.pack_rows;
    tile.first_strip = i % tiles_x * step.row_vectors;
    const int rows = block_height(step) - tile.first_row, strips = num_strips - tile.first_strip;
    tile.rows = rows < step.pack_rows ? rows : step.pack_rows;
    tile.strips = strips < step.row_vectors ? strips : step.row_vectors;
    const StripKernel kernel = find_strip_kernel(tile.rows, tile.strips);
    if (step.second) start_sums<BLOCKS>(step, tile, filters);
    for (int chunk = 0; chunk < step.num_chunks - 1; chunk++) {
      pack_strips<BLOCKS>(step, tile, chunk);
      kernel(step, tile, chunk, filters);
    }
    pack_strips<BLOCKS>(step, tile, step.num_chunks - 1);
    // What is written is still in the cache.
    for (int filter = filters.first; filter < filters.last; filter += 2) {
      const Share few = {filter, filter + 2 < filters.last ? filter + 2 : filters.last};
      kernel(step, tile, step.num_chunks - 1, few);
      for (int f = few.first; f < few.last; f++)
        store_output<BLOCKS>(step, tile, step.group_channels[f], sums_of(step, tile, f));
    }
  }
}

static bool conv_strips(const KerfStep &step, int part, int parts) {
  if (part >= step.pack_parts) return true;
  parts = parts < step.pack_parts ? parts : step.pack_parts;
  const int columns = STRIP_LANES / step.row_blocks, num_strips = (step.output_w + columns - 1) / columns;
  const int num_tiles = ((block_height(step) + step.pack_rows - 1) / step.pack_rows) *
                        ((num_strips + step.row_vectors - 1) / step.row_vectors);
  float *const scratch = step.scratch + (int64_t)part * step.scratch_size;
  // Tiles share nothing; with too few of them to go around, each thread packs for its own filters.
  Share filters = {0, step.num_groups}, tiles = {0, num_tiles};
  if (num_tiles >= 4 * parts) tiles = share_of(num_tiles, part, parts);
  else filters = share_of(step.num_groups, part, parts);
  switch (step.row_blocks) {
    case 1: run_strips<1>(step, filters, tiles, scratch); return true;
    case 2: run_strips<2>(step, filters, tiles, scratch); return true;
    case 4: run_strips<4>(step, filters, tiles, scratch); return true;
    default: return false;
  }
}

}  // namespace

#endif
