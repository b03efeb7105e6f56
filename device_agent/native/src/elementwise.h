// clamp(input + second), without a window.
#ifndef KERF_ELEMENTWISE_H
#define KERF_ELEMENTWISE_H

#include "kerf_native.h"
#include "vec.h"

namespace {

static void elementwise(const KerfStep &step, int part, int parts) {
  const Share share = share_of(step.channels, part, parts);
  const Vec<16>::Float lower = splat<16>(step.lower), upper = splat<16>(step.upper);
  for (int c = share.first; c < share.last; c++) {
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

}  // namespace

#endif
