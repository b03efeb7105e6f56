// Whether a step stays inside of the memory that it is given: see check.cpp.
#ifndef KERF_CHECK_H
#define KERF_CHECK_H

#include "kerf_native.h"

// The memory around a pointer: how many bytes of its region lie before it and from it on.
struct KerfSpan {
  uint64_t before, after;
  bool is_writable;
};

// Fills in `span`. False where `pointer` is in no region and not at the end of one.
typedef bool (*KerfFindSpan)(const void *context, const void *pointer, KerfSpan *span);

// KERF_OK, or the error code of the first thing that is wrong with `step`. Reads nothing but the index lists of the step,
// these only after it is known that they are in memory. A tile that is not chosen yet (vector_length 0) is fine.
extern "C" __attribute__((visibility("hidden"))) int32_t kerf_check_step(const KerfStep *step, KerfFindSpan find,
                                                                         const void *context);

#endif
