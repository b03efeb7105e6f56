// The inner loops of the sparse convolution: a register tile of G output channels x P vectors of VL positions.
//
// An entry is an offset into the input (input channel, kernel position and padding folded in) and G weights. Each output
// is one chain of fused multiply-adds in entry order, started from bias plus residual. So the tile's shape changes the
// speed and never the bits of the result.
#ifndef KERF_TILE_H
#define KERF_TILE_H

#include "kerf_native.h"

#define KERF_INLINE static inline __attribute__((always_inline))
#define KERF_UNROLL _Pragma("GCC unroll 32")

// Internal linkage throughout: the linker must not merge code that was compiled for different instruction sets.
namespace {

template <int VL> struct Vec {
  typedef float Float __attribute__((vector_size(VL * 4)));
  typedef float FloatUnaligned __attribute__((vector_size(VL * 4), aligned(4), may_alias));
  typedef uint32_t Bits __attribute__((vector_size(VL * 4)));
  typedef uint32_t BitsUnaligned __attribute__((vector_size(VL * 4), aligned(4), may_alias));
};

template <int VL> KERF_INLINE typename Vec<VL>::Float load(const float *p) {
  return *(const typename Vec<VL>::FloatUnaligned *)p;
}

template <int VL> KERF_INLINE void store(float *p, typename Vec<VL>::Float v) {
  *(typename Vec<VL>::FloatUnaligned *)p = v;
}

template <int VL> KERF_INLINE typename Vec<VL>::Float splat(float value) {
  return value - (typename Vec<VL>::Float){};
}

// A NaN passes through, as it fails both comparisons.
template <int VL>
KERF_INLINE typename Vec<VL>::Float clamp(typename Vec<VL>::Float v, typename Vec<VL>::Float lower,
                                            typename Vec<VL>::Float upper) {
  v = lower > v ? lower : v;
  return upper < v ? upper : v;
}

// Masked by AND, not by multiplication: padding stays zero even where the value beside it is infinite.
template <int VL> KERF_INLINE typename Vec<VL>::Float keep(typename Vec<VL>::Float v, const uint32_t *mask) {
  typedef typename Vec<VL>::Bits Bits;
  const Bits m = *(const typename Vec<VL>::BitsUnaligned *)mask;
  return (typename Vec<VL>::Float)((Bits)v & m);
}

// Row groups [first, last) of `step` at P vectors of flattened positions from `position` on.
template <int VL, int G, int P> static void conv_tile(const KerfStep &step, int position, int first, int last) {
  typedef typename Vec<VL>::Float Float;
  const float *__restrict input = step.input + position;
  const uint32_t *__restrict mask = step.mask + position;
  const int32_t *__restrict starts = step.group_starts;
  const Float lower = splat<VL>(step.lower), upper = splat<VL>(step.upper);
  for (int group = first; group < last; group++) {
    const int channel = step.group_channels[group];
    const float *bias = step.bias + channel;
    Float sum[G][P];
    if (step.second) {
      const float *second = step.second + channel * step.second_plane + position;
      KERF_UNROLL for (int g = 0; g < G; g++)
        KERF_UNROLL for (int p = 0; p < P; p++) sum[g][p] = load<VL>(second + g * step.second_plane + p * VL) + bias[g];
    } else {
      KERF_UNROLL for (int g = 0; g < G; g++) {
        const Float start = splat<VL>(bias[g]);
        KERF_UNROLL for (int p = 0; p < P; p++) sum[g][p] = start;
      }
    }
    const int32_t *__restrict offset = step.offsets + starts[group];
    const int32_t *const end = step.offsets + starts[group + 1];
    const float *__restrict weight = step.weights + (int64_t)starts[group] * G;
    for (; offset != end; offset++, weight += G) {
      const float *x = input + *offset;
      Float values[P];
      KERF_UNROLL for (int p = 0; p < P; p++) values[p] = load<VL>(x + p * VL);
      KERF_UNROLL for (int g = 0; g < G; g++) {
        const Float w = splat<VL>(weight[g]);
        KERF_UNROLL for (int p = 0; p < P; p++) sum[g][p] += values[p] * w;
      }
    }
    float *output = step.output + channel * step.output_plane + position;
    KERF_UNROLL for (int p = 0; p < P; p++)
      KERF_UNROLL for (int g = 0; g < G; g++)
        store<VL>(output + g * step.output_plane + p * VL, keep<VL>(clamp<VL>(sum[g][p], lower, upper), mask + p * VL));
  }
}

typedef void (*ConvTile)(const KerfStep &, int, int, int);

// The tiles of P = 1..MAX vectors, by index P.
template <int VL, int G, int MAX> struct Tiles {
  ConvTile by_vectors[MAX + 1];
  template <int P> constexpr void fill() {
    by_vectors[P] = conv_tile<VL, G, P>;
    if constexpr (P > 1) fill<P - 1>();
  }
  constexpr Tiles() : by_vectors{} { fill<MAX>(); }
};

}  // namespace

#endif
