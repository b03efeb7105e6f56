// Runs program images under sanitizers. What lies between regions is poisoned, so that an access that strays from its
// region is reported even where it stays inside of the image or the workspace.
//
//     image_harness [--stray] FILE...
//
// prints a line for each: its name, the code of the check, and the output's hash on each backend. With --stray it reads
// a byte between regions on purpose, which must be reported.
//
// With KERF_FUZZ it is a target of libFuzzer instead: test cases get a right magic, version, size and checksum, so that
// what the fuzzer changes comes past them.
#include <sanitizer/asan_interface.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "image.h"

extern "C" uint64_t kerf_image_checksum(const void *data, uint64_t data_bytes);

// Images may pass the check and still ask for hours of work: those are checked and not run.
static const double MAX_WORK = 1e8;
static const uint64_t MAX_MEMORY_BYTES = 64 << 20;

static unsigned char *aligned_memory(size_t num_bytes) {
  void *memory = 0;
  if (posix_memalign(&memory, KERF_ALIGNMENT, num_bytes ? num_bytes : 1)) abort();
  return (unsigned char *)memory;
}

// Roughly, and never too little. Lists are left alone: a step of a kind without lists may point anywhere with theirs.
static double work_of(const Image &image) {
  double work = 0;
  const double most_entries = (double)image.header->image_bytes / sizeof(int32_t);
  for (uint32_t i = 0; i < image.header->num_steps; i++) {
    KerfStep step;
    if (read_step(image, i, &step)) return 0;
    const double channels = 1.0 + step.channels + step.num_groups + step.outputs;
    const double rows = 1.0 + step.input_h + step.output_h, columns = 1.0 + step.input_w + step.output_w;
    const double window = (1.0 + step.kernel_h) * (1.0 + step.kernel_w) * (1.0 + step.stride) * (1.0 + step.stride);
    const double entries = step.kind == KERF_CONV || step.kind == KERF_SPARSE_MATVEC ? most_entries : 1.0;
    work += channels * rows * columns * window * (1.0 + step.winograd_size) + entries * (16.0 + step.positions) +
            channels * (16.0 + step.positions) + (double)step.channels * step.outputs +
            (double)step.channels * (double)step.output_plane;
  }
  return work;
}

// The gaps between `regions`, which begin at `base` and end `end` bytes after it.
static void poison_gaps(unsigned char *base, const Region *regions, uint32_t count, uint64_t start, uint64_t end) {
  for (uint32_t i = 0; i < count; i++) {
    if (regions[i].offset > start) __asan_poison_memory_region(base + start, regions[i].offset - start);
    start = regions[i].offset + regions[i].bytes;
  }
  if (end > start) __asan_poison_memory_region(base + start, end - start);
}

static bool is_straying = false;

static uint64_t run_on(int32_t backend, const Image &image, unsigned char *data, size_t num_bytes,
                       const KerfImageInfo &info) {
  unsigned char *memory = aligned_memory(info.memory_bytes);
  const Header &header = *image.header;
  KerfNetwork *network;
  uint64_t hash = 0;
  const int32_t code = kerf_network_init(memory, info.memory_bytes, data, num_bytes, backend, &network);
  if (code == KERF_OK) {
    unsigned char *workspace = memory + info.memory_bytes - header.workspace_bytes;
    const uint64_t tables_end = image.records - data + header.num_steps * (uint64_t)STEP_RECORD_BYTES;
    poison_gaps(workspace, image.regions + header.num_constants, header.num_regions - header.num_constants, 0,
                header.workspace_bytes);
    poison_gaps(data, image.regions, header.num_constants, tables_end, header.image_bytes);
    volatile unsigned char *first_buffer = workspace + image.regions[header.num_constants].offset;
    if (is_straying) (void)first_buffer[-1];
    const int64_t inputs = (int64_t)info.input.channels * info.input.height * info.input.width;
    const int64_t outputs = (int64_t)info.output.channels * info.output.height * info.output.width;
    float *input = kerf_network_input(network);
    // Twice: the second run meets what the first left in the buffers.
    for (int run = 0; run < 2; run++) {
      for (int64_t i = 0; i < inputs; i++) input[i] = (float)((i * 37 + 11) % 64) / 16 - 2;
      if (kerf_network_run(network)) break;
      const unsigned char *bytes = (const unsigned char *)kerf_network_output(network);
      hash = 0xcbf29ce484222325;
      for (int64_t i = 0; i < 4 * outputs; i++) hash = (hash ^ bytes[i]) * 0x100000001b3;
    }
    __asan_unpoison_memory_region(data, num_bytes);
    __asan_unpoison_memory_region(memory, info.memory_bytes);
  }
  free(memory);
  return hash;
}

// Checks the image and runs it on all backends, where it is sound and no longer than a moment's work.
static int32_t run_image(unsigned char *data, size_t num_bytes, bool print) {
  KerfImageInfo info;
  const int32_t code = kerf_image_check(data, num_bytes, &info);
  if (print) printf(" %d", (int)code);
  Image image;
  if (code || open_image(data, num_bytes, &image)) return code;
  if (info.memory_bytes > MAX_MEMORY_BYTES || work_of(image) > MAX_WORK) {
    if (print) printf(" too-long");
    return code;
  }
  for (int32_t backend = 0; backend < kerf_num_backends(); backend++) {
    if (!kerf_backend_is_supported(backend)) continue;
    const uint64_t hash = run_on(backend, image, data, num_bytes, info);
    if (print) printf(" %s:%016llx", kerf_backend_name(backend), (unsigned long long)hash);
  }
  return code;
}

#ifdef KERF_FUZZ

extern "C" int LLVMFuzzerTestOneInput(const uint8_t *test_case, size_t test_case_bytes) {
  const size_t num_bytes = test_case_bytes / KERF_ALIGNMENT * KERF_ALIGNMENT;
  if (num_bytes < sizeof(Header)) return -1;
  unsigned char *data = aligned_memory(num_bytes);
  memcpy(data, test_case, num_bytes);
  Header *header = (Header *)data;
  memcpy(header->magic, MAGIC, sizeof(MAGIC));
  header->format_version = FORMAT_VERSION;
  header->abi_version = KERF_ABI_VERSION;
  header->image_bytes = num_bytes;
  header->step_bytes = STEP_RECORD_BYTES;
  header->checksum = kerf_image_checksum(data, num_bytes);
  run_image(data, num_bytes, false);
  free(data);
  return 0;
}

#else

int main(int argc, char **argv) {
  is_straying = argc > 1 && !strcmp(argv[1], "--stray");
  for (int i = is_straying ? 2 : 1; i < argc; i++) {
    FILE *file = fopen(argv[i], "rb");
    if (!file || fseek(file, 0, SEEK_END)) return perror(argv[i]), 1;
    const size_t num_bytes = (size_t)ftell(file);
    unsigned char *data = aligned_memory(num_bytes);
    rewind(file);
    if (fread(data, 1, num_bytes, file) != num_bytes) return perror(argv[i]), 1;
    fclose(file);
    // Before it is run, so that the last line of a run that a sanitizer ends names the image.
    printf("%s", argv[i]);
    fflush(stdout);
    run_image(data, num_bytes, true);
    printf("\n");
    free(data);
  }
  return 0;
}

#endif
