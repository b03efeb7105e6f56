// How blocks of Winograd's algorithm use scratch memory: for the kernel, and for the check of steps from elsewhere.
#ifndef KERF_WINOGRAD_BLOCK_H
#define KERF_WINOGRAD_BLOCK_H

#include "kerf_native.h"

namespace {

// Output channels in a block of U, and the step of all strides in scratch memory.
enum { WINOGRAD_BLOCK = 16 };

// A point of a group of channels takes about this much, a quarter of a page.
enum { GROUP_ELEMENTS = 256 };

constexpr int64_t round_up(int64_t count, int step) { return (count + step - 1) / step * step; }

// The longest vector in which a row of tiles is transformed: vectors do not reach far beyond its end.
constexpr int longest_vector(int tiles_x) { return tiles_x <= 4 ? 4 : tiles_x <= 8 ? 8 : 16; }

// How one part of a step uses its scratch memory. Tile t of the block is row t / tiles_x, column t % tiles_x.
//
// V is [groups of channels][points][channels of the group][tiles], as a channel is written to all points at once: its
// 16 or 36 places must not be on more pages than the processor can write to without looking them up. M is
// [points][output channels][tiles], or [points][tiles][output channels].
struct WinogradBlock {
  int points;          // of both dimensions
  int tiles_x;         // tiles in a row
  int outputs;         // output channels of a pass
  int group_channels;  // channels in a group of V
  // Elements between neighbouring channels of a group (and of M with tiles in lanes), between the points of V and of M,
  // and between the groups. An odd number of cache lines is between points, which else would meet in few sets.
  int64_t pitch, input_point, product_point, group;
  int64_t row_pitch;  // elements of an input row, transformed in the vertical direction
  int num_groups;
  int first_row, num_rows;  // rows of tiles
  float *input, *product, *rows, *zeros;

  WinogradBlock(const KerfStep &step) {
    const int size = step.winograd_size;
    points = (size + 2) * (size + 2);
    tiles_x = (step.output_w + size - 1) / size;
    // Vectors of tiles reach past the end of a row; the next row overwrites that.
    const int64_t row = round_up(tiles_x, longest_vector(tiles_x));
    pitch = round_up((step.winograd_rows - 1) * (int64_t)tiles_x + row, step.winograd_outputs_in_lanes ? 4 : 16);
    outputs = step.winograd_outputs < WINOGRAD_BLOCK ? (int)WINOGRAD_BLOCK : step.winograd_outputs;
    row_pitch = (int64_t)(size + 1) * row + 2 * WINOGRAD_BLOCK;
    group_channels = 16;
    while (group_channels > 1 && group_channels * pitch > GROUP_ELEMENTS) group_channels /= 2;
    num_groups = (step.channels + group_channels - 1) / group_channels;
    input_point = round_up(group_channels * pitch, 32) + WINOGRAD_BLOCK;
    product_point = round_up(outputs * pitch, 32) + WINOGRAD_BLOCK;
    group = points * input_point;
    first_row = num_rows = 0;
    input = product = rows = zeros = 0;
  }

  int64_t scratch_size() const {
    return num_groups * group + points * product_point + 8 * row_pitch;
  }

  void place(float *scratch) {
    input = scratch;
    product = input + num_groups * group;
    rows = product + points * product_point;
    zeros = rows + 7 * row_pitch;
  }
};

// Whether the step's tile and scratch memory fit each other.
inline bool has_winograd_scratch(const KerfStep &step) {
  if (step.winograd_size != 2 && step.winograd_size != 4) return false;
  if (step.winograd_rows < 1 || step.winograd_rows > step.output_h || step.winograd_parts < 1) return false;
  const WinogradBlock block(step);
  if (round_up(step.outputs, WINOGRAD_BLOCK) % block.outputs != 0) return false;
  // The pitch first: then the whole size does not overflow.
  return block.pitch <= step.scratch_size && block.scratch_size() <= step.scratch_size;
}

}  // namespace

#endif
