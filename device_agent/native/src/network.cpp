// The C API of kerf.h: a program image becomes a network in the caller's memory.
#include "image.h"
#include "winograd_block.h"

#define KERF_EXPORT extern "C" __attribute__((visibility("default")))

extern "C" int32_t kerf_max_vectors(int32_t backend, int32_t vector_length, int32_t group_size);
extern "C" int32_t kerf_max_winograd_tiles(int32_t backend, int32_t outputs, int32_t outputs_in_lanes);
extern "C" int32_t kerf_run(int32_t backend, const KerfStep *steps, int32_t num_steps, KerfTeam *team);

// In memory: this | steps | workspace, each at a multiple of KERF_ALIGNMENT.
struct KerfNetwork {
  KerfStep *steps;
  float *input;
  const float *output;
  int32_t num_steps, backend;
};

namespace {

uint64_t steps_bytes(const Header &header) { return align_up(header.num_steps * (uint64_t)sizeof(KerfStep)); }

uint64_t memory_bytes(const Header &header) {
  return align_up(sizeof(KerfNetwork)) + steps_bytes(header) + header.workspace_bytes;
}

void copy_text(char *target, const char *text, int size) {
  for (int i = 0; i < size; i++) target[i] = text[i];
}

bool is_same_text(const char *a, const char *b) {
  for (; *a && *a == *b; a++, b++) {}
  return *a == *b;
}

int32_t fastest_backend() {
  int32_t backend = 0;
  while (backend < kerf_num_backends() && !kerf_backend_is_supported(backend)) backend++;
  return backend;
}

// The tile that computes fewest positions for nothing, of those the widest: what the tuner guesses where nothing may be
// timed. False where the backend has no tile for the step.
bool guess_tile(int32_t backend, KerfStep *step) {
  int64_t least = INT64_MAX;
  int32_t longest = 0;
  for (int32_t length = 16; length >= 4; length /= 2) {
    const int32_t limit = kerf_max_vectors(backend, length, step->group_size);
    if (limit < 1) continue;
    if (!longest) longest = length;
    const int32_t positions = step->row_vectors ? step->output_w : step->positions;
    if (length * 4 <= longest && positions > 64) continue;
    const int32_t num_vectors = (positions + length - 1) / length;
    // A position for nothing weighs less than the overhead of a vector.
    const int64_t cost = (int64_t)num_vectors * (length + 2);
    if (cost >= least) continue;
    least = cost;
    const int32_t num_tiles = (num_vectors + limit - 1) / limit;
    step->vector_length = length;
    step->max_vectors = (num_vectors + num_tiles - 1) / num_tiles;
    step->block_tiles = 1;
    if (step->row_vectors) {
      // Tiles of as many whole rows as fit.
      step->row_vectors = num_vectors;
      if (num_vectors <= limit) step->max_vectors = limit / num_vectors * num_vectors;
    }
  }
  return longest != 0;
}

// Every backend has products of 16 output channels in lanes.
int32_t set_winograd_tile(int32_t backend, bool is_tuned, KerfStep *step) {
  if (!is_tuned) step->winograd_outputs = 16, step->winograd_outputs_in_lanes = 1;
  const int32_t limit = kerf_max_winograd_tiles(backend, step->winograd_outputs, step->winograd_outputs_in_lanes);
  if (!is_tuned) step->winograd_tiles = limit;
  const bool fits = step->winograd_tiles >= 1 && step->winograd_tiles <= limit && has_winograd_scratch(*step);
  return fits ? KERF_OK : KERF_ERROR_TILE;
}

// Images tuned for another backend get the tiles that this one would guess.
int32_t set_tiles(int32_t backend, bool is_tuned, KerfStep *steps, int32_t num_steps) {
  for (int32_t i = 0; i < num_steps; i++) {
    KerfStep &step = steps[i];
    if (step.kind == KERF_WINOGRAD) {
      KERF_TRY(set_winograd_tile(backend, is_tuned, &step));
      continue;
    }
    // Strips have one tile on all backends, which check.cpp has looked at.
    if (step.kind != KERF_CONV || step.row_blocks) continue;
    if (!is_tuned && !guess_tile(backend, &step)) return KERF_ERROR_TILE;
    const int32_t limit = kerf_max_vectors(backend, step.vector_length, step.group_size);
    if (step.max_vectors < 1 || step.max_vectors > limit) return KERF_ERROR_TILE;
  }
  return KERF_OK;
}

// Checks what open_image does not: the input, the output and all steps.
int32_t check_program(const Image &image, uintptr_t *input, uintptr_t *output, int32_t *failed_step) {
  KERF_TRY(find_tensor(image, image.header->input, input));
  KERF_TRY(find_tensor(image, image.header->output, output));
  return check_steps(image, failed_step);
}

}  // namespace

KERF_EXPORT int32_t kerf_image_check(const void *data, uint64_t data_bytes, KerfImageInfo *info) {
  KerfImageInfo unused;
  KerfImageInfo &filled = info ? *info : unused;
  filled = KerfImageInfo();
  filled.failed_step = -1;
  Image image;
  KERF_TRY(open_image(data, data_bytes, &image));
  const Header &header = *image.header;
  filled.memory_bytes = memory_bytes(header);
  filled.input = header.input.shape;
  filled.output = header.output.shape;
  filled.num_steps = (int32_t)header.num_steps;
  copy_text(filled.isa, header.isa, sizeof(filled.isa));
  copy_text(filled.name, header.name, sizeof(filled.name));
  uintptr_t input, output;
  return check_program(image, &input, &output, &filled.failed_step);
}

KERF_EXPORT int32_t kerf_network_init(void *memory, uint64_t num_bytes, const void *data, uint64_t data_bytes,
                                      int32_t backend, KerfNetwork **network) {
  if (!memory || !network) return KERF_ERROR_NULL;
  if ((uintptr_t)memory % KERF_ALIGNMENT != 0) return KERF_ERROR_ALIGNMENT;
  if (backend == KERF_FASTEST) backend = fastest_backend();
  if (!kerf_backend_is_supported(backend)) return KERF_ERROR_BACKEND;
  Image image;
  KERF_TRY(open_image(data, data_bytes, &image));
  const Header &header = *image.header;
  if (num_bytes < memory_bytes(header)) return KERF_ERROR_MEMORY;
  unsigned char *const bytes = (unsigned char *)memory;
  KerfStep *const steps = (KerfStep *)(bytes + align_up(sizeof(KerfNetwork)));
  unsigned char *const workspace = (unsigned char *)steps + steps_bytes(header);
  image.workspace = (uintptr_t)workspace;
  uintptr_t input, output;
  int32_t failed_step;
  KERF_TRY(check_program(image, &input, &output, &failed_step));
  const int32_t num_steps = (int32_t)header.num_steps;
  for (int32_t i = 0; i < num_steps; i++) KERF_TRY(read_step(image, (uint32_t)i, steps + i));
  KERF_TRY(set_tiles(backend, is_same_text(header.isa, kerf_backend_name(backend)), steps, num_steps));
  // Kernels rely on zeros between rows and planes, which they never write.
  for (uint64_t i = 0; i < header.workspace_bytes; i++) workspace[i] = 0;
  *network = (KerfNetwork *)memory;
  **network = {steps, (float *)input, (const float *)output, num_steps, backend};
  return KERF_OK;
}

KERF_EXPORT float *kerf_network_input(KerfNetwork *network) { return network->input; }
KERF_EXPORT const float *kerf_network_output(const KerfNetwork *network) { return network->output; }
KERF_EXPORT int32_t kerf_network_backend(const KerfNetwork *network) { return network->backend; }

KERF_EXPORT int32_t kerf_network_run(KerfNetwork *network) {
  return kerf_run(network->backend, network->steps, network->num_steps, 0);
}

KERF_EXPORT int32_t kerf_network_run_on_team(KerfNetwork *network, KerfTeam *team) {
  return kerf_run(network->backend, network->steps, network->num_steps, team);
}

// --- for those who write images, and for planners --------------------------------------------------------------------

// What the checksum field of an image must hold.
KERF_EXPORT uint64_t kerf_image_checksum(const void *data, uint64_t data_bytes) {
  if (!data || data_bytes < FIRST_SUMMED_BYTE) return 0;
  return checksum((const unsigned char *)data + FIRST_SUMMED_BYTE, data_bytes - FIRST_SUMMED_BYTE);
}
