// The four functions that a compiler may call without being asked. Not for speed: kernels use memory.h.
#include "memory.h"

// Keeps the compiler from recognising a loop below as the very function that it implements.
#define KERF_NOT_A_CALL() __asm__ volatile("" ::: "memory")
#define KERF_INTERNAL extern "C" __attribute__((visibility("hidden"), used))

typedef float Block __attribute__((vector_size(16), aligned(1), may_alias));

KERF_INTERNAL void *memcpy(void *target, const void *source, size_t num_bytes) {
  char *to = (char *)target;
  const char *from = (const char *)source;
  for (; num_bytes >= sizeof(Block); num_bytes -= sizeof(Block), to += sizeof(Block), from += sizeof(Block)) {
    *(Block *)to = *(const Block *)from;
    KERF_NOT_A_CALL();
  }
  for (; num_bytes; num_bytes--) {
    *to++ = *from++;
    KERF_NOT_A_CALL();
  }
  return target;
}

KERF_INTERNAL void *memmove(void *target, const void *source, size_t num_bytes) {
  char *const to = (char *)target;
  const char *const from = (const char *)source;
  if (to <= from) {
    for (size_t i = 0; i < num_bytes; i++) {
      to[i] = from[i];
      KERF_NOT_A_CALL();
    }
  } else {
    for (size_t i = num_bytes; i-- > 0;) {
      to[i] = from[i];
      KERF_NOT_A_CALL();
    }
  }
  return target;
}

KERF_INTERNAL void *memset(void *target, int value, size_t num_bytes) {
  char *to = (char *)target;
  for (; num_bytes; num_bytes--) {
    *to++ = (char)value;
    KERF_NOT_A_CALL();
  }
  return target;
}

KERF_INTERNAL int memcmp(const void *a, const void *b, size_t num_bytes) {
  const unsigned char *first = (const unsigned char *)a, *second = (const unsigned char *)b;
  for (size_t i = 0; i < num_bytes; i++)
    if (first[i] != second[i]) return first[i] < second[i] ? -1 : 1;
  return 0;
}
