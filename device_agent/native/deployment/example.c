/* Loads network.kerf, runs it once on an input and then a hundred times against the clock.
 *
 *     cc -O3 -Wno-psabi example.c kerf_runtime.cpp -o example
 *     ./example network.kerf [INPUT.bin [OUTPUT.bin]]
 *
 * INPUT.bin holds float32 values as channels x height x width; without it the input is zero. OUTPUT.bin is written in the
 * same form.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "kerf.h"

enum { RUNS = 100 };

static void check(int32_t code, const char *what) {
  if (code == KERF_OK) return;
  fprintf(stderr, "%s: %s (%d)\n", what, kerf_error_message(code), (int)code);
  exit(1);
}

static void *aligned_memory(size_t num_bytes) {
  void *memory = NULL;
  if (posix_memalign(&memory, KERF_ALIGNMENT, num_bytes ? num_bytes : 1)) {
    fprintf(stderr, "no memory for %zu bytes\n", num_bytes);
    exit(1);
  }
  return memory;
}

static FILE *opened(const char *path, const char *mode) {
  FILE *file = fopen(path, mode);
  if (!file) {
    perror(path);
    exit(1);
  }
  return file;
}

static void *read_file(const char *path, size_t *num_bytes) {
  FILE *file = opened(path, "rb");
  long size = fseek(file, 0, SEEK_END) ? -1 : ftell(file);
  void *data = aligned_memory(size < 0 ? 0 : (size_t)size);
  rewind(file);
  if (size < 0 || fread(data, 1, (size_t)size, file) != (size_t)size) {
    fprintf(stderr, "%s cannot be read\n", path);
    exit(1);
  }
  fclose(file);
  *num_bytes = (size_t)size;
  return data;
}

static size_t count(KerfShape shape) { return (size_t)shape.channels * (size_t)shape.height * (size_t)shape.width; }

static double now_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return 1e3 * (double)time.tv_sec + 1e-6 * (double)time.tv_nsec;
}

static int ascending(const void *left, const void *right) {
  const double first = *(const double *)left, second = *(const double *)right;
  return (first > second) - (first < second);
}

int main(int argc, char **argv) {
  size_t image_bytes, input_bytes, best = 0;
  void *image, *memory;
  KerfImageInfo info;
  KerfNetwork *network;
  float *input;
  const float *output;
  double times_ms[RUNS];

  if (argc < 2 || argc > 4) {
    fprintf(stderr, "usage: %s network.kerf [INPUT.bin [OUTPUT.bin]]\n", argv[0]);
    return 2;
  }
  image = read_file(argv[1], &image_bytes);
  check(kerf_image_check(image, image_bytes, &info), argv[1]);
  memory = aligned_memory((size_t)info.memory_bytes);
  check(kerf_network_init(memory, info.memory_bytes, image, image_bytes, KERF_FASTEST, &network), argv[1]);
  input = kerf_network_input(network);
  output = kerf_network_output(network);

  if (argc > 2) {
    const float *values = read_file(argv[2], &input_bytes);
    if (input_bytes != count(info.input) * sizeof(float)) {
      fprintf(stderr, "%s has %zu bytes, but the input %d x %d x %d has %zu\n", argv[2], input_bytes,
              (int)info.input.channels, (int)info.input.height, (int)info.input.width,
              count(info.input) * sizeof(float));
      return 1;
    }
    for (size_t i = 0; i < count(info.input); i++) input[i] = values[i];
  }
  check(kerf_network_run(network), "run");
  for (size_t i = 1; i < count(info.output); i++)
    if (output[i] > output[best]) best = i;
  if (argc > 3) {
    FILE *file = opened(argv[3], "wb");
    if (fwrite(output, sizeof(float), count(info.output), file) != count(info.output) || fclose(file)) {
      perror(argv[3]);
      return 1;
    }
  }

  for (int run = 0; run < RUNS; run++) {
    const double start_ms = now_ms();
    check(kerf_network_run(network), "run");
    times_ms[run] = now_ms() - start_ms;
  }
  qsort(times_ms, RUNS, sizeof(double), ascending);
  printf("network: %s\n", info.name);
  printf("input: %d x %d x %d, output: %d x %d x %d\n", (int)info.input.channels, (int)info.input.height,
         (int)info.input.width, (int)info.output.channels, (int)info.output.height, (int)info.output.width);
  printf("memory: %zu bytes beside the %zu of the image\n", (size_t)info.memory_bytes, image_bytes);
  printf("instruction set: %s, tuned for %s\n", kerf_backend_name(kerf_network_backend(network)), info.isa);
  printf("top: %zu (%g)\n", best, (double)output[best]);
  printf("shortest of %d runs: %.4f ms\n", RUNS, times_ms[0]);
  printf("median of %d runs: %.4f ms\n", RUNS, times_ms[RUNS / 2]);
  return 0;
}
