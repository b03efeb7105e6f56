// The C ABI between planner.py and the kernels. A network is an array of steps with all pointers resolved.
//
// Planes layout: channel c of a tensor starts at `data + c * plane`, row y at `+ y * row`. Between rows and planes lie
// zeros that neighbours share as padding, so a convolution reads across borders without a test. Units are elements.
// Every change here needs the same change in library.py and a new KERF_ABI_VERSION.
#ifndef KERF_NATIVE_H
#define KERF_NATIVE_H

#include <stdint.h>

#define KERF_ABI_VERSION 9

// Of strips: vectors of a tile, and columns of a kernel.
#define KERF_MAX_STRIP_VECTORS 16
#define KERF_MAX_STRIP_KERNEL_W 8

// Scratch memory of a step is there for KERF_MAX_THREADS threads.
#include "kerf_team.h"

enum KerfKind {
  KERF_CONV = 0,             // sparse convolution of the output channels of some row groups
  KERF_SPLIT = 1,            // copy rows, or split a tensor into stride x stride phase tensors
  KERF_ELEMENTWISE = 2,      // clamp(input + second)
  KERF_MAX_POOL = 3,
  KERF_AVG_POOL = 4,
  KERF_GLOBAL_AVG_POOL = 5,
  KERF_DENSE_MATVEC = 6,     // fully connected, weights as [blocks of 16 outputs][inputs][16]
  KERF_SPARSE_MATVEC = 7,    // fully connected over row groups
  KERF_ZERO = 8,             // clear `channels` planes
  KERF_DEPTHWISE = 9,        // dense depthwise convolution, 3x3 or 5x5, stride 1 or 2; needs no padding around its tensors
  KERF_WINOGRAD = 10,        // dense 3x3 convolution of stride 1
  KERF_MULTIPLY = 11,        // clamp(input * second)
  KERF_SIGMOID = 12,         // 1 / (1 + exp(-input))
  KERF_SILU = 13,            // input * sigmoid(input)
  KERF_HARDSIGMOID = 14,     // clamp(input + 3, 0, 6) / 6
  KERF_HARDSWISH = 15,       // input * hardsigmoid(input)
  KERF_NUM_KINDS = 16
};

// One copy of the input for a packed convolution: rows of one phase as one column of the kernel sees them. Row i of the
// copy is row (first_row + i + first output row) * stride + phase_y of the image, column x is column x * stride + shift_x;
// what is outside of the image is zero.
struct KerfCopy {
  int32_t offset;      // of its first element, in the scratch memory of a channel
  int32_t phase_y, first_row, shift_x;
  int32_t extra_rows;  // it has this many rows more than the block has output rows
  int32_t mask;        // element of pack_mask where its mask begins
};

struct KerfStep {
  int32_t kind;
  int32_t channels;       // channels of the input; MATVEC: number of inputs
  int32_t outputs;        // MATVEC: number of outputs
  int32_t input_h, input_w, input_row;
  int32_t output_h, output_w, output_row;
  int32_t kernel_h, kernel_w, stride, padding;
  int32_t positions;      // CONV, ELEMENTWISE, MULTIPLY, activations: flattened positions of a plane
  int32_t num_phases;     // SPLIT: phases written, see `phases`
  int32_t num_groups, group_size;
  // CONV: the tile, and how many tiles a row group walks through before the next one does; 0: all. Found by tuning.
  int32_t vector_length, max_vectors, block_tiles;
  float lower, upper;     // bounds of the activation
  float scale;            // pools: one over the number of elements; MAX_POOL: one
  int32_t scratch_size;   // pools: elements of `scratch` for each thread
  int32_t max_parts;      // threads that may share the step, because more would not pay; 0: all
  int32_t row_blocks;     // CONV: 0, or tiles are of strips whose vectors hold so many blocks of rows (1, 2, 4), see below
  const float *input;
  const float *second;    // residual or second operand, or null; its row stride is the output's. MULTIPLY with a
                          // second_plane of 0: one factor for each channel
  float *output;
  float *scratch;         // pools that walkable.h leaves out: one padded input row, for each thread
  int64_t input_plane, second_plane, output_plane;
  const uint32_t *mask;   // all ones where a flattened position is inside the image, zero in the padding
  const float *bias;      // by output channel
  const int32_t *phases;  // SPLIT: index of phase (y * stride + x) among those written, or -1
  const int32_t *group_channels;  // first output channel of each row group
  const int32_t *group_starts;    // first entry of each row group; num_groups + 1
  const int32_t *offsets;         // of each entry, from `input` (CONV) or the index of the input (MATVEC)
  const float *weights;           // CONV, SPARSE_MATVEC: group_size per entry; DEPTHWISE: kernel_h * kernel_w per channel
  // WINOGRAD, with N = winograd_size + 2 and, from above: channels, outputs, input*, output*, second*, bias (`outputs`
  // elements), lower, upper, and padding (0 or 1) which the input's layout must have as zeros. `weights` are [blocks of 16
  // outputs][N * N points][channels][16], the last block filled up with zeros. `scratch` is `scratch_size` elements, at
  // least WinogradBlock::scratch_size(), for each of `winograd_parts` parts. Of every input row are read `padding` elements
  // before its first and up to winograd_size + 15 after its last one, of every row of `second` up to 15 after its last
  // one. Of the output, the image alone is written.
  int32_t winograd_size;              // outputs of a tile are 2 x 2 or 4 x 4
  int32_t winograd_rows;              // at most so many rows of tiles are a block
  int32_t winograd_outputs_in_lanes;  // vectors of output channels instead of tiles
  int32_t winograd_outputs;           // output channels of a product
  int32_t winograd_tiles;             // at most so many tiles (outputs in lanes) or vectors of them in a product
  int32_t winograd_parts;             // parts that have scratch memory: others leave the work to them

  // CONV only. Input channels are taken in chunks, and partial sums wait in `output` in between: group_starts has
  // num_groups * num_chunks + 1 elements, by group and then by chunk.
  int32_t num_chunks;
  int32_t chunk_channels;  // of all chunks but the last
  // 0: vectors follow the flattened positions, whose rows are `input_row` (or pack_row) = output_row apart. Else each
  // vector lies in one row of the output, row_vectors in each; columns beyond output_w are computed but not stored.
  int32_t row_vectors;
  // Rows of output for which the input is packed at a time; 0: offsets are relative to `input`. Otherwise they are
  // relative to `scratch`, where channel c of a chunk begins at c * pack_plane, as if chunks began at channel 0.
  // Rows are read as far as the kernel reaches over the border of the image, and in whole vectors. Of the scratch memory,
  // scratch_size elements belong to each of pack_parts parts; parts beyond that leave the work to them.
  int32_t pack_rows;
  int32_t pack_row;        // from one row of a copy to the next
  int32_t pack_plane;
  int32_t pack_parts;
  int32_t num_copies;
  const KerfCopy *copies;
  const uint32_t *pack_mask;  // for a row; for all rows where is_packed_flat() of conv_pack.h

  // CONV with row_blocks, see conv_strips.h; stride and group_size are 1. A tile is pack_rows rows of row_vectors strips
  // (1 or 2), max_vectors in all. Entries come by chunk and then by group: group_starts has num_chunks * num_groups + 1
  // elements. Offsets are relative to the copies of the entry's chunk, where channel c of it begins at c * pack_plane and
  // has, for each column of the kernel, row_vectors strips of pack_rows + kernel_h - 1 vectors. After them `scratch` holds
  // num_groups * max_vectors vectors of sums. Of every row are read `padding` elements before its first and up to
  // kernel_w + 15 after its last one. pack_mask holds a vector for each column of the kernel and strip of the image.
};

// Memory that steps may use.
struct KerfRegion {
  uint64_t address, bytes;
  int32_t is_writable;
};

// What a backend needs of the processor: see cpu.h.
enum KerfIsa { KERF_ISA_BASELINE = 0, KERF_ISA_AVX2 = 1, KERF_ISA_AVX512 = 2 };

// The signature of the C library's clock_gettime, which callers pass in: the library itself has no clock.
struct KerfTimespec {
  long seconds, nanoseconds;
};
typedef int (*KerfClockGettime)(int clock_id, KerfTimespec *time);

// One compilation of the kernels for one instruction set.
struct KerfBackend {
  const char *name;
  int32_t has_fma;                                    // outputs are bit-identical among backends with FMA
  int32_t isa;                                        // a KerfIsa
  int32_t (*max_vectors)(int32_t vector_length, int32_t group_size);  // 0: no such tile
  int32_t (*max_winograd_tiles)(int32_t outputs, int32_t outputs_in_lanes);  // 0: no such product
  // Share `part` of `parts` of one step: shares write to different places and need no order. 0 where it cannot run it.
  int32_t (*run_step)(const KerfStep *step, int32_t part, int32_t parts);
};

#endif
