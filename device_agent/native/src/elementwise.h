// clamp(input + second), without a window.
#ifndef KERF_ELEMENTWISE_H
#define KERF_ELEMENTWISE_H

#include "kerf_native.h"
#include "vec.h"

namespace {

static void elementwise(const KerfStep &step, int part, int parts) {
  // Rows are vectors here: they run on from one row of the image to the next.
  const PlaneShare share = share_of_planes(step.channels, (step.positions + 15) / 16, part, parts);
  // As long as the registers: GCC splits longer vectors badly.
  constexpr int VL = KERF_MAX_VECTOR_LENGTH;
  const Vec<VL>::Float lower = splat<VL>(step.lower), upper = splat<VL>(step.upper);
  for (int c = share.channels.first; c < share.channels.last; c++) {
    const float *a = step.input + c * step.input_plane;
    const float *b = step.second ? step.second + c * step.second_plane : 0;
    float *out = step.output + c * step.output_plane;
    for (int q = 16 * share.rows.first; q < 16 * share.rows.last; q += VL) {
      Vec<VL>::Float v = load<VL>(a + q);
      if (b) v += load<VL>(b + q);
      store<VL>(out + q, keep<VL>(clamp<VL>(v, lower, upper), step.mask + q));
    }
  }
}

}  // namespace

#endif
