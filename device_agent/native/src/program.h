// How a program's steps are run, by one thread or by a team.
#ifndef KERF_PROGRAM_H
#define KERF_PROGRAM_H

#include "kerf_native.h"
#include "kerf_team.h"

// Reads the time after each step. Null where nobody asks.
struct StepClock {
  KerfClockGettime clock_gettime;
  int32_t clock_id;
  int64_t before_ns;
  int64_t *times_ns;  // of the next step
};

struct Job {
  const KerfBackend *backend;
  const KerfStep *steps;
  int32_t num_steps, repeats;
};

#define KERF_HIDDEN __attribute__((visibility("hidden")))

KERF_HIDDEN int32_t read_clock(KerfClockGettime clock_gettime, int32_t clock_id, int64_t *time_ns);

// Runs `job` on the calling thread, together with `team` unless it is null. Returns KERF_OK, an error code, or 1 + the
// index of a step that the backend cannot run.
KERF_HIDDEN int32_t run_job(KerfTeam *team, const Job &job, StepClock *clock);

#endif
