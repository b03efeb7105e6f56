// The sparse convolution: which tiles are computed in which order, and from where. conv_tile.h computes one tile.
//
// A span is a range of output positions whose input is read, or packed, for one chunk of input channels after the other.
#ifndef KERF_CONV_H
#define KERF_CONV_H

#include "conv_pack.h"
#include "conv_strips.h"
#include "conv_tile.h"
#include "kerf_native.h"
#include "vec.h"

namespace {

// Vectors cut into tiles of nearly equal width, so that no short rest is left over.
struct ConvCut {
  int num_tiles, base, wider;
};

static ConvCut cut_vectors(int num_units, int max_units) {
  const int num_tiles = (num_units + max_units - 1) / max_units;
  return {num_tiles, num_units / num_tiles, num_units % num_tiles};
}

struct ConvSpan {
  const float *input;     // the span's first position at offset 0
  int64_t input_row;      // spans of rows: from row to row
  int64_t output;         // element of the output plane of the first position
  const uint32_t *mask;   // of the first position, or null
  int num_positions;      // spans of contiguous vectors
  int num_rows;           // spans of rows, each of row_vectors vectors
  int row_vectors;        // 0 for contiguous vectors
  int last_lanes;         // spans of rows: of the last vector of each row
};

// The kind of tile for the positions beyond whole vectors, see RestOf; 0 where they are computed as a whole vector.
static int rest_of_span(const KerfStep &step, const ConvSpan &span) {
  const int rest = span.num_positions % step.vector_length;
  if (rest == 0 || span.row_vectors || step.group_size != 4 || span.num_positions < step.vector_length) return 0;
  // Tiles of rests have no mask: the positions must all lie in the last row.
  if (span.mask && rest > step.output_w) return 0;
  if (rest == 1) return 1;
  return step.vector_length == 16 && rest <= KERF_MAX_REST ? (rest + 3) / 4 * 4 : 0;
}

// The tiles of a span, each of which adds one chunk of some row groups.
struct ConvTiles {
  const KerfStep &step;
  const ConvSpan &span;
  int rest;
  ConvCut cut;
  const ConvTile *tiles, *rest_tiles;

  ConvTiles(const KerfStep &step, const ConvSpan &span) : step(step), span(span) {
    const int VL = step.vector_length, row_vectors = span.row_vectors;
    rest = rest_of_span(step, span);
    tiles = find_tiles(VL, step.group_size, row_vectors, 0);
    rest_tiles = find_tiles(VL, step.group_size, 0, rest);
    const int max_rows = row_vectors && step.max_vectors > row_vectors ? step.max_vectors / row_vectors : 1;
    cut = row_vectors ? cut_vectors(span.num_rows, max_rows)
                      : cut_vectors(rest ? span.num_positions / VL : (span.num_positions + VL - 1) / VL, step.max_vectors);
  }

  void run(int tile, int chunk, int first_group, int last_group) const {
    const int VL = step.vector_length, row_vectors = span.row_vectors;
    const int begin = tile * cut.base + (tile < cut.wider ? tile : cut.wider);
    const int units = cut.base + (tile < cut.wider);
    const bool is_last = tile == cut.num_tiles - 1;
    ConvVisit visit;
    visit.chunk = chunk;
    visit.input_row = span.input_row;
    visit.mask = 0;
    if (row_vectors) {
      visit.input = span.input + begin * span.input_row;
      visit.output = span.output + (int64_t)begin * step.output_row;
      visit.last_lanes = span.last_lanes;
      tiles[units * row_vectors](step, visit, first_group, last_group);
      return;
    }
    const int position = begin * VL;
    visit.input = span.input + position;
    visit.output = span.output + position;
    if (span.mask) visit.mask = span.mask + position;
    const int left = span.num_positions - position;
    if (rest && is_last) {
      visit.last_lanes = left - units * VL;
      rest_tiles[units](step, visit, first_group, last_group);
    } else {
      visit.last_lanes = left >= units * VL ? VL : left - (units - 1) * VL;
      tiles[units](step, visit, first_group, last_group);
    }
  }
};

// The chunks `chunks` of the row groups `groups` for the tiles `share`, a block of tiles after the other.
static void run_tiles(const ConvTiles &tiles, Share share, Share chunks, Share groups) {
  const int wanted = tiles.step.block_tiles, all = share.last - share.first;
  const int most = wanted > 0 && wanted < all ? wanted : all;
  for (int first = share.first; first < share.last; first += most) {
    const int last = first + most < share.last ? first + most : share.last;
    for (int chunk = chunks.first; chunk < chunks.last; chunk++) {
      if (last - first == 1) {
        tiles.run(first, chunk, groups.first, groups.last);
        continue;
      }
      for (int group = groups.first; group < groups.last; group++)
        for (int tile = first; tile < last; tile++) tiles.run(tile, chunk, group, group + 1);
    }
  }
}

static void run_span(const KerfStep &step, const ConvSpan &span, int chunk, Share groups) {
  const ConvTiles tiles(step, span);
  run_tiles(tiles, {0, tiles.cut.num_tiles}, {chunk, chunk + 1}, groups);
}

static int last_lanes_of_rows(const KerfStep &step) {
  return step.output_w - (step.row_vectors - 1) * step.vector_length;
}

// Whether there are tiles that hold `row_vectors` vectors in each row.
static bool has_row_tiles(const KerfStep &step, int row_vectors) {
  return row_vectors <= step.max_vectors && find_tiles(step.vector_length, step.group_size, row_vectors, 0);
}

// Rows without tiles that hold whole rows, such as long ones: tiles lie inside of a row, so each row is a span.
static void run_rows(const KerfStep &step, const ConvSpan &rows, int chunk, Share groups) {
  ConvSpan row = {};
  row.num_positions = step.output_w;
  for (int y = 0; y < rows.num_rows; y++) {
    row.input = rows.input + y * rows.input_row;
    row.output = rows.output + (int64_t)y * step.output_row;
    run_span(step, row, chunk, groups);
  }
}

// The row groups that are share `part` of `parts`, by number of entries: groups differ in how many they have.
static Share share_of_groups(const KerfStep &step, int part, int parts) {
  if (parts == 1) return {0, step.num_groups};
  int border[2];
  for (int side = 0; side < 2; side++) {
    // The constant stands for what a group costs without entries.
    const int64_t total = step.group_starts[(int64_t)step.num_groups * step.num_chunks] + 4 * (int64_t)step.num_groups;
    const int64_t wanted = total * (part + side) / parts;
    int group = 0;
    while (group < step.num_groups &&
           step.group_starts[(int64_t)group * step.num_chunks] + 4 * (int64_t)group < wanted)
      group++;
    border[side] = group;
  }
  return {border[0], border[1]};
}

// Threads share positions where there are enough, as share_of_planes has it, and else row groups.
static void conv_direct(const KerfStep &step, int part, int parts) {
  ConvSpan span = {};
  span.input = step.input;
  span.input_row = step.input_row;
  if (step.row_vectors == 0) {
    span.mask = step.mask;
    span.num_positions = step.positions;
  } else if (has_row_tiles(step, step.row_vectors)) {
    span.row_vectors = step.row_vectors;
    span.num_rows = step.output_h;
    span.last_lanes = last_lanes_of_rows(step);
  } else {
    const bool by_row = are_rows_shared(step.output_h, parts);
    const Share rows = by_row ? share_of(step.output_h, part, parts) : Share{0, step.output_h};
    const Share groups = by_row ? Share{0, step.num_groups} : share_of_groups(step, part, parts);
    span.input += rows.first * span.input_row;
    span.output = (int64_t)rows.first * step.output_row;
    span.num_rows = rows.last - rows.first;
    for (int chunk = 0; chunk < step.num_chunks; chunk++) run_rows(step, span, chunk, groups);
    return;
  }
  const ConvTiles tiles(step, span);
  const bool by_tile = are_rows_shared(tiles.cut.num_tiles, parts);
  const Share share = by_tile ? share_of(tiles.cut.num_tiles, part, parts) : Share{0, tiles.cut.num_tiles};
  const Share groups = by_tile ? Share{0, step.num_groups} : share_of_groups(step, part, parts);
  run_tiles(tiles, share, {0, step.num_chunks}, groups);
}

static void conv_packed(const KerfStep &step, Share groups, Share blocks, float *scratch) {
  ConvSpan span = {};
  span.input_row = step.pack_row;
  span.row_vectors = step.row_vectors;
  span.last_lanes = step.row_vectors ? last_lanes_of_rows(step) : 0;
  for (int block = blocks.first; block < blocks.last; block++) {
    const int first_row = block * step.pack_rows;
    const int num_rows = first_row + step.pack_rows <= step.output_h ? step.pack_rows : step.output_h - first_row;
    span.output = (int64_t)first_row * step.output_row;
    span.num_rows = num_rows;
    span.num_positions = (num_rows - 1) * step.pack_row + step.output_w;
    span.mask = step.mask ? step.mask + span.output : 0;
    for (int chunk = 0; chunk < step.num_chunks; chunk++) {
      const int first = chunk * step.chunk_channels;
      const int count = first + step.chunk_channels <= step.channels ? step.chunk_channels : step.channels - first;
      pack_channels(step, first, count, first_row, num_rows, scratch);
      span.input = scratch - (int64_t)first * step.pack_plane;
      if (has_row_tiles(step, step.row_vectors)) run_span(step, span, chunk, groups);
      else run_rows(step, span, chunk, groups);
    }
  }
}

static int32_t max_vectors(int32_t vector_length, int32_t group_size) {
  return find_tiles(vector_length, group_size, 0, 0) ? tile_limit(group_size) : 0;
}

static bool conv(const KerfStep &step, int part, int parts) {
  if (step.row_blocks) return conv_strips(step, part, parts);
  const int limit = max_vectors(step.vector_length, step.group_size);
  if (step.max_vectors < 1 || step.max_vectors > limit || step.num_chunks < 1) return false;
  if (step.pack_rows == 0) {
    conv_direct(step, part, parts);
    return true;
  }
  if (part >= step.pack_parts) return true;
  parts = parts < step.pack_parts ? parts : step.pack_parts;
  // Blocks of rows share nothing; with too few of them to go around, each thread packs for its own groups.
  const int num_blocks = (step.output_h + step.pack_rows - 1) / step.pack_rows;
  float *scratch = step.scratch + (int64_t)part * step.scratch_size;
  if (num_blocks >= 4 * parts) conv_packed(step, {0, step.num_groups}, share_of(num_blocks, part, parts), scratch);
  else conv_packed(step, share_of_groups(step, part, parts), {0, num_blocks}, scratch);
  return true;
}

}  // namespace

#endif
