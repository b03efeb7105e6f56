// Threads that run a program together. The caller brings memory and threads; the library keeps neither.
//
//   KerfTeam *team = aligned_alloc(KERF_TEAM_ALIGNMENT, kerf_team_bytes(n));
//   kerf_team_init(team, n);
//   start n - 1 threads: kerf_team_work(team, 1) ... kerf_team_work(team, n - 1)
//   kerf_run(..., team) from the thread that owns the program, as often as wanted
//   kerf_team_stop(team), join the threads, free the memory
//
// One run at a time. Between runs the threads sleep; inside one they spin for a moment before they sleep.
#ifndef KERF_TEAM_H
#define KERF_TEAM_H

#include <stdint.h>

#define KERF_TEAM_ALIGNMENT 128
#define KERF_MAX_THREADS 16

#ifdef __cplusplus
extern "C" {
#endif

struct KerfTeam;

// The memory that a team of `num_threads` takes, the caller's own thread counted. 0 if not in 1 .. KERF_MAX_THREADS.
int64_t kerf_team_bytes(int32_t num_threads);
// Prepares `team`, memory of kerf_team_bytes() at a multiple of KERF_TEAM_ALIGNMENT. Returns a code of kerf_errors.h.
int32_t kerf_team_init(struct KerfTeam *team, int32_t num_threads);
// What thread `thread` in 1 .. num_threads - 1 does until the team is stopped. Each number must run exactly once.
int32_t kerf_team_work(struct KerfTeam *team, int32_t thread);
// Makes all kerf_team_work return. Not while the team runs something.
void kerf_team_stop(struct KerfTeam *team);

#ifdef __cplusplus
}
#endif

#endif
