// Fully connected layers: one position, so vectors run over the outputs.
#ifndef KERF_MATVEC_H
#define KERF_MATVEC_H

#include "kerf_native.h"
#include "vec.h"

namespace {

// Four chains of multiply-adds per output, input i in chain i % 4: one chain would wait for the latency of each.
enum { NUM_CHAINS = 4 };

static void finish_outputs(const KerfStep &step, int channel, int count, const float *sums) {
  for (int i = 0; i < count; i++) {
    float value = sums[i] + step.bias[channel + i];
    if (step.second) value += step.second[channel + i];
    step.output[channel + i] = clamp_one(value, step.lower, step.upper);
  }
}

// Outputs [first, first + VL * PIECES) of a block of 16, whose weights begin at `weights`.
template <int VL, int PIECES>
KERF_INLINE void dense_outputs(const KerfStep &step, const float *weights, int first, float *total) {
  typename Vec<VL>::Float sum[NUM_CHAINS][PIECES] = {};
  weights += first;
  int i = 0;
  for (; i + NUM_CHAINS <= step.channels; i += NUM_CHAINS, weights += 16 * NUM_CHAINS)
    KERF_UNROLL for (int k = 0; k < NUM_CHAINS; k++)
      KERF_UNROLL for (int p = 0; p < PIECES; p++) sum[k][p] += load<VL>(weights + 16 * k + p * VL) * step.input[i + k];
  for (int k = 0; i < step.channels; i++, k++, weights += 16)
    KERF_UNROLL for (int p = 0; p < PIECES; p++) sum[k][p] += load<VL>(weights + p * VL) * step.input[i];
  KERF_UNROLL for (int p = 0; p < PIECES; p++)
    store<VL>(total + first + p * VL, (sum[0][p] + sum[1][p]) + (sum[2][p] + sum[3][p]));
}

static void dense_matvec(const KerfStep &step, int part, int parts) {
  // Vectors as long as the registers: GCC splits longer ones badly. Two of them hide the latency with their chains.
  constexpr int VL = KERF_MAX_VECTOR_LENGTH, PIECES = VL == 16 ? 1 : 2;
  const Share share = share_of((step.outputs + 15) / 16, part, parts);
  for (int block = share.first; block < share.last; block++) {
    const float *weights = step.weights + (int64_t)block * 16 * step.channels;
    float total[16];
    for (int first = 0; first < 16; first += VL * PIECES) dense_outputs<VL, PIECES>(step, weights, first, total);
    const int rest = step.outputs - 16 * block;
    finish_outputs(step, 16 * block, rest < 16 ? rest : 16, total);
  }
}

// G weights that meet the same input. One weight is a plain number: there are no vectors of one.
template <int G> struct Weights {
  typedef typename Vec<G>::Float Type;
  KERF_INLINE Type read(const float *p) { return load<G>(p); }
  KERF_INLINE void write(float *p, Type v) { store<G>(p, v); }
  KERF_INLINE Type add(Type sum, Type weights, float x) { return sum + weights * x; }
};
template <> struct Weights<1> {
  typedef float Type;
  KERF_INLINE float read(const float *p) { return *p; }
  KERF_INLINE void write(float *p, float v) { *p = v; }
  KERF_INLINE float add(float sum, float weight, float x) { return multiply_add(weight, x, sum); }
};

template <int G> static void sparse_matvec_of(const KerfStep &step, Share share) {
  typedef Weights<G> W;
  const float *__restrict input = step.input;
  for (int group = share.first; group < share.last; group++) {
    typename W::Type sum[NUM_CHAINS] = {};
    const int end = step.group_starts[group + 1];
    int entry = step.group_starts[group];
    const float *__restrict weights = step.weights + (int64_t)entry * G;
    for (; entry + NUM_CHAINS <= end; entry += NUM_CHAINS, weights += G * NUM_CHAINS)
      KERF_UNROLL for (int k = 0; k < NUM_CHAINS; k++)
        sum[k] = W::add(sum[k], W::read(weights + k * G), input[step.offsets[entry + k]]);
    for (int k = 0; entry < end; entry++, k++, weights += G)
      sum[k] = W::add(sum[k], W::read(weights), input[step.offsets[entry]]);
    float total[G];
    W::write(total, (sum[0] + sum[1]) + (sum[2] + sum[3]));
    finish_outputs(step, step.group_channels[group], G, total);
  }
}

static bool sparse_matvec(const KerfStep &step, int part, int parts) {
  const Share share = share_of(step.num_groups, part, parts);
  switch (step.group_size) {
    case 1: sparse_matvec_of<1>(step, share); return true;
    case 2: sparse_matvec_of<2>(step, share); return true;
    case 4: sparse_matvec_of<4>(step, share); return true;
    default: return false;
  }
}

}  // namespace

#endif
