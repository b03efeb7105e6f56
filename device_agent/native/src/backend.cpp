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

// Every second element of `source`, from its first and from its second one.
static void split_row_by_two(const float *__restrict source, int width, float *__restrict even, float *__restrict odd) {
  const int num_even = (width + 1) / 2, num_odd = width / 2;
  int x = 0;
  for (; x + 8 <= num_odd; x += 8) {
    const Vec<8>::Float a = load<8>(source + 2 * x), b = load<8>(source + 2 * x + 8);
    if (even) store<8>(even + x, KERF_SHUFFLE(a, b, 0, 2, 4, 6, 8, 10, 12, 14));
    if (odd) store<8>(odd + x, KERF_SHUFFLE(a, b, 1, 3, 5, 7, 9, 11, 13, 15));
  }
  if (even)
    for (int i = x; i < num_even; i++) even[i] = source[2 * i];
  if (odd) {
    for (int i = x; i < num_odd; i++) odd[i] = source[2 * i + 1];
    if (num_odd < num_even) odd[num_odd] = 0.0f;
  }
}

// Phase (y, x) of a tensor holds its elements (s * i + y, s * j + x). All phases have the extent of phase (0, 0);
// what they lack is filled with zeros.
static void split(const KerfStep &step) {
  const int s = step.stride;
  const size_t row_bytes = (size_t)step.output_w * sizeof(float);
  for (int c = 0; c < step.channels; c++) {
    const float *in = step.input + c * step.input_plane;
    float *out = step.output + (int64_t)c * step.num_phases * step.output_plane;
    if (s == 1) {
      for (int y = 0; y < step.output_h; y++)
        memcpy(out + (int64_t)y * step.output_row, in + (int64_t)y * step.input_row, row_bytes);
      continue;
    }
    for (int phase_y = 0; phase_y < s; phase_y++) {
      const int32_t *phases = step.phases + phase_y * s;
      bool is_wanted = false;
      for (int phase_x = 0; phase_x < s; phase_x++) is_wanted |= phases[phase_x] >= 0;
      if (!is_wanted) continue;
      for (int y = 0; y < step.output_h; y++) {
        const int input_y = y * s + phase_y;
        const float *source = in + (int64_t)input_y * step.input_row;
        float *const target = out + (int64_t)y * step.output_row;
        if (input_y < step.input_h && s == 2) {
          split_row_by_two(source, step.input_w, phases[0] < 0 ? 0 : target + phases[0] * step.output_plane,
                           phases[1] < 0 ? 0 : target + phases[1] * step.output_plane);
          continue;
        }
        for (int phase_x = 0; phase_x < s; phase_x++) {
          if (phases[phase_x] < 0) continue;
          float *row = target + phases[phase_x] * step.output_plane;
          int count = 0;
          if (input_y < step.input_h && phase_x < step.input_w) count = (step.input_w - phase_x + s - 1) / s;
          for (int x = 0; x < count; x++) row[x] = source[x * s + phase_x];
          for (int x = count; x < step.output_w; x++) row[x] = 0.0f;
        }
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

// First over the rows of the window into `scratch`, then over its columns; the margins of `scratch` hold `neutral`.
template <class Combine> static void pool(const KerfStep &step, float neutral, float scale) {
  float *row = step.scratch + step.padding;
  for (int x = 0; x < step.padding; x++) step.scratch[x] = row[step.input_w + x] = neutral;
  for (int c = 0; c < step.channels; c++) {
    const float *in = step.input + c * step.input_plane;
    for (int y = 0; y < step.output_h; y++) {
      int first = y * step.stride - step.padding, last = first + step.kernel_h;
      first = first < 0 ? 0 : first;
      last = last > step.input_h ? step.input_h : last;
      memcpy(row, in + (int64_t)first * step.input_row, (size_t)step.input_w * sizeof(float));
      for (int input_y = first + 1; input_y < last; input_y++) {
        const float *source = in + (int64_t)input_y * step.input_row;
        for (int x = 0; x < step.input_w; x++) row[x] = Combine::apply(row[x], source[x]);
      }
      float *out = step.output + c * step.output_plane + (int64_t)y * step.output_row;
      for (int x = 0; x < step.output_w; x++) {
        const float *window = step.scratch + (int64_t)x * step.stride;
        float value = window[0];
        for (int k = 1; k < step.kernel_w; k++) value = Combine::apply(value, window[k]);
        out[x] = clamp_one(value * scale, step.lower, step.upper);
      }
    }
  }
}

template <int VL> KERF_INLINE float horizontal_sum(typename Vec<VL>::Float v) {
  float lanes[VL];
  store<VL>(lanes, v);
  for (int width = VL / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
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

template <int G> static void sparse_matvec(const KerfStep &step) {
  for (int group = 0; group < step.num_groups; group++) {
    float sum[NUM_CHAINS][G] = {};
    const int end = step.group_starts[group + 1];
    int entry = step.group_starts[group];
    const float *weights = step.weights + (int64_t)entry * G;
    for (; entry + NUM_CHAINS <= end; entry += NUM_CHAINS, weights += G * NUM_CHAINS)
      KERF_UNROLL for (int k = 0; k < NUM_CHAINS; k++) {
        const float x = step.input[step.offsets[entry + k]];
        KERF_UNROLL for (int g = 0; g < G; g++) sum[k][g] += weights[k * G + g] * x;
      }
    for (int k = 0; entry < end; entry++, k++, weights += G)
      for (int g = 0; g < G; g++) sum[k][g] += weights[g] * step.input[step.offsets[entry]];
    float total[G];
    for (int g = 0; g < G; g++) total[g] = (sum[0][g] + sum[1][g]) + (sum[2][g] + sum[3][g]);
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
