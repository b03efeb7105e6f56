// The library's entry points: which backends it holds, running, and timing. build.py defines KERF_BACKENDS(X).
#include "kerf_native.h"

#include "cpu.h"
#include "kerf_errors.h"
#include "program.h"
#include "step_fields.h"

#define KERF_EXPORT extern "C" __attribute__((visibility("default")))

#define KERF_DECLARE(name) extern "C" __attribute__((visibility("hidden"))) const KerfBackend kerf_backend_##name;
KERF_BACKENDS(KERF_DECLARE)

#define KERF_ADDRESS(name) &kerf_backend_##name,
static const KerfBackend *const backends[] = {KERF_BACKENDS(KERF_ADDRESS)};
static const int32_t num_backends = sizeof(backends) / sizeof(backends[0]);

#define KERF_TEXT2(a) #a
#define KERF_TEXT(a) KERF_TEXT2(a)
#if defined(__clang__)
#define KERF_COMPILER "clang " KERF_TEXT(__clang_major__) "." KERF_TEXT(__clang_minor__)
#else
#define KERF_COMPILER "gcc " KERF_TEXT(__GNUC__) "." KERF_TEXT(__GNUC_MINOR__)
#endif

static bool is_backend(int32_t backend) { return backend >= 0 && backend < num_backends; }

KERF_EXPORT int32_t kerf_abi_version() { return KERF_ABI_VERSION; }

#define KERF_NAME_I(name) "I " #name "\n"
#define KERF_NAME_F(name) "F " #name "\n"
#define KERF_NAME_L(name) "L " #name "\n"
#define KERF_NAME_P(name) "P " #name "\n"
// Type and name of every field of KerfStep in order, a line for each: see step_fields.h.
KERF_EXPORT const char *kerf_step_fields() {
  return KERF_STEP_FIELDS(KERF_NAME_I, KERF_NAME_F, KERF_NAME_L, KERF_NAME_P);
}
KERF_EXPORT const char *kerf_compiler() { return KERF_COMPILER; }

// What `code`, the result of another function, means. Never null.
KERF_EXPORT const char *kerf_error_message(int32_t code) {
#define KERF_ERROR_CASE(name, number, text) \
  case number: return text;
  switch (code) {
    KERF_ERRORS(KERF_ERROR_CASE)
    default: return code > 0 ? "the backend cannot run a step: its index is this number - 1" : "unknown error";
  }
#undef KERF_ERROR_CASE
}

// Fastest first. The next three functions answer null or 0 for a number that no backend has.
KERF_EXPORT int32_t kerf_num_backends() { return num_backends; }
KERF_EXPORT const char *kerf_backend_name(int32_t backend) { return is_backend(backend) ? backends[backend]->name : 0; }
KERF_EXPORT int32_t kerf_backend_has_fma(int32_t backend) {
  return is_backend(backend) ? backends[backend]->has_fma : 0;
}
KERF_EXPORT int32_t kerf_backend_is_supported(int32_t backend) {
  return is_backend(backend) && cpu_supports(backends[backend]->isa);
}
KERF_EXPORT int32_t kerf_max_winograd_tiles(int32_t backend, int32_t outputs, int32_t outputs_in_lanes) {
  return is_backend(backend) ? backends[backend]->max_winograd_tiles(outputs, outputs_in_lanes) : 0;
}
KERF_EXPORT int32_t kerf_max_vectors(int32_t backend, int32_t vector_length, int32_t group_size) {
  return is_backend(backend) ? backends[backend]->max_vectors(vector_length, group_size) : 0;
}

// Share `part` of `parts` of one step, for callers with threads of their own. Same results as kerf_run.
KERF_EXPORT int32_t kerf_run_part(int32_t backend, const KerfStep *step, int32_t part, int32_t parts) {
  if (!is_backend(backend)) return KERF_ERROR_BACKEND;
  return backends[backend]->run_step(step, part, parts) ? KERF_OK : 1;
}

// Runs the steps once, on the calling thread and the others of `team`, which may be null. Like the two functions after
// it, returns KERF_OK, an error code, or 1 + the index of a step that the backend cannot run.
KERF_EXPORT int32_t kerf_run(int32_t backend, const KerfStep *steps, int32_t num_steps, KerfTeam *team) {
  if (!is_backend(backend)) return KERF_ERROR_BACKEND;
  return run_job(team, {backends[backend], steps, num_steps, 1}, 0);
}

// *time_ns: the time that `repeats` runs take by the clock `clock_id` of `clock_gettime`.
KERF_EXPORT int32_t kerf_time(int32_t backend, const KerfStep *steps, int32_t num_steps, int32_t repeats,
                              KerfTeam *team, KerfClockGettime clock_gettime, int32_t clock_id, int64_t *time_ns) {
  if (!is_backend(backend)) return KERF_ERROR_BACKEND;
  int64_t start, end;
  if (read_clock(clock_gettime, clock_id, &start)) return KERF_ERROR_CLOCK;
  const int32_t result = run_job(team, {backends[backend], steps, num_steps, repeats}, 0);
  if (result) return result;
  if (read_clock(clock_gettime, clock_id, &end)) return KERF_ERROR_CLOCK;
  *time_ns = end - start;
  return KERF_OK;
}

// times_ns[round * num_steps + step]: the time of each step in each round.
KERF_EXPORT int32_t kerf_profile(int32_t backend, const KerfStep *steps, int32_t num_steps, int32_t rounds,
                                 KerfTeam *team, KerfClockGettime clock_gettime, int32_t clock_id, int64_t *times_ns) {
  if (!is_backend(backend)) return KERF_ERROR_BACKEND;
  StepClock clock = {clock_gettime, clock_id, 0, times_ns};
  if (read_clock(clock_gettime, clock_id, &clock.before_ns)) return KERF_ERROR_CLOCK;
  return run_job(team, {backends[backend], steps, num_steps, rounds}, &clock);
}
