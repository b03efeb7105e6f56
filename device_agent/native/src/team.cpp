// A team's memory, its threads' work, and the order that they keep.
//
// Every thread counts the steps it is done with, in a cache line of its own. Before its share of a step, it waits until
// all others are done with the steps before: that is all the order there is. A step too small to share is run by the
// first of them; the others count it as done at once, so that a row of small steps costs them one wait.
#include "program.h"

#include "kerf_errors.h"
#include "waiting.h"

#define KERF_EXPORT extern "C" __attribute__((visibility("default")))

namespace {

// Two lines of 64 bytes, which Intel's prefetcher loads together.
enum { LINE_BYTES = KERF_TEAM_ALIGNMENT };

// A waiting thread first spins, for 1 to 20 us. Then it gives way many times, in case that the thread it waits for wants
// this very core: for tens of microseconds between jobs, and for some hundreds in one, where waking up would be paid at
// once. Then it sleeps.
enum { SPINS = 400, IDLE_YIELDS = 40, JOB_YIELDS = 1000 };

struct alignas(LINE_BYTES) Progress {
  uint32_t steps_done;  // modulo 2^32
};

}  // namespace

struct KerfTeam {
  // Written by the caller's thread while all others are idle.
  alignas(LINE_BYTES) uint32_t job_number;
  int32_t num_threads;
  int32_t is_stopped;
  Job job;
  // Threads that sleep or are about to. The only word that all threads write, and only then.
  alignas(LINE_BYTES) uint32_t num_sleepers;
  // The job's first failure.
  alignas(LINE_BYTES) int32_t failure;
  Progress progress[1];  // really num_threads
};

namespace {

// Counters wrap around; compared ones are never half their range apart.
static inline bool has_reached(const uint32_t *counter, uint32_t target) {
  return (int32_t)(__atomic_load_n(counter, __ATOMIC_ACQUIRE) - target) >= 0;
}

static void wait_for(KerfTeam *team, const uint32_t *counter, uint32_t target, int max_yields) {
  for (int spin = 0; spin < SPINS; spin++) {
    if (has_reached(counter, target)) return;
    spin_pause();
  }
  for (int turn = 0; turn < max_yields; turn++) {
    if (has_reached(counter, target)) return;
    give_way();
  }
  // Either advance() sees the sleeper, or the sleeper sees the new value: both orders are sequentially consistent.
  __atomic_add_fetch(&team->num_sleepers, 1, __ATOMIC_SEQ_CST);
  for (;;) {
    const uint32_t value = __atomic_load_n(counter, __ATOMIC_SEQ_CST);
    if ((int32_t)(value - target) >= 0) break;
    sleep_while(counter, value);
  }
  __atomic_sub_fetch(&team->num_sleepers, 1, __ATOMIC_SEQ_CST);
}

static void advance(KerfTeam *team, uint32_t *counter, uint32_t value) {
  __atomic_store_n(counter, value, __ATOMIC_SEQ_CST);
  if (__atomic_load_n(&team->num_sleepers, __ATOMIC_SEQ_CST)) wake_all(counter);
}

static void wait_for_others(KerfTeam *team, int32_t thread, uint32_t target) {
  for (int32_t other = 0; other < team->num_threads; other++)
    if (other != thread) wait_for(team, &team->progress[other].steps_done, target, JOB_YIELDS);
}

static int32_t failure_of(KerfTeam *team) { return __atomic_load_n(&team->failure, __ATOMIC_RELAXED); }

static void fail(KerfTeam *team, int32_t failure) {
  int32_t none = KERF_OK;
  __atomic_compare_exchange_n(&team->failure, &none, failure, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
}

static int32_t record(StepClock *clock) {
  if (!clock) return KERF_OK;
  int64_t now_ns;
  if (read_clock(clock->clock_gettime, clock->clock_id, &now_ns)) return KERF_ERROR_CLOCK;
  *clock->times_ns++ = now_ns - clock->before_ns;
  clock->before_ns = now_ns;
  return KERF_OK;
}

static int32_t run_alone(const Job &job, StepClock *clock) {
  for (int32_t repeat = 0; repeat < job.repeats; repeat++) {
    for (int32_t i = 0; i < job.num_steps; i++) {
      if (!job.backend->run_step(job.steps + i, 0, 1)) return i + 1;
      if (record(clock)) return KERF_ERROR_CLOCK;
    }
  }
  return KERF_OK;
}

static int32_t parts_of(const KerfStep *step, const KerfTeam *team) {
  return step->max_parts > 0 && step->max_parts < team->num_threads ? step->max_parts : team->num_threads;
}

// The shares of one thread. A count is made known when others may wait for it: before a step that is shared, and at the
// end. So the first thread runs a row of small steps without a word, and the others skip it in one go. A thread that stops early counts all steps as done, as nobody must wait for it; whoever sees
// it so far has also seen the failure.
static void run_shares(KerfTeam *team, const Job &job, int32_t thread, StepClock *clock) {
  uint32_t *const counter = &team->progress[thread].steps_done;
  uint32_t done = *counter;
  const uint32_t end = done + (uint32_t)job.repeats * (uint32_t)job.num_steps;
  for (int32_t repeat = 0; repeat < job.repeats; repeat++) {
    for (int32_t i = 0; i < job.num_steps; i++) {
      const KerfStep *const step = job.steps + i;
      const int32_t parts = parts_of(step, team);
      if (thread < parts) {
        wait_for_others(team, thread, done);
        if (!failure_of(team) && !job.backend->run_step(step, thread, parts)) fail(team, i + 1);
        if (failure_of(team)) {
          advance(team, counter, end);
          return;
        }
      }
      done++;
      const KerfStep *const next = i + 1 < job.num_steps ? step + 1 : job.steps;
      if (done == end || parts_of(next, team) > 1) advance(team, counter, done);
      if (clock) {
        wait_for_others(team, thread, done);
        if (record(clock)) fail(team, KERF_ERROR_CLOCK);
      }
    }
  }
}

}  // namespace

int32_t read_clock(KerfClockGettime clock_gettime, int32_t clock_id, int64_t *time_ns) {
  KerfTimespec time;
  if (clock_gettime(clock_id, &time)) return KERF_ERROR_CLOCK;
  *time_ns = (int64_t)time.seconds * 1000000000 + time.nanoseconds;
  return KERF_OK;
}

int32_t run_job(KerfTeam *team, const Job &job, StepClock *clock) {
  if (job.num_steps < 0 || job.repeats < 0) return KERF_ERROR_COUNT;
  if (team && team->is_stopped) return KERF_ERROR_STOPPED;
  if (!team || team->num_threads == 1) return run_alone(job, clock);
  if ((int64_t)job.repeats * job.num_steps > INT32_MAX) return KERF_ERROR_COUNT;
  team->job = job;
  team->failure = KERF_OK;
  const uint32_t end = team->progress[0].steps_done + (uint32_t)job.repeats * (uint32_t)job.num_steps;
  advance(team, &team->job_number, team->job_number + 1);
  run_shares(team, job, 0, clock);
  wait_for_others(team, 0, end);
  return failure_of(team);
}

KERF_EXPORT int64_t kerf_team_bytes(int32_t num_threads) {
  if (num_threads < 1 || num_threads > KERF_MAX_THREADS) return 0;
  return (int64_t)sizeof(KerfTeam) + (num_threads - 1) * (int64_t)sizeof(Progress);
}

KERF_EXPORT int32_t kerf_team_init(KerfTeam *team, int32_t num_threads) {
  if (kerf_team_bytes(num_threads) == 0) return KERF_ERROR_THREADS;
  if (!team || (uintptr_t)team % LINE_BYTES) return KERF_ERROR_TEAM_MEMORY;
  team->job_number = 0;
  team->num_threads = num_threads;
  team->is_stopped = 0;
  team->num_sleepers = 0;
  team->failure = KERF_OK;
  for (int32_t thread = 0; thread < num_threads; thread++) team->progress[thread].steps_done = 0;
  return KERF_OK;
}

KERF_EXPORT int32_t kerf_team_work(KerfTeam *team, int32_t thread) {
  if (thread < 1 || thread >= team->num_threads) return KERF_ERROR_THREADS;
  for (uint32_t next = 1;; next++) {
    wait_for(team, &team->job_number, next, IDLE_YIELDS);
    if (team->is_stopped) return KERF_OK;
    // A copy: once the last step is done, the next job may be written.
    const Job job = team->job;
    run_shares(team, job, thread, 0);
  }
}

KERF_EXPORT void kerf_team_stop(KerfTeam *team) {
  team->is_stopped = 1;
  advance(team, &team->job_number, team->job_number + 1);
}
