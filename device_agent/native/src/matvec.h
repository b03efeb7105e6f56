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

static void dense_matvec(const KerfStep &step, int part, int parts) {
  const Share share = share_of((step.outputs + 15) / 16, part, parts);
  const float *weights = step.weights + (int64_t)share.first * 16 * step.channels;
  for (int channel = 16 * share.first; channel < step.outputs && channel < 16 * share.last; channel += 16) {
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
