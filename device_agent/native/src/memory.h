// Copying and clearing without a C library.
#ifndef KERF_MEMORY_H
#define KERF_MEMORY_H

#include <stddef.h>

#include "vec.h"

// Compilers may call these wherever they copy or clear; memory.cpp defines them inside the library.
extern "C" {
void *memcpy(void *target, const void *source, size_t num_bytes);
void *memmove(void *target, const void *source, size_t num_bytes);
void *memset(void *target, int value, size_t num_bytes);
int memcmp(const void *a, const void *b, size_t num_bytes);
}

#ifdef KERF_MAX_VECTOR_LENGTH
namespace {

// What the kernels use: inlined, and in the vectors of their own instruction set.
KERF_INLINE void copy_floats(float *__restrict target, const float *__restrict source, int64_t count) {
  const int VL = KERF_MAX_VECTOR_LENGTH;
  int64_t i = 0;
  for (; i + VL <= count; i += VL) store<VL>(target + i, load<VL>(source + i));
  for (; i < count; i++) target[i] = source[i];
}

KERF_INLINE void clear_floats(float *target, int64_t count) {
  const int VL = KERF_MAX_VECTOR_LENGTH;
  int64_t i = 0;
  for (; i + VL <= count; i += VL) store<VL>(target + i, splat<VL>(0.0f));
  for (; i < count; i++) target[i] = 0.0f;
}

}  // namespace
#endif

#endif
