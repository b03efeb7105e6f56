// Dense 3x3 convolutions of stride 1 by Winograd's algorithm, for blocks of tiles that fit the cache.
//
// A block is some rows of tiles. Its input is transformed into (M + 2)^2 matrices V of channels x tiles; each meets a
// matrix U of transformed weights in a product over the channels; the products of 16 or more output channels at a time
// are transformed back. An output is a fixed chain of operations, the same in every block and tile of registers. Its bits
// differ from those of the direct convolution.
#ifndef KERF_WINOGRAD_H
#define KERF_WINOGRAD_H

#include "kerf_native.h"
#include "memory.h"
#include "vec.h"
#include "winograd_block.h"
#include "winograd_transform.h"

namespace {

// Rows of tiles of one channel, from the step's input into `block.input`.
template <int M, int VL> static void transform_input(const KerfStep &step, const WinogradBlock &block) {
  enum { N = M + 2, LONG = KERF_MAX_VECTOR_LENGTH };
  typedef typename Vec<VL>::Float Float;
  typedef typename Vec<LONG>::Float Long;
  const int width = M * block.tiles_x + 2, inside = step.input_w + 2 * step.padding;
  for (int channel = 0; channel < step.channels; channel++) {
    float *target = block.input + channel / block.group_channels * block.group +
                    channel % block.group_channels * block.pitch;
    for (int tile_y = 0; tile_y < block.num_rows; tile_y++, target += block.tiles_x) {
      const float *source[N];
      KERF_UNROLL for (int i = 0; i < N; i++) {
        const int y = (block.first_row + tile_y) * M + i - step.padding;
        const float *row = step.input + channel * step.input_plane + (int64_t)y * step.input_row - step.padding;
        source[i] = y < 0 || y >= step.input_h ? block.zeros : row;
      }
      for (int x = 0; x < width; x += LONG) {
        Long d[N], t[N];
        KERF_UNROLL for (int i = 0; i < N; i++) d[i] = load<LONG>(source[i] + x);
        Winograd<M>::input(d, t);
        KERF_UNROLL for (int i = 0; i < N; i++) store<LONG>(block.rows + i * block.row_pitch + x, t[i]);
      }
      // Beyond the padded image lies the next row, which must not count.
      for (int i = 0; i < N; i++)
        for (int x = inside; x < width; x++) block.rows[i * block.row_pitch + x] = 0.0f;
      for (int i = 0; i < N; i++)
        for (int tile = 0; tile < block.tiles_x; tile += VL) {
          Float d[N], t[N];
          load_columns<M, VL>(block.rows + i * block.row_pitch + M * tile, d);
          Winograd<M>::input(d, t);
          KERF_UNROLL for (int j = 0; j < N; j++) store<VL>(target + (i * N + j) * block.input_point + tile, t[j]);
        }
    }
  }
}

// --- products: M[outputs][tiles] with tiles in lanes, M[tiles][outputs] with output channels in lanes ----------------

// G output channels x P vectors of tiles.
template <int VL, int G, int P>
static void multiply_tiles(const WinogradBlock &block, const float *__restrict u, const float *__restrict v,
                           float *__restrict m, int channels) {
  typedef typename Vec<VL>::Float Float;
  Float sum[G][P] = {};
  for (int left = channels; left > 0; left -= block.group_channels, v += block.group) {
    const float *__restrict x = v;
    const float *const end = u + (left < block.group_channels ? left : block.group_channels) * WINOGRAD_BLOCK;
    for (; u != end; u += WINOGRAD_BLOCK, x += block.pitch) {
      Float values[P];
      KERF_UNROLL for (int p = 0; p < P; p++) values[p] = load<VL>(x + p * VL);
      KERF_UNROLL for (int g = 0; g < G; g++) {
        const Float w = splat<VL>(u[g]);
        KERF_UNROLL for (int p = 0; p < P; p++) sum[g][p] += values[p] * w;
      }
    }
  }
  KERF_UNROLL for (int g = 0; g < G; g++)
    KERF_UNROLL for (int p = 0; p < P; p++) store<VL>(m + g * block.pitch + p * VL, sum[g][p]);
}

// R vectors of output channels x T tiles.
template <int VL, int R, int T>
static void multiply_outputs(const WinogradBlock &block, const float *__restrict u, const float *__restrict v,
                             float *__restrict m, int channels) {
  typedef typename Vec<VL>::Float Float;
  const int64_t next_block = (int64_t)block.points * channels * WINOGRAD_BLOCK;
  Float sum[R][T] = {};
  for (int left = channels; left > 0; left -= block.group_channels, v += block.group) {
    const float *__restrict x = v;
    const float *const end = u + (left < block.group_channels ? left : block.group_channels) * WINOGRAD_BLOCK;
    for (; u != end; u += WINOGRAD_BLOCK, x += block.pitch) {
      Float w[R];
      KERF_UNROLL for (int r = 0; r < R; r++)
        w[r] = load<VL>(u + r * VL / WINOGRAD_BLOCK * next_block + r * VL % WINOGRAD_BLOCK);
      KERF_UNROLL for (int t = 0; t < T; t++) {
        const Float value = splat<VL>(x[t]);
        KERF_UNROLL for (int r = 0; r < R; r++) sum[r][t] += w[r] * value;
      }
    }
  }
  KERF_UNROLL for (int t = 0; t < T; t++)
    KERF_UNROLL for (int r = 0; r < R; r++) store<VL>(m + (t * R + r) * VL, sum[r][t]);
}

typedef void (*WinogradProduct)(const WinogradBlock &, const float *, const float *, float *, int);

// The products of 1..MAX vectors of tiles, or of tiles, by index.
template <int VL, int OUTPUTS, int MAX, bool OUTPUTS_IN_LANES> struct Products {
  WinogradProduct by_count[MAX + 1];
  template <int COUNT> constexpr void fill() {
    if constexpr (OUTPUTS_IN_LANES) by_count[COUNT] = multiply_outputs<VL, OUTPUTS / VL, COUNT>;
    else by_count[COUNT] = multiply_tiles<VL, OUTPUTS, COUNT>;
    if constexpr (COUNT > 1) fill<COUNT - 1>();
  }
  constexpr Products() : by_count{} { fill<MAX>(); }
};

template <int OUTPUTS, int MAX, bool OUTPUTS_IN_LANES>
constexpr Products<KERF_MAX_VECTOR_LENGTH, OUTPUTS, MAX, OUTPUTS_IN_LANES> PRODUCTS{};

struct ProductSet {
  const WinogradProduct *by_count;
  int most;  // 0: there are none
};

// What leaves registers for one operand beside the sums.
static ProductSet find_products(int outputs, bool outputs_in_lanes) {
  const int VL = KERF_MAX_VECTOR_LENGTH;
#if KERF_NUM_REGISTERS == 32
  if (!outputs_in_lanes && outputs == 8) return {PRODUCTS<8, 3, false>.by_count, 3};
  if (!outputs_in_lanes && outputs == 16) return {PRODUCTS<16, 1, false>.by_count, 1};
  if (outputs_in_lanes && VL == 4 && outputs == 16) return {PRODUCTS<16, 6, true>.by_count, 6};
  if constexpr (VL == 16) {
    if (outputs_in_lanes && outputs == 16) return {PRODUCTS<16, 14, true>.by_count, 14};
    if (outputs_in_lanes && outputs == 32) return {PRODUCTS<32, 14, true>.by_count, 14};
    if (outputs_in_lanes && outputs == 64) return {PRODUCTS<64, 6, true>.by_count, 6};
  }
#else
  if (!outputs_in_lanes && outputs == 4) return {PRODUCTS<4, 3, false>.by_count, 3};
  if (!outputs_in_lanes && outputs == 8) return {PRODUCTS<8, 1, false>.by_count, 1};
  if (outputs_in_lanes && VL == 8 && outputs == 16) return {PRODUCTS<16, 6, true>.by_count, 6};
  if (outputs_in_lanes && VL == 4 && outputs == 16) return {PRODUCTS<16, 2, true>.by_count, 2};
#endif
  return {0, 0};
}

static int32_t max_winograd_tiles(int32_t outputs, int32_t outputs_in_lanes) {
  return find_products(outputs, outputs_in_lanes).most;
}

// All points of the output channels of one pass, from `first` on.
static void multiply(const KerfStep &step, const WinogradBlock &block, const ProductSet &products, int first) {
  const int VL = KERF_MAX_VECTOR_LENGTH;
  const bool outputs_in_lanes = step.winograd_outputs_in_lanes;
  const int num_tiles = block.num_rows * block.tiles_x;
  // Tiles, or vectors of them, in nearly equal pieces.
  const int count = outputs_in_lanes ? num_tiles : (num_tiles + VL - 1) / VL;
  const int most = step.winograd_tiles;
  const int pieces = (count + most - 1) / most, base = count / pieces, wider = count % pieces;
  const int rest = step.outputs - first < block.outputs ? step.outputs - first : block.outputs;
  const int64_t point_weights = (int64_t)step.channels * WINOGRAD_BLOCK;
  const float *weights = step.weights + first / WINOGRAD_BLOCK * block.points * point_weights;
  for (int point = 0; point < block.points; point++) {
    const float *u = weights + point * point_weights;
    const float *v = block.input + point * block.input_point;
    float *m = block.product + point * block.product_point;
    int done = 0;
    for (int piece = 0; piece < pieces; piece++) {
      const int width = base + (piece < wider);
      const WinogradProduct product = products.by_count[width];
      if (outputs_in_lanes) {
        product(block, u, v + done, m + (int64_t)done * block.outputs, step.channels);
      } else {
        for (int output = 0; output < rest; output += step.winograd_outputs)
          product(block, u + output, v + done * VL, m + output * block.pitch + done * VL, step.channels);
      }
      done += width;
    }
  }
}

// --- outputs ------------------------------------------------------------------------------------------------------

// The first `count` lanes of `values`, from some column of an output row on: factor, bias, residual and bounds.
template <int VL>
KERF_INLINE void finish(const KerfStep &step, typename Vec<VL>::Float values, typename Vec<VL>::Float factors, float bias,
                        const float *second, float *output, int count) {
  typedef typename Vec<VL>::Float Float;
  const Float start = second ? load<VL>(second) + bias : splat<VL>(bias);
  values = clamp<VL>(values * factors + start, splat<VL>(step.lower), splat<VL>(step.upper));
  if (count >= VL) store<VL>(output, values);
  else store_first<VL>(output, values, count);
}

// The factors of output row i, for elements whose first column is a multiple of M.
template <int M, int VL> KERF_INLINE typename Vec<VL>::Float output_factors(int i) {
  float factors[VL];
  for (int x = 0; x < VL; x++) factors[x] = Winograd<M>::factor(i) * Winograd<M>::factor(x % M);
  return load<VL>(factors);
}

// Tiles in lanes.
template <int M, int VL>
static void transform_tiles(const KerfStep &step, const WinogradBlock &block, int first, int num_outputs) {
  enum { N = M + 2 };
  typedef typename Vec<VL>::Float Float;
  Float factors[M];
  for (int i = 0; i < M; i++) factors[i] = output_factors<M, VL>(i);
  for (int output = 0; output < num_outputs; output++) {
    const int channel = first + output;
    const float bias = step.bias[channel];
    const float *product = block.product + (int64_t)output * block.pitch;
    for (int tile_y = 0; tile_y < block.num_rows; tile_y++, product += block.tiles_x) {
      const int y = (block.first_row + tile_y) * M;
      for (int tile = 0; tile < block.tiles_x; tile += VL) {
        Float rows[M][N];
        KERF_UNROLL for (int j = 0; j < N; j++) {
          Float m[N], column[M];
          KERF_UNROLL for (int i = 0; i < N; i++) m[i] = load<VL>(product + (i * N + j) * block.product_point + tile);
          Winograd<M>::output(m, column);
          KERF_UNROLL for (int i = 0; i < M; i++) rows[i][j] = column[i];
        }
        KERF_UNROLL for (int i = 0; i < M; i++) {
          if (y + i >= step.output_h) break;
          Float columns[M], values[M];
          Winograd<M>::output(rows[i], columns);
          interleave<M, VL>(columns, values);
          float *target = step.output + channel * step.output_plane + (int64_t)(y + i) * step.output_row;
          const float *second = step.second ? step.second + channel * step.second_plane + (int64_t)(y + i) * step.output_row : 0;
          KERF_UNROLL for (int p = 0; p < M; p++) {
            const int x = M * tile + p * VL;
            if (x < step.output_w)
              finish<VL>(step, values[p], factors[i], bias, second ? second + x : 0, target + x, step.output_w - x);
          }
        }
      }
    }
  }
}

// Output channels in lanes. Four columns at a time, which is one tile or two, go through a small buffer to be transposed.
template <int M> static void transform_outputs(const KerfStep &step, const WinogradBlock &block, int first, int num_outputs) {
  enum { VL = KERF_MAX_VECTOR_LENGTH, N = M + 2, TILES = 4 / M };
  typedef typename Vec<VL>::Float Float;
  typedef Vec<4>::Float Quad;
  Quad factors[M];
  for (int i = 0; i < M; i++) factors[i] = output_factors<M, 4>(i);
  float buffer[M][4][VL];
  for (int tile_y = 0; tile_y < block.num_rows; tile_y++) {
    const int y = (block.first_row + tile_y) * M;
    const int height = step.output_h - y < M ? step.output_h - y : M;
    for (int tile_x = 0; tile_x < block.tiles_x; tile_x += TILES) {
      const int x = M * tile_x, width = step.output_w - x;
      for (int lane = 0; lane < num_outputs; lane += VL) {
        KERF_UNROLL for (int tile = 0; tile < TILES; tile++) {
          if (tile_x + tile >= block.tiles_x) break;
          const float *product =
              block.product + (int64_t)(tile_y * block.tiles_x + tile_x + tile) * block.outputs + lane;
          Float rows[M][N];
          KERF_UNROLL for (int j = 0; j < N; j++) {
            Float m[N], column[M];
            KERF_UNROLL for (int i = 0; i < N; i++) m[i] = load<VL>(product + (i * N + j) * block.product_point);
            Winograd<M>::output(m, column);
            KERF_UNROLL for (int i = 0; i < M; i++) rows[i][j] = column[i];
          }
          KERF_UNROLL for (int i = 0; i < M; i++) {
            Float columns[M];
            Winograd<M>::output(rows[i], columns);
            KERF_UNROLL for (int j = 0; j < M; j++) store<VL>(buffer[i][tile * M + j], columns[j]);
          }
        }
        const int count = num_outputs - lane < VL ? num_outputs - lane : (int)VL;
        for (int quad = 0; quad < count; quad += 4) {
          const int channel = first + lane + quad;
          for (int i = 0; i < height; i++) {
            Quad columns[4], values[4];
            KERF_UNROLL for (int x = 0; x < 4; x++) columns[x] = load<4>(buffer[i][x] + quad);
            interleave<4, 4>(columns, values);
            const int64_t row = (int64_t)(y + i) * step.output_row + x;
            KERF_UNROLL for (int k = 0; k < 4; k++) {
              if (quad + k >= count) break;
              const float *second = step.second ? step.second + (channel + k) * step.second_plane + row : 0;
              finish<4>(step, values[k], factors[i], step.bias[channel + k], second,
                        step.output + (channel + k) * step.output_plane + row, width);
            }
          }
        }
      }
    }
  }
}

template <int M> static void transform_input_of(const KerfStep &step, const WinogradBlock &block) {
  const int longest = longest_vector(block.tiles_x);
#if KERF_MAX_VECTOR_LENGTH >= 16
  if (longest == 16) return transform_input<M, 16>(step, block);
#endif
#if KERF_MAX_VECTOR_LENGTH >= 8
  if (longest >= 8) return transform_input<M, 8>(step, block);
#endif
  transform_input<M, 4>(step, block);
}

template <int M>
static void transform_output(const KerfStep &step, const WinogradBlock &block, int first, int num_outputs) {
  if (step.winograd_outputs_in_lanes) return transform_outputs<M>(step, block, first, num_outputs);
  const int longest = longest_vector(block.tiles_x);
#if KERF_MAX_VECTOR_LENGTH >= 16
  if (longest == 16) return transform_tiles<M, 16>(step, block, first, num_outputs);
#endif
#if KERF_MAX_VECTOR_LENGTH >= 8
  if (longest >= 8) return transform_tiles<M, 8>(step, block, first, num_outputs);
#endif
  transform_tiles<M, 4>(step, block, first, num_outputs);
}

template <int M>
static void winograd_of(const KerfStep &step, WinogradBlock &block, const ProductSet &products, int part, int parts) {
  const int tile_rows = (step.output_h + M - 1) / M;
  const int passes = (step.outputs + block.outputs - 1) / block.outputs;
  Share rows = {0, tile_rows}, channels = {0, passes};
  // Weights that one block of tiles reads once are better divided than read by every part.
  const bool by_rows = tile_rows >= parts * step.winograd_rows || passes < parts;
  if (by_rows) rows = share_of(tile_rows, part, parts);
  else channels = share_of(passes, part, parts);
  if (rows.first == rows.last || channels.first == channels.last) return;
  const int num_blocks = (rows.last - rows.first + step.winograd_rows - 1) / step.winograd_rows;
  clear_floats(block.zeros, block.row_pitch);
  for (int i = 0; i < num_blocks; i++) {
    const Share share = share_of(rows.last - rows.first, i, num_blocks);
    block.first_row = rows.first + share.first;
    block.num_rows = share.last - share.first;
    transform_input_of<M>(step, block);
    for (int pass = channels.first; pass < channels.last; pass++) {
      const int first = pass * block.outputs;
      const int rest = step.outputs - first;
      multiply(step, block, products, first);
      transform_output<M>(step, block, first, rest < block.outputs ? rest : block.outputs);
    }
  }
}

static bool winograd(const KerfStep &step, int part, int parts) {
  const ProductSet products = find_products(step.winograd_outputs, step.winograd_outputs_in_lanes);
  if (step.winograd_tiles < 1 || step.winograd_tiles > products.most || step.winograd_rows < 1) return false;
  if (!has_winograd_scratch(step)) return false;
  WinogradBlock block(step);
  if (parts > step.winograd_parts) parts = step.winograd_parts;
  if (part >= parts) return true;
  block.place(step.scratch + (int64_t)part * step.scratch_size);
  if (step.winograd_size == 2) winograd_of<2>(step, block, products, part, parts);
  else winograd_of<4>(step, block, products, part, parts);
  return true;
}

}  // namespace

#endif
