// Activations that are more than a clamp, and products, without a window.
#ifndef KERF_ACTIVATION_H
#define KERF_ACTIVATION_H

#include "kerf_native.h"
#include "vec.h"

namespace {

// Calls `map(channel, position, values)` for all vectors of this share of the input, and stores what it gives.
template <typename Map> static void map_positions(const KerfStep &step, int part, int parts, Map map) {
  // As long as the registers: GCC splits longer vectors badly.
  constexpr int VL = KERF_MAX_VECTOR_LENGTH;
  const PlaneShare share = share_of_planes(step.channels, (step.positions + 15) / 16, part, parts);
  for (int c = share.channels.first; c < share.channels.last; c++) {
    const float *in = step.input + c * step.input_plane;
    float *out = step.output + c * step.output_plane;
    for (int q = 16 * share.rows.first; q < 16 * share.rows.last; q += VL)
      store<VL>(out + q, keep<VL>(map(c, q, load<VL>(in + q)), step.mask + q));
  }
}

static void multiply(const KerfStep &step, int part, int parts) {
  constexpr int VL = KERF_MAX_VECTOR_LENGTH;
  typedef Vec<VL>::Float Float;
  const Float lower = splat<VL>(step.lower), upper = splat<VL>(step.upper);
  if (step.second_plane > 0)
    map_positions(step, part, parts, [&](int c, int q, Float v) {
      return clamp<VL>(v * load<VL>(step.second + c * step.second_plane + q), lower, upper);
    });
  else
    map_positions(step, part, parts, [&](int c, int, Float v) {
      return clamp<VL>(v * splat<VL>(step.second[c]), lower, upper);
    });
}

// exp(x) for x in [-87, 88], relative error below 2e-7: x = n ln 2 + r with |r| <= ln 2 / 2, and the Taylor series of
// exp(r) up to r^7, whose rest is below r^8 / 8! = 6e-9. ln 2 is split, so that n times its first part has no rounding
// (W. J. Cody and W. Waite: Software Manual for the Elementary Functions, 1980, chapter 6).
template <int VL> KERF_INLINE typename Vec<VL>::Float exponential(typename Vec<VL>::Float x) {
  typedef typename Vec<VL>::Float Float;
  typedef typename Vec<VL>::Int Int;
  // Adding 1.5 * 2^23 rounds to a whole number, which the last bits then hold. It is taken away from the bits, not from
  // the sum: compilers that may reorder sums would leave both out.
  const Float shift = splat<VL>(12582912.0f);
  const Float shifted = x * 1.44269504f + shift;
  const Int whole = (Int)shifted - (Int)shift;
  const Float n = __builtin_convertvector(whole, Float);
  const Float r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Float sum = splat<VL>(1.0f / 5040);
  sum = sum * r + 1.0f / 720;
  sum = sum * r + 1.0f / 120;
  sum = sum * r + 1.0f / 24;
  sum = sum * r + 1.0f / 6;
  sum = sum * r + 0.5f;
  sum = sum * r + 1.0f;
  sum = sum * r + 1.0f;
  const Int power = (whole + 127) << 23;
  return sum * (Float)power;
}

// A NaN passes through all of these.
struct Sigmoid {
  template <int VL> KERF_INLINE typename Vec<VL>::Float of(typename Vec<VL>::Float x) {
    // Beyond, the result is 0 or 1 up to rounding.
    const typename Vec<VL>::Float bounded = clamp<VL>(-x, splat<VL>(-87.0f), splat<VL>(87.0f));
    return 1.0f / (1.0f + exponential<VL>(bounded));
  }
};
struct Silu {
  template <int VL> KERF_INLINE typename Vec<VL>::Float of(typename Vec<VL>::Float x) { return x * Sigmoid::of<VL>(x); }
};
struct HardSigmoid {
  template <int VL> KERF_INLINE typename Vec<VL>::Float of(typename Vec<VL>::Float x) {
    return clamp<VL>(x + 3.0f, splat<VL>(0.0f), splat<VL>(6.0f)) * (1.0f / 6.0f);
  }
};
struct HardSwish {
  template <int VL> KERF_INLINE typename Vec<VL>::Float of(typename Vec<VL>::Float x) {
    return x * HardSigmoid::of<VL>(x);
  }
};

template <typename Function> static void activate(const KerfStep &step, int part, int parts) {
  constexpr int VL = KERF_MAX_VECTOR_LENGTH;
  map_positions(step, part, parts, [](int, int, Vec<VL>::Float v) { return Function::template of<VL>(v); });
}

}  // namespace

#endif
