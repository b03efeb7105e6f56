// The library's entry points: which backends it holds, running, and timing. build.py defines KERF_BACKENDS(X).
#include <time.h>

#include "kerf_native.h"

#define KERF_EXPORT extern "C" __attribute__((visibility("default")))

#define KERF_DECLARE(name) extern "C" const KerfBackend kerf_backend_##name;
KERF_BACKENDS(KERF_DECLARE)

#define KERF_ADDRESS(name) &kerf_backend_##name,
static const KerfBackend *const backends[] = {KERF_BACKENDS(KERF_ADDRESS)};
static const int32_t num_backends = sizeof(backends) / sizeof(backends[0]);

static int64_t now_ns() {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

KERF_EXPORT int32_t kerf_abi_version() { return KERF_ABI_VERSION; }
KERF_EXPORT int32_t kerf_step_bytes() { return (int32_t)sizeof(KerfStep); }
KERF_EXPORT const char *kerf_compiler() { return __VERSION__; }
// Fastest first.
KERF_EXPORT int32_t kerf_num_backends() { return num_backends; }
KERF_EXPORT const char *kerf_backend_name(int32_t backend) { return backends[backend]->name; }
KERF_EXPORT int32_t kerf_backend_has_fma(int32_t backend) { return backends[backend]->has_fma; }
KERF_EXPORT int32_t kerf_backend_is_supported(int32_t backend) { return backends[backend]->is_supported(); }
KERF_EXPORT int32_t kerf_max_vectors(int32_t backend, int32_t vector_length, int32_t group_size) {
  return backends[backend]->max_vectors(vector_length, group_size);
}

// 0, or 1 + index of the first step that the backend cannot run.
static int32_t run_steps(const KerfBackend *backend, const KerfStep *steps, int32_t num_steps) {
  for (int32_t i = 0; i < num_steps; i++)
    if (!backend->run_step(steps + i, 0, 1)) return i + 1;
  return 0;
}

KERF_EXPORT int32_t kerf_run(int32_t backend, const KerfStep *steps, int32_t num_steps) {
  return run_steps(backends[backend], steps, num_steps);
}

// Wall time of `repeats` runs, in ns; -1 where a step cannot be run.
KERF_EXPORT int64_t kerf_time(int32_t backend, const KerfStep *steps, int32_t num_steps, int32_t repeats) {
  const int64_t start = now_ns();
  for (int32_t i = 0; i < repeats; i++)
    if (run_steps(backends[backend], steps, num_steps)) return -1;
  return now_ns() - start;
}

// Wall time of each step in each round: times_ns[round * num_steps + step].
KERF_EXPORT int32_t kerf_profile(int32_t backend, const KerfStep *steps, int32_t num_steps, int32_t rounds,
                                 int64_t *times_ns) {
  for (int32_t round = 0; round < rounds; round++) {
    int64_t before = now_ns();
    for (int32_t i = 0; i < num_steps; i++) {
      if (!backends[backend]->run_step(steps + i, 0, 1)) return i + 1;
      const int64_t after = now_ns();
      times_ns[(int64_t)round * num_steps + i] = after - before;
      before = after;
    }
  }
  return 0;
}
