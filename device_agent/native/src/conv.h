// The inner loops of the sparse convolution: a register tile of G output channels x P vectors of VL positions.
//
// An entry is an offset into the input (input channel, kernel position and padding folded in) and G weights. Each output
// is one chain of fused multiply-adds in entry order, started from bias plus residual. So the tile's shape changes the
// speed and never the bits of the result.
#ifndef KERF_CONV_H
#define KERF_CONV_H

#include "kerf_native.h"
#include "vec.h"

namespace {

// Row groups [first, last) of `step` at P vectors of flattened positions from `position` on.
template <int VL, int G, int P> static void conv_tile(const KerfStep &step, int position, int first, int last) {
  typedef typename Vec<VL>::Float Float;
  const float *__restrict input = step.input + position;
  const uint32_t *__restrict mask = step.mask + position;
  const int32_t *__restrict starts = step.group_starts;
  const Float lower = splat<VL>(step.lower), upper = splat<VL>(step.upper);
  for (int group = first; group < last; group++) {
    const int channel = step.group_channels[group];
    const float *bias = step.bias + channel;
    Float sum[G][P];
    if (step.second) {
      const float *second = step.second + channel * step.second_plane + position;
      KERF_UNROLL for (int g = 0; g < G; g++)
        KERF_UNROLL for (int p = 0; p < P; p++) sum[g][p] = load<VL>(second + g * step.second_plane + p * VL) + bias[g];
    } else {
      KERF_UNROLL for (int g = 0; g < G; g++) {
        const Float start = splat<VL>(bias[g]);
        KERF_UNROLL for (int p = 0; p < P; p++) sum[g][p] = start;
      }
    }
    const int32_t *__restrict offset = step.offsets + starts[group];
    const int32_t *const end = step.offsets + starts[group + 1];
    const float *__restrict weight = step.weights + (int64_t)starts[group] * G;
    for (; offset != end; offset++, weight += G) {
      const float *x = input + *offset;
      Float values[P];
      KERF_UNROLL for (int p = 0; p < P; p++) values[p] = load<VL>(x + p * VL);
      KERF_UNROLL for (int g = 0; g < G; g++) {
        const Float w = splat<VL>(weight[g]);
        KERF_UNROLL for (int p = 0; p < P; p++) sum[g][p] += values[p] * w;
      }
    }
    float *output = step.output + channel * step.output_plane + position;
    KERF_UNROLL for (int p = 0; p < P; p++)
      KERF_UNROLL for (int g = 0; g < G; g++)
        store<VL>(output + g * step.output_plane + p * VL, keep<VL>(clamp<VL>(sum[g][p], lower, upper), mask + p * VL));
  }
}

typedef void (*ConvTile)(const KerfStep &, int, int, int);

// The tiles of P = 1..MAX vectors, by index P.
template <int VL, int G, int MAX> struct Tiles {
  ConvTile by_vectors[MAX + 1];
  template <int P> constexpr void fill() {
    by_vectors[P] = conv_tile<VL, G, P>;
    if constexpr (P > 1) fill<P - 1>();
  }
  constexpr Tiles() : by_vectors{} { fill<MAX>(); }
};

// The most vectors that leave registers for G weights beside G * P sums. Wider tiles would spill.
constexpr int tile_limit(int group_size) {
  return group_size == 4 ? (KERF_NUM_REGISTERS == 32 ? 7 : 3)
         : group_size == 2 ? (KERF_NUM_REGISTERS == 32 ? 10 : 5)
                           : (KERF_NUM_REGISTERS == 32 ? 14 : 8);
}

template <int VL> struct TileSet {
  static constexpr Tiles<VL, 1, tile_limit(1)> one{};
  static constexpr Tiles<VL, 2, tile_limit(2)> two{};
  static constexpr Tiles<VL, 4, tile_limit(4)> four{};
};

template <int VL> static const ConvTile *tiles_of(int group_size) {
  switch (group_size) {
    case 1: return TileSet<VL>::one.by_vectors;
    case 2: return TileSet<VL>::two.by_vectors;
    case 4: return TileSet<VL>::four.by_vectors;
    default: return 0;
  }
}

static const ConvTile *find_tiles(int vector_length, int group_size) {
  switch (vector_length) {
    case 4: return tiles_of<4>(group_size);
#if KERF_MAX_VECTOR_LENGTH >= 8
    case 8: return tiles_of<8>(group_size);
#endif
#if KERF_MAX_VECTOR_LENGTH >= 16
    case 16: return tiles_of<16>(group_size);
#endif
    default: return 0;
  }
}

static int32_t max_vectors(int32_t vector_length, int32_t group_size) {
  return find_tiles(vector_length, group_size) ? tile_limit(group_size) : 0;
}

// The row groups that are share `part` of `parts`, by number of entries: groups differ in how many they have.
static Share share_of_groups(const KerfStep &step, int part, int parts) {
  if (parts == 1) return {0, step.num_groups};
  int border[2];
  for (int side = 0; side < 2; side++) {
    // The constant stands for what a group costs without entries.
    const int64_t total = step.group_starts[step.num_groups] + 4 * (int64_t)step.num_groups;
    const int64_t wanted = total * (part + side) / parts;
    int group = 0;
    while (group < step.num_groups && step.group_starts[group] + 4 * (int64_t)group < wanted) group++;
    border[side] = group;
  }
  return {border[0], border[1]};
}

// Positions are cut into tiles of nearly equal width, so that no short rest is left over.
static bool conv(const KerfStep &step, int part, int parts) {
  const ConvTile *tiles = find_tiles(step.vector_length, step.group_size);
  if (!tiles || step.max_vectors < 1 || step.max_vectors > tile_limit(step.group_size)) return false;
  const int all_vectors = (step.positions + step.vector_length - 1) / step.vector_length;
  // Threads share positions where there are enough, as share_of_planes has it, and else row groups.
  const bool by_position = are_rows_shared(all_vectors, parts);
  const Share share = by_position ? Share{0, step.num_groups} : share_of_groups(step, part, parts);
  const Share vectors_share = by_position ? share_of(all_vectors, part, parts) : Share{0, all_vectors};
  const int first_position = vectors_share.first * step.vector_length;
  const int num_vectors = vectors_share.last - vectors_share.first;
  const int num_tiles = (num_vectors + step.max_vectors - 1) / step.max_vectors;
  const int base = num_vectors / num_tiles, wider = num_vectors % num_tiles;
  if (step.groups_outer) {
    for (int group = share.first; group < share.last; group++) {
      int position = first_position;
      for (int tile = 0; tile < num_tiles; tile++) {
        const int vectors = base + (tile < wider);
        tiles[vectors](step, position, group, group + 1);
        position += vectors * step.vector_length;
      }
    }
  } else {
    int position = first_position;
    for (int tile = 0; tile < num_tiles; tile++) {
      const int vectors = base + (tile < wider);
      tiles[vectors](step, position, share.first, share.last);
      position += vectors * step.vector_length;
    }
  }
  return true;
}

}  // namespace

#endif
