// All kernels, compiled once per instruction set. build.py defines KERF_BACKEND (its name) and its register count.
#ifndef KERF_BACKEND
#error "define KERF_BACKEND as the backend's name, and KERF_NUM_REGISTERS and KERF_MAX_VECTOR_LENGTH"
#endif

#include "activation.h"
#include "conv.h"
#include "depthwise.h"
#include "elementwise.h"
#include "kerf_native.h"
#include "matvec.h"
#include "pool.h"
#include "split.h"
#include "winograd.h"

namespace {

// Share `part` of `parts` of a step. False where this backend cannot run it.
static bool run_step(const KerfStep &step, int part, int parts) {
  switch (step.kind) {
    case KERF_CONV: return conv(step, part, parts);
    case KERF_SPLIT: split(step, part, parts); return true;
    case KERF_ELEMENTWISE: elementwise(step, part, parts); return true;
    case KERF_MAX_POOL: pool<Maximum>(step, part, parts); return true;
    case KERF_AVG_POOL: pool<Sum>(step, part, parts); return true;
    case KERF_GLOBAL_AVG_POOL: global_avg_pool(step, part, parts); return true;
    case KERF_DENSE_MATVEC: dense_matvec(step, part, parts); return true;
    case KERF_SPARSE_MATVEC: return sparse_matvec(step, part, parts);
    case KERF_ZERO: zero(step, part, parts); return true;
    case KERF_DEPTHWISE: return depthwise(step, part, parts);
    case KERF_WINOGRAD: return winograd(step, part, parts);
    case KERF_MULTIPLY: multiply(step, part, parts); return true;
    case KERF_SIGMOID: activate<Sigmoid>(step, part, parts); return true;
    case KERF_SILU: activate<Silu>(step, part, parts); return true;
    case KERF_HARDSIGMOID: activate<HardSigmoid>(step, part, parts); return true;
    case KERF_HARDSWISH: activate<HardSwish>(step, part, parts); return true;
    default: return false;
  }
}

static int32_t run_step_entry(const KerfStep *step, int32_t part, int32_t parts) {
  return run_step(*step, part, parts);
}

#if defined(__x86_64__) && defined(__AVX512F__)
const int32_t ISA = KERF_ISA_AVX512;
#elif defined(__x86_64__) && defined(__AVX2__)
const int32_t ISA = KERF_ISA_AVX2;
#else
const int32_t ISA = KERF_ISA_BASELINE;
#endif

// Not on 32-bit ARM, whose vector unit flushes denormals.
#if defined(__FMA__) || defined(__aarch64__)
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
extern "C" const KerfBackend KERF_JOIN(kerf_backend_, KERF_BACKEND) = {KERF_TEXT(KERF_BACKEND), HAS_FMA, ISA,
                                                                      max_vectors, max_winograd_tiles, run_step_entry};
