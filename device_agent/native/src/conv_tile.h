// The inner loops of the sparse convolution: a register tile of G output channels x P vectors of VL positions.
//
// An entry is an offset into the input (input channel, kernel position and padding folded in) and G weights. Each output
// is one chain of fused multiply-adds in entry order, started from bias plus residual. Between chunks of input channels
// the partial sums wait in the output. So neither the tile's shape nor the chunks change the bits of the result.
#ifndef KERF_CONV_TILE_H
#define KERF_CONV_TILE_H

#include "kerf_native.h"
#include "vec.h"

namespace {

// One visit of a tile: where it reads and writes, and which part of the entries it adds.
struct ConvVisit {
  const float *input;      // the tile's first position at offset 0
  int64_t input_row;       // tiles of rows: from one row of vectors to the next
  int64_t output;          // element of the output plane that the first position belongs to
  const uint32_t *mask;    // of the tile's first position, or null: without it, nothing but whole images is written
  int last_lanes;          // elements of the last vector (tiles of rows: of each row) that are inside the image
  int chunk;               // which chunk of input channels: partial sums are loaded unless it is the first one
};

// Where vector p of a tile is: contiguous if ROW is 0, else ROW vectors side by side in each row.
template <int VL, int ROW> KERF_INLINE int64_t place_of(int p, int64_t row) {
  return ROW == 0 ? (int64_t)p * VL : (p / (ROW ? ROW : 1)) * row + (p % (ROW ? ROW : 1)) * VL;
}

// The positions that do not fill a vector, where four output channels share the entries. REST = 1: one position, its
// channels side by side in one vector of 4. REST = 4 or 8: up to so many positions, four of them of four channels in each
// vector of 16. REST = 0: none.
#if defined(__AVX512F__)
#define KERF_MAX_REST 8
#else
#define KERF_MAX_REST 1
#endif

template <int REST> struct RestOf {
  static constexpr int VL = REST > 1 ? 16 : 4, COUNT = REST > 1 ? REST / 4 : 1;
  typename Vec<VL>::Float sum[COUNT];

};

template <int REST> KERF_INLINE void add_rest(RestOf<REST> &rest, const float *x, const float *weight) {
  if constexpr (REST == 1) rest.sum[0] += load<4>(weight) * splat<4>(*x);
#if KERF_MAX_REST > 1
  // Intrinsics, as gcc 12 builds these two vectors through memory.
  if constexpr (REST > 1) {
    const __m512i each_four_times = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
    const __m512 w = _mm512_permutexvar_ps(each_four_times, _mm512_castps128_ps512((__m128)load<4>(weight)));
    KERF_UNROLL for (int i = 0; i < REST / 4; i++)
      rest.sum[i] += (Vec<16>::Float)w * (Vec<16>::Float)_mm512_broadcast_f32x4((__m128)load<4>(x + 4 * i));
  }
#endif
}

// The sums of the rest as they begin. `begun` is where channel 0, position 0 of what is in memory already is, or null;
// `count` positions.
template <int REST>
KERF_INLINE void start_rest(const float *begun, int64_t plane, const float *bias, int count, RestOf<REST> &rest) {
  if constexpr (REST == 1) {
    rest.sum[0] = load<4>(bias);
    if (begun) rest.sum[0] = Vec<4>::Float{begun[0], begun[plane], begun[2 * plane], begun[3 * plane]};
  }
#if KERF_MAX_REST > 1
  if constexpr (REST > 1) {
    KERF_UNROLL for (int i = 0; i < REST / 4; i++) {
      const int lanes = i < REST / 4 - 1 ? 4 : count - 4 * i;
      __m512 sum = _mm512_setzero_ps();
#define KERF_PLACE(g) \
  sum = _mm512_insertf32x4(sum, (__m128)(begun ? load_first<4>(begun + g * plane + 4 * i, lanes) : splat<4>(bias[g])), g)
      KERF_PLACE(0);
      KERF_PLACE(1);
      KERF_PLACE(2);
      KERF_PLACE(3);
#undef KERF_PLACE
      rest.sum[i] = (Vec<16>::Float)sum;
    }
  }
#endif
}

// Adds the bias to sums that began with a residual.
template <int REST> KERF_INLINE void add_bias(const float *bias, RestOf<REST> &rest) {
  if constexpr (REST == 1) rest.sum[0] += load<4>(bias);
#if KERF_MAX_REST > 1
  if constexpr (REST > 1) {
    RestOf<REST> biases;
    start_rest<REST>(0, 0, bias, REST, biases);
    KERF_UNROLL for (int i = 0; i < REST / 4; i++) rest.sum[i] += biases.sum[i];
  }
#endif
}

template <int REST>
KERF_INLINE void clamp_rest(float lower, float upper, RestOf<REST> &rest) {
  constexpr int VL = RestOf<REST>::VL;
  for (int i = 0; i < RestOf<REST>::COUNT; i++) rest.sum[i] = clamp<VL>(rest.sum[i], splat<VL>(lower), splat<VL>(upper));
}

template <int REST> KERF_INLINE void store_rest(float *output, int64_t plane, int count, const RestOf<REST> &rest) {
  if constexpr (REST == 1) {
    KERF_UNROLL for (int g = 0; g < 4; g++) output[g * plane] = rest.sum[0][g];
  }
#if KERF_MAX_REST > 1
  if constexpr (REST > 1) {
    KERF_UNROLL for (int i = 0; i < REST / 4; i++) {
      const int lanes = i < REST / 4 - 1 ? 4 : count - 4 * i;
      const __m512 sum = (__m512)rest.sum[i];
      store_first<4>(output + 4 * i, (Vec<4>::Float)_mm512_extractf32x4_ps(sum, 0), lanes);
      store_first<4>(output + plane + 4 * i, (Vec<4>::Float)_mm512_extractf32x4_ps(sum, 1), lanes);
      store_first<4>(output + 2 * plane + 4 * i, (Vec<4>::Float)_mm512_extractf32x4_ps(sum, 2), lanes);
      store_first<4>(output + 3 * plane + 4 * i, (Vec<4>::Float)_mm512_extractf32x4_ps(sum, 3), lanes);
    }
  }
#endif
}

// Loads and stores of G x P vectors, of which the last one of each row (ROW = 0: of all) has `lanes` elements.
template <int VL, int P, int ROW> KERF_INLINE bool is_row_end(int p) {
  return ROW == 0 ? p == P - 1 : p % (ROW ? ROW : 1) == ROW - 1;
}

template <int VL, int G, int P, int ROW>
KERF_INLINE void load_sums(const float *base, int64_t plane, int64_t row, int lanes,
                           typename Vec<VL>::Float (&sum)[G][P]) {
  KERF_UNROLL for (int g = 0; g < G; g++)
    KERF_UNROLL for (int p = 0; p < P; p++) {
      const float *from = base + g * plane + place_of<VL, ROW>(p, row);
      sum[g][p] = is_row_end<VL, P, ROW>(p) ? load_first<VL>(from, lanes) : load<VL>(from);
    }
}

template <int VL, int G, int P, int ROW>
KERF_INLINE void store_sums(float *base, int64_t plane, int64_t row, int lanes,
                            const typename Vec<VL>::Float (&sum)[G][P]) {
  KERF_UNROLL for (int p = 0; p < P; p++)
    KERF_UNROLL for (int g = 0; g < G; g++) {
      float *to = base + g * plane + place_of<VL, ROW>(p, row);
      if (is_row_end<VL, P, ROW>(p)) store_first<VL>(to, sum[g][p], lanes);
      else store<VL>(to, sum[g][p]);
    }
}

// Adds the entries of one chunk of the row groups [first, last) to one tile.
template <int VL, int G, int P, int ROW, int REST>
static void conv_tile(const KerfStep &step, const ConvVisit &visit, int first, int last) {
  typedef typename Vec<VL>::Float Float;
  // With all inputs of an entry in registers, weights are broadcast one by one; else the other way around.
  constexpr bool HOLDS_INPUTS = G * P + P + 1 + (REST > 1 ? 2 + REST / 4 : REST) <= KERF_NUM_REGISTERS;
  const bool is_last = visit.chunk == step.num_chunks - 1;
  const int lanes = REST ? VL : visit.last_lanes;
  const Float lower = splat<VL>(step.lower), upper = splat<VL>(step.upper);
  const bool has_upper = step.upper < __builtin_inff();
  for (int group = first; group < last; group++) {
    const int channel = step.group_channels[group];
    float *const output = step.output + channel * step.output_plane + visit.output;
    Float sum[G][P];
    RestOf<REST> rest;
    // Sums begin with what is in memory already (partial sums, or the residual) or with nothing but the bias.
    const float *const begun = visit.chunk > 0 ? output
                               : step.second   ? step.second + channel * step.second_plane + visit.output
                                               : 0;
    if (begun) {
      const int64_t plane = visit.chunk > 0 ? step.output_plane : step.second_plane;
      load_sums<VL, G, P, ROW>(begun, plane, step.output_row, lanes, sum);
      if constexpr (REST != 0) start_rest<REST>(begun + P * VL, plane, step.bias + channel, visit.last_lanes, rest);
      if (visit.chunk == 0) {
        KERF_UNROLL for (int g = 0; g < G; g++)
          KERF_UNROLL for (int p = 0; p < P; p++) sum[g][p] += step.bias[channel + g];
        if constexpr (REST != 0) add_bias<REST>(step.bias + channel, rest);
      }
    } else {
      KERF_UNROLL for (int g = 0; g < G; g++) {
        const Float bias = splat<VL>(step.bias[channel + g]);
        KERF_UNROLL for (int p = 0; p < P; p++) sum[g][p] = bias;
      }
      if constexpr (REST != 0) start_rest<REST>(0, 0, step.bias + channel, visit.last_lanes, rest);
    }

    if (step.num_chunks > 1 && group + 1 < last) {
      // The sums of the next group, too.
      const float *next = step.output + step.group_channels[group + 1] * step.output_plane + visit.output;
      KERF_UNROLL for (int g = 0; g < G; g++)
        KERF_UNROLL for (int p = 0; p < P; p++)
          __builtin_prefetch(next + g * step.output_plane + place_of<VL, ROW>(p, step.output_row), 1);
    }
    const int32_t *const starts = step.group_starts + (int64_t)group * step.num_chunks + visit.chunk;
    const int32_t *__restrict offset = step.offsets + starts[0];
    const int32_t *const end = step.offsets + starts[1];
    const float *__restrict weight = step.weights + (int64_t)starts[0] * G;
    // The entries of the next group are on their way while these are used.
    const int64_t ahead = group + 1 < step.num_groups ? starts[step.num_chunks] - starts[0] : 0;
    for (; offset != end; offset++, weight += G) {
      const float *x = visit.input + *offset;
      // Single filters have no load to spare.
      if (G > 1) __builtin_prefetch(weight + ahead * G);
      if (G > 1) __builtin_prefetch(offset + ahead);
      if constexpr (HOLDS_INPUTS) {
        Float values[P];
        KERF_UNROLL for (int p = 0; p < P; p++) values[p] = load<VL>(x + place_of<VL, ROW>(p, visit.input_row));
        KERF_UNROLL for (int g = 0; g < G; g++) {
          const Float w = splat<VL>(weight[g]);
          KERF_UNROLL for (int p = 0; p < P; p++) sum[g][p] += values[p] * w;
        }
      } else {
        Float w[G];
        KERF_UNROLL for (int g = 0; g < G; g++) {
          w[g] = splat<VL>(weight[g]);
          if (G > 1) KERF_IN_REGISTER(w[g]);
        }
        KERF_UNROLL for (int p = 0; p < P; p++) {
          Float value = load<VL>(x + place_of<VL, ROW>(p, visit.input_row));
          if (G > 1) KERF_IN_REGISTER(value);
          KERF_UNROLL for (int g = 0; g < G; g++) sum[g][p] += value * w[g];
        }
      }
      if constexpr (REST != 0) add_rest<REST>(rest, x + P * VL, weight);
    }

    if (is_last) {
      KERF_UNROLL for (int p = 0; p < P; p++)
        KERF_UNROLL for (int g = 0; g < G; g++) sum[g][p] = lower > sum[g][p] ? lower : sum[g][p];
      if (has_upper) {
        KERF_UNROLL for (int p = 0; p < P; p++)
          KERF_UNROLL for (int g = 0; g < G; g++) sum[g][p] = upper < sum[g][p] ? upper : sum[g][p];
      }
      if constexpr (REST != 0) clamp_rest<REST>(step.lower, step.upper, rest);
      if (ROW == 0 && visit.mask) {
        KERF_UNROLL for (int p = 0; p < P; p++)
          KERF_UNROLL for (int g = 0; g < G; g++) sum[g][p] = keep<VL>(sum[g][p], visit.mask + p * VL);
      }
    }
    store_sums<VL, G, P, ROW>(output, step.output_plane, step.output_row, lanes, sum);
    if constexpr (REST != 0) store_rest<REST>(output + P * VL, step.output_plane, visit.last_lanes, rest);
  }
}

typedef void (*ConvTile)(const KerfStep &, const ConvVisit &, int first, int last);

constexpr int CONV_MAX_VECTORS = 14;

// The tiles of P = 1..MAX vectors, by index P; null where P does not fill whole rows.
template <int VL, int G, int MAX, int ROW, int REST> struct Tiles {
  ConvTile by_vectors[CONV_MAX_VECTORS + 1];
  template <int P> constexpr void fill() {
    if constexpr (ROW == 0 || P % (ROW ? ROW : 1) == 0) by_vectors[P] = conv_tile<VL, G, P, ROW, REST>;
    if constexpr (P > 1) fill<P - 1>();
  }
  constexpr Tiles() : by_vectors{} { fill<MAX>(); }
};

// The most vectors of a tile: sums, and registers for one vector of inputs and the weights or the other way around.
constexpr int tile_limit(int group_size) {
  return group_size == 4 ? (KERF_NUM_REGISTERS == 32 ? 7 : 3)
         : group_size == 2 ? (KERF_NUM_REGISTERS == 32 ? 10 : 6)
                           : (KERF_NUM_REGISTERS == 32 ? 14 : 12);
}

// The tiles of one kind. Vectors shorter than the longest are there for few positions, which lie in flat tiles.
template <int VL, int G> static const ConvTile *tiles_of(int row_vectors, int rest) {
  constexpr int MAX = tile_limit(G);
  constexpr bool IS_LONGEST = VL == KERF_MAX_VECTOR_LENGTH;
  if constexpr (G == 4) {
    if (row_vectors == 0 && rest == 1) {
      static constexpr Tiles<VL, G, MAX, 0, 1> tiles{};
      return tiles.by_vectors;
    }
#if KERF_MAX_REST > 1
    if constexpr (VL == 16) {
      if (row_vectors == 0 && rest == 4) {
        static constexpr Tiles<VL, G, MAX, 0, 4> tiles{};
        return tiles.by_vectors;
      }
      if (row_vectors == 0 && rest == 8) {
        static constexpr Tiles<VL, G, MAX, 0, 8> tiles{};
        return tiles.by_vectors;
      }
    }
#endif
  }
  if (rest) return 0;
  if (row_vectors == 0) {
    static constexpr Tiles<VL, G, MAX, 0, 0> tiles{};
    return tiles.by_vectors;
  }
  if constexpr (IS_LONGEST) {
    if (row_vectors == 1) {
      static constexpr Tiles<VL, G, MAX, 1, 0> tiles{};
      return tiles.by_vectors;
    }
    if (row_vectors == 2) {
      static constexpr Tiles<VL, G, MAX, 2, 0> tiles{};
      return tiles.by_vectors;
    }
    if constexpr (G == 1) {
      if (row_vectors == 4) {
        static constexpr Tiles<VL, G, MAX, 4, 0> tiles{};
        return tiles.by_vectors;
      }
    }
  }
  return 0;
}

template <int VL> static const ConvTile *tiles_of(int group_size, int row_vectors, int rest) {
  switch (group_size) {
    case 1: return tiles_of<VL, 1>(row_vectors, rest);
    case 2: return tiles_of<VL, 2>(row_vectors, rest);
    case 4: return tiles_of<VL, 4>(row_vectors, rest);
    default: return 0;
  }
}

// `row_vectors` is 0 for contiguous tiles; `rest` as in RestOf. Null where there are none.
static const ConvTile *find_tiles(int vector_length, int group_size, int row_vectors, int rest) {
  switch (vector_length) {
#if KERF_MAX_VECTOR_LENGTH < 16
    case 4: return tiles_of<4>(group_size, row_vectors, rest);
#endif
#if KERF_MAX_VECTOR_LENGTH >= 8
    case 8: return tiles_of<8>(group_size, row_vectors, rest);
#endif
#if KERF_MAX_VECTOR_LENGTH >= 16
    case 16: return tiles_of<16>(group_size, row_vectors, rest);
#endif
    default: return 0;
  }
}

}  // namespace

#endif
