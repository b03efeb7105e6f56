// All kernels, compiled once per instruction set. build.py defines KERF_BACKEND (its name) and its register count.
#include <string.h>

#include "kerf_native.h"
#include "tile.h"

#ifndef KERF_BACKEND
#error "define KERF_BACKEND as the backend's name, and KERF_NUM_REGISTERS and KERF_MAX_VECTOR_LENGTH"
#endif

namespace {

// --- convolution ----------------------------------------------------------------------------------------------------

// The most vectors that leave registers for G weights beside G * P sums. Wider tiles would spill.
constexpr int tile_limit(int group_size) {
  return group_size == 4 ? (KERF_NUM_REGISTERS == 32 ? 7 : 3)
         : group_size == 2 ? (KERF_NUM_REGISTERS == 32 ? 10 : 5)
                           : (KERF_NUM_REGISTERS == 32 ? 14 : 8);
}

template <int VL> struct TileSet {
  static constexpr Tiles<VL, 1, tile_limit(1)> one{};
  static constexpr Tiles<VL, 2, tile_limit(2)> two{};
  static constexpr Tiles<VL, 4, tile_limit(4)> four{};
};

template <int VL> static const ConvTile *tiles_of(int group_size) {
  switch (group_size) {
    case 1: return TileSet<VL>::one.by_vectors;
    case 2: return TileSet<VL>::two.by_vectors;
    case 4: return TileSet<VL>::four.by_vectors;
    default: return 0;
  }
}

static const ConvTile *find_tiles(int vector_length, int group_size) {
  switch (vector_length) {
    case 4: return tiles_of<4>(group_size);
#if KERF_MAX_VECTOR_LENGTH >= 8
    case 8: return tiles_of<8>(group_size);
#endif
#if KERF_MAX_VECTOR_LENGTH >= 16
    case 16: return tiles_of<16>(group_size);
#endif
    default: return 0;
  }
}

static int32_t max_vectors(int32_t vector_length, int32_t group_size) {
  return find_tiles(vector_length, group_size) ? tile_limit(group_size) : 0;
}

// Positions are cut into tiles of nearly equal width, so that no short rest is left over.
static bool conv(const KerfStep &step) {
  const ConvTile *tiles = find_tiles(step.vector_length, step.group_size);
  if (!tiles || step.max_vectors < 1 || step.max_vectors > tile_limit(step.group_size)) return false;
  const int num_vectors = (step.positions + step.vector_length - 1) / step.vector_length;
  const int num_tiles = (num_vectors + step.max_vectors - 1) / step.max_vectors;
  const int base = num_vectors / num_tiles, wider = num_vectors % num_tiles;
  if (step.groups_outer) {
    for (int group = 0; group < step.num_groups; group++) {
      int position = 0;
      for (int tile = 0; tile < num_tiles; tile++) {
        const int vectors = base + (tile < wider);
        tiles[vectors](step, position, group, group + 1);
        position += vectors * step.vector_length;
      }
    }
  } else {
    int position = 0;
    for (int tile = 0; tile < num_tiles; tile++) {
      const int vectors = base + (tile < wider);
      tiles[vectors](step, position, 0, step.num_groups);
      position += vectors * step.vector_length;
    }
  }
  return true;
}

// --- copies and phase split -----------------------------------------------------------------------------------------

#if defined(__clang__) || __GNUC__ >= 12
#define KERF_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
typedef int32_t Lanes8 __attribute__((vector_size(32)));
#define KERF_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Lanes8){__VA_ARGS__})
#endif

template <bool EVEN, bool ODD> KERF_INLINE void split_vector_by_two(const float *source, float *even, float *odd) {
  const Vec<8>::Float a = load<8>(source), b = load<8>(source + 8);
  if (EVEN) store<8>(even, KERF_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14));
  if (ODD) store<8>(odd, KERF_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15));
}

// Every second element of `source`, from its first (EVEN) and from its second one (ODD).
template <bool EVEN, bool ODD>
KERF_INLINE void split_row_by_two(const float *__restrict source, int width, float *__restrict even,
                                  float *__restrict odd) {
  const int num_even = (width + 1) / 2, num_odd = width / 2;
  if (num_odd >= 8) {
    int x = 0;
    for (; x + 8 <= num_odd; x += 8) split_vector_by_two<EVEN, ODD>(source + 2 * x, even + x, odd + x);
    if (x < num_odd) {
      // The rest in one vector that overlaps what is done already.
      x = num_odd - 8;
      split_vector_by_two<EVEN, ODD>(source + 2 * x, even + x, odd + x);
    }
  } else {
    for (int x = 0; x < num_odd; x++) {
      if (EVEN) even[x] = source[2 * x];
      if (ODD) odd[x] = source[2 * x + 1];
    }
  }
  if (num_odd < num_even) {
    if (EVEN) even[num_odd] = source[width - 1];
    if (ODD) odd[num_odd] = 0.0f;
  }
}

template <bool EVEN, bool ODD>
static void split_rows_by_two(const float *source, int64_t source_step, int num_rows, int width, float *even,
                              float *odd, int64_t target_row) {
  for (int y = 0; y < num_rows; y++, source += source_step, even += target_row, odd += target_row)
    split_row_by_two<EVEN, ODD>(source, width, even, odd);
}

static void copy_rows(const KerfStep &step, const float *in, float *out) {
  const size_t row_bytes = (size_t)step.output_w * sizeof(float);
  for (int y = 0; y < step.output_h; y++)
    memcpy(out + (int64_t)y * step.output_row, in + (int64_t)y * step.input_row, row_bytes);
}

// The phases of the rows stride * y + phase_y of one channel, where the stride is 2.
static void split_channel_by_two(const KerfStep &step, const float *in, float *out, int phase_y, int num_rows) {
  const int32_t *phases = step.phases + phase_y * 2;
  const float *source = in + (int64_t)phase_y * step.input_row;
  const int64_t source_step = 2 * (int64_t)step.input_row;
  float *const even = phases[0] < 0 ? 0 : out + phases[0] * step.output_plane;
  float *const odd = phases[1] < 0 ? 0 : out + phases[1] * step.output_plane;
  if (phases[0] >= 0 && phases[1] >= 0)
    split_rows_by_two<true, true>(source, source_step, num_rows, step.input_w, even, odd, step.output_row);
  else if (phases[0] >= 0)
    split_rows_by_two<true, false>(source, source_step, num_rows, step.input_w, even, even, step.output_row);
  else if (phases[1] >= 0)
    split_rows_by_two<false, true>(source, source_step, num_rows, step.input_w, odd, odd, step.output_row);
}

static void split_channel(const KerfStep &step, const float *in, float *out, int phase_y, int num_rows) {
  const int s = step.stride;
  for (int phase_x = 0; phase_x < s; phase_x++) {
    const int32_t phase = step.phases[phase_y * s + phase_x];
    if (phase < 0) continue;
    const int count = phase_x < step.input_w ? (step.input_w - phase_x + s - 1) / s : 0;
    for (int y = 0; y < num_rows; y++) {
      const float *source = in + (int64_t)(y * s + phase_y) * step.input_row + phase_x;
      float *row = out + phase * step.output_plane + (int64_t)y * step.output_row;
      for (int x = 0; x < count; x++) row[x] = source[x * s];
      for (int x = count; x < step.output_w; x++) row[x] = 0.0f;
    }
  }
}

// Phase (y, x) of a tensor holds its elements (s * i + y, s * j + x). All phases have the extent of phase (0, 0);
// what they lack is filled with zeros.
static void split(const KerfStep &step) {
  const int s = step.stride;
  for (int c = 0; c < step.channels; c++) {
    const float *in = step.input + c * step.input_plane;
    float *out = step.output + (int64_t)c * step.num_phases * step.output_plane;
    if (s == 1) {
      copy_rows(step, in, out);
      continue;
    }
    for (int phase_y = 0; phase_y < s; phase_y++) {
      const int num_rows = phase_y < step.input_h ? (step.input_h - phase_y + s - 1) / s : 0;
      if (s == 2) split_channel_by_two(step, in, out, phase_y, num_rows);
      else split_channel(step, in, out, phase_y, num_rows);
      for (int phase_x = 0; phase_x < s; phase_x++) {
        const int32_t phase = step.phases[phase_y * s + phase_x];
        for (int y = num_rows; phase >= 0 && y < step.output_h; y++)
          memset(out + phase * step.output_plane + (int64_t)y * step.output_row, 0,
                 (size_t)step.output_w * sizeof(float));
      }
    }
  }
}

static void zero(const KerfStep &step) {
  memset(step.output, 0, (size_t)(step.channels * step.output_plane) * sizeof(float));
}

// --- elementwise and pools ------------------------------------------------------------------------------------------

static void elementwise(const KerfStep &step) {
  const Vec<16>::Float lower = splat<16>(step.lower), upper = splat<16>(step.upper);
  for (int c = 0; c < step.channels; c++) {
    const float *a = step.input + c * step.input_plane;
    const float *b = step.second ? step.second + c * step.second_plane : 0;
    float *out = step.output + c * step.output_plane;
    for (int q = 0; q < step.positions; q += 16) {
      Vec<16>::Float v = load<16>(a + q);
      if (b) v += load<16>(b + q);
      store<16>(out + q, keep<16>(clamp<16>(v, lower, upper), step.mask + q));
    }
  }
}

struct Maximum {
  KERF_INLINE float apply(float a, float b) { return a > b ? a : b; }
};
struct Sum {
  KERF_INLINE float apply(float a, float b) { return a + b; }
};

KERF_INLINE float clamp_one(float v, float lower, float upper) {
  v = lower > v ? lower : v;
  return upper < v ? upper : v;
}

// Combines windows first over their rows, into a row with margins of `neutral`, then over their columns. The row is
// split into `stride` phases, so that column k of all windows is a run of consecutive elements.
template <class Combine> static void pool(const KerfStep &step, float neutral, float scale) {
  const int s = step.stride, padded_w = step.input_w + 2 * step.padding;
  const int phase_w = (padded_w + s - 1) / s;
  float *const row = step.scratch;
  float *const inner = row + step.padding;
  float *const phases = s == 1 ? row : row + padded_w;
  for (int x = 0; x < step.padding; x++) row[x] = inner[step.input_w + x] = neutral;
  for (int c = 0; c < step.channels; c++) {
    const float *in = step.input + c * step.input_plane;
    for (int y = 0; y < step.output_h; y++) {
      int first = y * s - step.padding, last = first + step.kernel_h;
      first = first < 0 ? 0 : first;
      last = last > step.input_h ? step.input_h : last;
      memcpy(inner, in + (int64_t)first * step.input_row, (size_t)step.input_w * sizeof(float));
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
      memcpy(out, phases, (size_t)step.output_w * sizeof(float));
      for (int k = 1; k < step.kernel_w; k++) {
        const float *__restrict column = phases + (k % s) * phase_w + k / s;
        for (int x = 0; x < step.output_w; x++) out[x] = Combine::apply(out[x], column[x]);
      }
      for (int x = 0; x < step.output_w; x++) out[x] = clamp_one(out[x] * scale, step.lower, step.upper);
    }
  }
}

template <int VL> KERF_INLINE float horizontal_sum(typename Vec<VL>::Float v) {
  float lanes[VL];
  store<VL>(lanes, v);
  KERF_UNROLL for (int width = VL / 2; width > 0; width /= 2)
    KERF_UNROLL for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}

// The padding between rows is zero, so whole planes are summed.
static void global_avg_pool(const KerfStep &step) {
  for (int c = 0; c < step.channels; c++) {
    const float *in = step.input + c * step.input_plane;
    Vec<16>::Float sum = {};
    for (int q = 0; q < step.positions; q += 16) sum += load<16>(in + q);
    step.output[c * step.output_plane] = clamp_one(horizontal_sum<16>(sum) * step.scale, step.lower, step.upper);
  }
}

// --- fully connected ------------------------------------------------------------------------------------------------

// Four chains of multiply-adds per output, input i in chain i % 4: one chain would wait for the latency of each.
enum { NUM_CHAINS = 4 };

static void finish_outputs(const KerfStep &step, int channel, int count, const float *sums) {
  for (int i = 0; i < count; i++) {
    float value = sums[i] + step.bias[channel + i];
    if (step.second) value += step.second[channel + i];
    step.output[channel + i] = clamp_one(value, step.lower, step.upper);
  }
}

static void dense_matvec(const KerfStep &step) {
  const float *weights = step.weights;
  for (int channel = 0; channel < step.outputs; channel += 16) {
    Vec<16>::Float sum[NUM_CHAINS] = {};
    int i = 0;
    for (; i + NUM_CHAINS <= step.channels; i += NUM_CHAINS, weights += 16 * NUM_CHAINS)
      KERF_UNROLL for (int k = 0; k < NUM_CHAINS; k++) sum[k] += load<16>(weights + 16 * k) * step.input[i + k];
    for (int k = 0; i < step.channels; i++, k++, weights += 16) sum[k] += load<16>(weights) * step.input[i];
    float total[16];
    store<16>(total, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    const int rest = step.outputs - channel;
    finish_outputs(step, channel, rest < 16 ? rest : 16, total);
  }
}

// G weights that meet the same input. One weight is a plain number: there are no vectors of one.
template <int G> struct Weights {
  typedef typename Vec<G>::Float Type;
  KERF_INLINE Type read(const float *p) { return load<G>(p); }
  KERF_INLINE void write(float *p, Type v) { store<G>(p, v); }
};
template <> struct Weights<1> {
  typedef float Type;
  KERF_INLINE float read(const float *p) { return *p; }
  KERF_INLINE void write(float *p, float v) { *p = v; }
};

template <int G> static void sparse_matvec(const KerfStep &step) {
  typedef Weights<G> W;
  const float *__restrict input = step.input;
  for (int group = 0; group < step.num_groups; group++) {
    typename W::Type sum[NUM_CHAINS] = {};
    const int end = step.group_starts[group + 1];
    int entry = step.group_starts[group];
    const float *__restrict weights = step.weights + (int64_t)entry * G;
    for (; entry + NUM_CHAINS <= end; entry += NUM_CHAINS, weights += G * NUM_CHAINS)
      KERF_UNROLL for (int k = 0; k < NUM_CHAINS; k++)
        sum[k] += W::read(weights + k * G) * input[step.offsets[entry + k]];
    for (int k = 0; entry < end; entry++, k++, weights += G) sum[k] += W::read(weights) * input[step.offsets[entry]];
    float total[G];
    W::write(total, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    finish_outputs(step, step.group_channels[group], G, total);
  }
}

// --- the interpreter ------------------------------------------------------------------------------------------------

static bool run_step(const KerfStep &step) {
  switch (step.kind) {
    case KERF_CONV: return conv(step);
    case KERF_SPLIT: split(step); return true;
    case KERF_ELEMENTWISE: elementwise(step); return true;
    case KERF_MAX_POOL: pool<Maximum>(step, -__builtin_inff(), 1.0f); return true;
    case KERF_AVG_POOL: pool<Sum>(step, 0.0f, step.scale); return true;
    case KERF_GLOBAL_AVG_POOL: global_avg_pool(step); return true;
    case KERF_DENSE_MATVEC: dense_matvec(step); return true;
    case KERF_SPARSE_MATVEC:
      if (step.group_size == 1) sparse_matvec<1>(step);
      else if (step.group_size == 2) sparse_matvec<2>(step);
      else if (step.group_size == 4) sparse_matvec<4>(step);
      else return false;
      return true;
    case KERF_ZERO: zero(step); return true;
    default: return false;
  }
}

static int32_t run(const KerfStep *steps, int32_t num_steps) {
  for (int32_t i = 0; i < num_steps; i++)
    if (!run_step(steps[i])) return i + 1;
  return 0;
}

static int is_supported() {
#if defined(__x86_64__) && defined(__AVX512F__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("fma");
#elif defined(__x86_64__) && defined(__AVX2__)
  __builtin_cpu_init();
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return 1;
#endif
}

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__aarch64__)
const int32_t HAS_FMA = 1;
#else
const int32_t HAS_FMA = 0;
#endif

}  // namespace

#define KERF_JOIN2(a, b) a##b
#define KERF_JOIN(a, b) KERF_JOIN2(a, b)
#define KERF_TEXT2(a) #a
#define KERF_TEXT(a) KERF_TEXT2(a)

extern "C" const KerfBackend KERF_JOIN(kerf_backend_, KERF_BACKEND);
extern "C" const KerfBackend KERF_JOIN(kerf_backend_, KERF_BACKEND) = {KERF_TEXT(KERF_BACKEND), HAS_FMA, is_supported,
                                                                      max_vectors, run};
