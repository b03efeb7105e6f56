/* Runs an image on one thread and on a team of pthreads: the same bits, run after run. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "kerf.h"

struct Worker {
  pthread_t thread;
  struct KerfTeam *team;
  int32_t number;
};

static void *work(void *argument) {
  struct Worker *worker = argument;
  return (void *)(intptr_t)kerf_team_work(worker->team, worker->number);
}

static int fail(int32_t code) {
  fprintf(stderr, "%s\n", kerf_error_message(code));
  return 1;
}

static void *aligned(size_t alignment, size_t bytes) {
  return aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}

int main(int argc, char **argv) {
  FILE *file = argc > 2 ? fopen(argv[1], "rb") : NULL;
  if (!file) return 2;
  const int num_threads = atoi(argv[2]);
  fseek(file, 0, SEEK_END);
  const size_t image_bytes = (size_t)ftell(file);
  rewind(file);
  void *image = aligned(KERF_ALIGNMENT, image_bytes);
  if (fread(image, 1, image_bytes, file) != image_bytes) return 2;
  fclose(file);

  KerfImageInfo info;
  int32_t code = kerf_image_check(image, image_bytes, &info);
  if (code) return fail(code);
  void *memory = aligned(KERF_ALIGNMENT, info.memory_bytes);
  KerfNetwork *network;
  code = kerf_network_init(memory, info.memory_bytes, image, image_bytes, KERF_FASTEST, &network);
  if (code) return fail(code);

  struct KerfTeam *team = aligned(KERF_TEAM_ALIGNMENT, (size_t)kerf_team_bytes(num_threads));
  code = kerf_team_init(team, num_threads);
  if (code) return fail(code);
  struct Worker workers[KERF_MAX_THREADS];
  for (int i = 1; i < num_threads; i++) {
    workers[i].team = team;
    workers[i].number = i;
    pthread_create(&workers[i].thread, NULL, work, &workers[i]);
  }

  const size_t inputs = (size_t)info.input.channels * info.input.height * info.input.width;
  const size_t outputs = (size_t)info.output.channels * info.output.height * info.output.width;
  float *expected = malloc(outputs * sizeof(float));
  for (int round = 0; round < 50; round++) {
    float *input = kerf_network_input(network);
    for (size_t i = 0; i < inputs; i++) input[i] = (float)((i * 7 + (size_t)round) % 13) - 6.0f;
    code = kerf_network_run(network);
    if (code) return fail(code);
    memcpy(expected, kerf_network_output(network), outputs * sizeof(float));
    memset((void *)kerf_network_output(network), 0, outputs * sizeof(float));
    code = kerf_network_run_on_team(network, team);
    if (code) return fail(code);
    if (memcmp(expected, kerf_network_output(network), outputs * sizeof(float))) return 3;
  }

  kerf_team_stop(team);
  for (int i = 1; i < num_threads; i++) pthread_join(workers[i].thread, NULL);
  if (kerf_network_run_on_team(network, team) != KERF_ERROR_STOPPED) return 4;
  puts("same bits");
  return 0;
}
