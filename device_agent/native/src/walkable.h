// Which windows the kernels of window.h walk. Apart from them, because the check of steps asks too.
#ifndef KERF_WALKABLE_H
#define KERF_WALKABLE_H

#include "kerf_native.h"

namespace {

// Less than half of a square window may lie outside the image.
static inline bool is_walkable(const KerfStep &step) {
  return step.kernel_h == step.kernel_w && 2 * step.padding < step.kernel_h;
}

// Other pools go row by row, and need `scratch`.
static inline bool is_walked_pool(const KerfStep &step) {
  return is_walkable(step) && (step.kernel_h == 2 || step.kernel_h == 3) && (step.stride == 1 || step.stride == 2);
}

}  // namespace

#endif
