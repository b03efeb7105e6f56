// Every field of KerfStep in order, by type. From this list come the records of a program image and the check that
// library.py describes the same structure. A new field of KerfStep that is not here does not compile.
#ifndef KERF_STEP_FIELDS_H
#define KERF_STEP_FIELDS_H

#include <stddef.h>

#include "kerf_native.h"

// I: int32_t, F: float, L: int64_t, P: pointer.
#define KERF_STEP_FIELDS(I, F, L, P)                                                                                   \
  I(kind) I(channels) I(outputs) I(input_h) I(input_w) I(input_row) I(output_h) I(output_w) I(output_row) I(kernel_h)  \
  I(kernel_w) I(stride) I(padding) I(positions) I(num_phases) I(num_groups) I(group_size) I(vector_length)             \
  I(max_vectors) I(block_tiles) F(lower) F(upper) F(scale) I(scratch_size) I(max_parts) I(row_blocks)                  \
  P(input) P(second) P(output) P(scratch)                                                                              \
  L(input_plane) L(second_plane) L(output_plane)                                                                       \
  P(mask) P(bias) P(phases) P(group_channels) P(group_starts) P(offsets) P(weights)                                    \
  I(winograd_size) I(winograd_rows) I(winograd_outputs_in_lanes) I(winograd_outputs) I(winograd_tiles)                 \
  I(winograd_parts) I(num_chunks) I(chunk_channels) I(row_vectors) I(pack_rows) I(pack_row) I(pack_plane)              \
  I(pack_parts) I(num_copies) P(copies) P(pack_mask)

namespace {

struct StepField {
  uint16_t offset;  // in KerfStep
  char type;        // 'I', 'F', 'L' or 'P'
};

#define KERF_FIELD_I(name) {(uint16_t)offsetof(KerfStep, name), 'I'},
#define KERF_FIELD_F(name) {(uint16_t)offsetof(KerfStep, name), 'F'},
#define KERF_FIELD_L(name) {(uint16_t)offsetof(KerfStep, name), 'L'},
#define KERF_FIELD_P(name) {(uint16_t)offsetof(KerfStep, name), 'P'},
constexpr StepField STEP_FIELDS[] = {KERF_STEP_FIELDS(KERF_FIELD_I, KERF_FIELD_F, KERF_FIELD_L, KERF_FIELD_P)};
constexpr int NUM_STEP_FIELDS = sizeof(STEP_FIELDS) / sizeof(STEP_FIELDS[0]);

// In an image every pointer takes 8 bytes.
constexpr uint32_t field_bytes(char type) { return type == 'I' || type == 'F' ? 4 : 8; }
constexpr uint32_t step_record_bytes() {
  uint32_t sum = 0;
  for (const StepField &field : STEP_FIELDS) sum += field_bytes(field.type);
  return sum;
}
constexpr uint32_t STEP_RECORD_BYTES = step_record_bytes();

static_assert(sizeof(void *) != 8 || STEP_RECORD_BYTES == sizeof(KerfStep),
              "KERF_STEP_FIELDS and KerfStep differ: add the new field to the list, in order and without padding");

}  // namespace

#endif
