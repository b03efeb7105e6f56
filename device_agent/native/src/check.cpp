// Proves for one step that no kernel reads or writes outside of the regions that the step's pointers lie in, for every
// tile and every instruction set. Weights and activations are numbers and need no check; what is checked are extents,
// strides, and every entry of every index list.
//
// Index lists have to be in constant memory. So no step can change what was checked.
#include "check.h"

#include "kerf_errors.h"
#include "step_fields.h"
#include "walkable.h"

namespace {

// Extents and counts up to this, and planes up to the second: then no product below overflows 64 bits.
const int64_t MAX_EXTENT = 1 << 28;
const int64_t MAX_PLANE = (int64_t)1 << 32;
const int64_t ELEMENT_BYTES = 4;
// Kernels run over flattened positions in vectors, up to this many elements: what they touch is rounded up to it.
const int64_t LONGEST_VECTOR = 16;

struct Range {
  int64_t first, last;  // [first, last)
};

int64_t divide_up(int64_t count, int64_t by) { return (count + by - 1) / by; }
int64_t whole_vectors(int64_t positions) { return divide_up(positions, LONGEST_VECTOR) * LONGEST_VECTOR; }

// Elements from the first one of the first plane to the last one of the last plane, `inner` of which are in a plane.
int64_t planes_extent(int64_t planes, int64_t plane, int64_t inner) {
  return planes == 0 || inner == 0 ? 0 : (planes - 1) * plane + inner;
}
int64_t rows_extent(int64_t rows, int64_t row, int64_t width) { return planes_extent(rows, row, width); }

class Checker {
 public:
  Checker(const KerfStep &step, KerfFindSpan find, const void *context) : step(step), find_(find), context_(context) {}

  const KerfStep &step;

  Checker with(const KerfStep &other) const { return Checker(other, find_, context_); }

  // Elements [first, last) from `pointer` on can be read.
  int32_t reads(const void *pointer, int64_t first, int64_t last) const {
    KerfSpan span;
    if (pointer == step.input) note(&input_, pointer, first, last);
    return touches(pointer, first, last, &span) ? KERF_OK : KERF_ERROR_READ;
  }
  int32_t reads(const void *pointer, int64_t count) const { return reads(pointer, 0, count); }

  int32_t writes(const void *pointer, int64_t count) const {
    KerfSpan span;
    note(pointer == step.output ? &output_ : &scratch_, pointer, 0, count);
    return touches(pointer, 0, count, &span) && (count == 0 || span.is_writable) ? KERF_OK : KERF_ERROR_WRITE;
  }

  // `count` indices that the check itself may read, and that no step can change afterwards.
  int32_t is_list(const int32_t *list, int64_t count) const {
    KerfSpan span;
    if (!touches(list, 0, count, &span)) return KERF_ERROR_READ;
    return count > 0 && span.is_writable ? KERF_ERROR_LIST : KERF_OK;
  }

  // Whether no two of input, output and scratch memory, as far as they were checked, have an element in common.
  bool are_apart() const {
    if (step.scratch && step.scratch == step.output) return false;
    return are_apart(input_, output_) && are_apart(input_, scratch_) && are_apart(output_, scratch_);
  }

 private:
  bool touches(const void *pointer, int64_t first, int64_t last, KerfSpan *span) const {
    if (first >= last) return true;
    if (!pointer || (uintptr_t)pointer % ELEMENT_BYTES != 0 || !find_(context_, pointer, span)) return false;
    const int64_t before = (int64_t)(span->before / ELEMENT_BYTES), after = (int64_t)(span->after / ELEMENT_BYTES);
    return first >= -before && last <= after;
  }

  static bool are_apart(const Range &a, const Range &b) { return a.last <= b.first || b.last <= a.first; }

  // Widens `range`, which counts elements from address 0, by elements from `pointer` on.
  static void note(Range *range, const void *pointer, int64_t first, int64_t last) {
    if (first >= last) return;
    const int64_t base = (int64_t)((uintptr_t)pointer / ELEMENT_BYTES);
    const bool is_empty = range->first == range->last;
    range->first = is_empty || base + first < range->first ? base + first : range->first;
    range->last = is_empty || base + last > range->last ? base + last : range->last;
  }

  KerfFindSpan find_;
  const void *context_;
  mutable Range input_ = {0, 0}, output_ = {0, 0}, scratch_ = {0, 0};
};

Range range_of(const int32_t *values, int64_t count) {
  int32_t least = INT32_MAX, most = INT32_MIN;
  for (int64_t i = 0; i < count; i++) {
    least = values[i] < least ? values[i] : least;
    most = values[i] > most ? values[i] : most;
  }
  return {least, (int64_t)most + 1};
}

// --- parts that several kinds have -----------------------------------------------------------------------------------

int32_t check_numbers(const KerfStep &step) {
  const char *bytes = (const char *)&step;
  for (const StepField &field : STEP_FIELDS) {
    if (field.type == 'I') {
      const int32_t value = *(const int32_t *)(bytes + field.offset);
      if (value < 0 || value > MAX_EXTENT) return KERF_ERROR_EXTENT;
    } else if (field.type == 'L') {
      const int64_t value = *(const int64_t *)(bytes + field.offset);
      if (value < 0 || value > MAX_PLANE) return KERF_ERROR_EXTENT;
    }
  }
  return KERF_OK;
}

// Row groups whose entries come in `num_chunks` chunks: their lists, their weights, and what the entries read of
// `step.input` when each reads `reach` elements; with a `reach` below 0 that is left to the caller.
int32_t check_groups(const Checker &check, int64_t num_chunks, int64_t reach) {
  const KerfStep &step = check.step;
  if (step.group_size != 1 && step.group_size != 2 && step.group_size != 4) return KERF_ERROR_EXTENT;
  const int64_t num_runs = step.num_groups * num_chunks;
  KERF_TRY(check.is_list(step.group_starts, num_runs + 1));
  int64_t entries = 0;
  for (int64_t run = 0; run <= num_runs; run++) {
    if (step.group_starts[run] < entries) return KERF_ERROR_INDEX;
    entries = step.group_starts[run];
  }
  KERF_TRY(check.is_list(step.group_channels, step.num_groups));
  KERF_TRY(check.is_list(step.offsets, entries));
  KERF_TRY(check.reads(step.weights, entries * step.group_size));
  if (entries == 0 || reach < 0) return KERF_OK;
  const Range offsets = range_of(step.offsets, entries);
  return check.reads(step.input, offsets.first, offsets.last - 1 + reach);
}

// The highest channel that the groups write, plus one. Negative where one of them is out of range.
int64_t num_group_channels(const KerfStep &step) {
  if (step.num_groups == 0) return 0;
  const Range channels = range_of(step.group_channels, step.num_groups);
  return channels.first < 0 || channels.last > MAX_EXTENT ? -1 : channels.last - 1 + step.group_size;
}

// --- kinds -----------------------------------------------------------------------------------------------------------

// The elements that one entry of a convolution reads from the offset on, for `rows` rows of output, `row` apart.
int64_t conv_reach(const KerfStep &step, int64_t rows, int64_t row) {
  return step.row_vectors ? rows_extent(rows, row, whole_vectors(step.output_w))
                          : whole_vectors(rows_extent(rows, row, step.output_w));
}

bool is_near(int32_t place) { return place >= -(1 << 13) && place <= (1 << 13); }

// How far before the first element of a channel packing at stride 2 reads: a row in the middle of a vector is read from
// where that vector would begin. At least all that num_packed_by_two() of conv_pack.h lets through is counted here.
int64_t read_before_rows(const KerfStep &step, const KerfCopy &copy) {
  const int64_t first = 2 * (int64_t)copy.first_row + copy.phase_y;
  int64_t before = 0;
  if (step.row_vectors > 0 || step.input_row < step.pack_row) return before;
  if (first < -1 || copy.shift_x < -1 || copy.shift_x > 1) return before;
  for (int64_t row = 0; row < LONGEST_VECTOR; row++) {
    const int64_t source = first + 2 * row, positions = row * step.pack_row;
    if (source < 0 || source >= step.input_h) continue;
    const int64_t lanes = positions < LONGEST_VECTOR ? positions : LONGEST_VECTOR - 1;
    const int64_t begin = source * step.input_row - 2 * lanes;
    before = begin < -before ? -begin : before;
  }
  return before;
}

// The copies that a packed convolution makes: what they read of `input`, and that they fit a thread's scratch memory.
int32_t check_copies(const Checker &check) {
  const KerfStep &step = check.step;
  const int64_t rows = step.output_h, row = step.pack_row, stride = step.stride;
  if (stride < 1 || stride > (1 << 13) || rows * stride > MAX_EXTENT || step.input_h < 1) return KERF_ERROR_EXTENT;
  if (row < step.output_w || step.pack_rows > rows) return KERF_ERROR_EXTENT;
  if (step.pack_parts < 1) return KERF_ERROR_EXTENT;
  KERF_TRY(check.writes(step.scratch, (int64_t)step.pack_parts * step.scratch_size));
  KERF_TRY(check.is_list((const int32_t *)step.copies, (int64_t)step.num_copies * (sizeof(KerfCopy) / ELEMENT_BYTES)));
  for (int32_t i = 0; i < step.num_copies; i++) {
    const KerfCopy &copy = step.copies[i];
    if (copy.offset < 0 || copy.extra_rows < 0 || copy.mask < 0) return KERF_ERROR_INDEX;
    if (copy.phase_y < 0 || copy.phase_y >= stride) return KERF_ERROR_INDEX;
    if (!is_near(copy.first_row) || !is_near(copy.extra_rows) || !is_near(copy.shift_x)) return KERF_ERROR_INDEX;
    // Rows are written one by one in whole vectors, or all together.
    const int64_t copied = step.pack_rows + copy.extra_rows;
    const int64_t one_by_one = (copied - 1) * row + whole_vectors(row), together = whole_vectors(copied * row);
    const int64_t written = copy.offset + (one_by_one > together ? one_by_one : together);
    if (planes_extent(step.chunk_channels, step.pack_plane, written) > step.scratch_size) return KERF_ERROR_EXTENT;
    int64_t first = copy.shift_x, last;
    if (stride == 1 && step.row_vectors == 0 && step.input_row == row) {
      // Blocks of rows end with whole vectors, wherever they begin.
      const int64_t all = (rows + copy.extra_rows) * row + LONGEST_VECTOR;
      first += copy.first_row * row;
      last = first + all;
      KERF_TRY(check.reads(step.pack_mask, copy.mask + all));
    } else {
      // At stride 2 a vector that begins within a row reads as much as one at its start.
      const int64_t width = stride == 1        ? whole_vectors(row)
                            : stride > 2       ? stride * (step.output_w - 1) + 1
                            : step.row_vectors ? 2 * whole_vectors(row)
                                               : 2 * (row + LONGEST_VECTOR);
      last = first + (step.input_h - 1) * (int64_t)step.input_row + width;
      if (stride == 2) first -= read_before_rows(step, copy);
      KERF_TRY(check.reads(step.pack_mask, copy.mask + whole_vectors(row)));
    }
    KERF_TRY(check.reads(step.input, first, (step.channels - 1) * step.input_plane + last));
  }
  return KERF_OK;
}

// What the entries of a packed convolution read of a thread's scratch memory.
int32_t check_packed_offsets(const KerfStep &step) {
  const int64_t reach = conv_reach(step, step.pack_rows, step.pack_row);
  for (int64_t group = 0; group < step.num_groups; group++)
    for (int64_t chunk = 0; chunk < step.num_chunks; chunk++) {
      const int32_t *starts = step.group_starts + group * step.num_chunks + chunk;
      if (starts[0] == starts[1]) continue;
      const Range offsets = range_of(step.offsets + starts[0], starts[1] - starts[0]);
      const int64_t begin = chunk * step.chunk_channels * (int64_t)step.pack_plane;
      if (offsets.first < begin || offsets.last - 1 - begin + reach > step.scratch_size) return KERF_ERROR_INDEX;
    }
  return KERF_OK;
}

// The output, and what a convolution's sums start from.
int32_t check_conv_output(const Checker &check) {
  const KerfStep &step = check.step;
  const int64_t written = rows_extent(step.output_h, step.output_row, step.output_w);
  const int64_t channels = num_group_channels(step);
  if (channels < 0) return KERF_ERROR_INDEX;
  KERF_TRY(check.reads(step.bias, channels));
  if (step.second) KERF_TRY(check.reads(step.second, planes_extent(channels, step.second_plane, written)));
  return check.writes(step.output, planes_extent(channels, step.output_plane, written));
}

int32_t check_strips(const Checker &check) {
  const KerfStep &step = check.step;
  if (step.row_blocks != 1 && step.row_blocks != 2 && step.row_blocks != 4) return KERF_ERROR_TILE;
  if (step.row_vectors != 1 && step.row_vectors != 2) return KERF_ERROR_TILE;
  if (step.pack_rows < 1 || step.max_vectors != step.pack_rows * (int64_t)step.row_vectors) return KERF_ERROR_TILE;
  if (step.max_vectors > KERF_MAX_STRIP_VECTORS) return KERF_ERROR_TILE;
  if (step.group_size != 1 || step.stride != 1 || step.kernel_h < 1 || step.kernel_w < 1) return KERF_ERROR_EXTENT;
  if (!is_near(step.kernel_h) || step.kernel_w > KERF_MAX_STRIP_KERNEL_W || !is_near(step.padding)) return KERF_ERROR_EXTENT;
  if (step.input_h < 1 || step.output_h < 1 || step.output_w < 1 || step.pack_parts < 1) return KERF_ERROR_EXTENT;
  if (step.channels < 1 || step.chunk_channels < 1) return KERF_ERROR_EXTENT;
  if (step.num_chunks != divide_up(step.channels, step.chunk_channels)) return KERF_ERROR_EXTENT;
  const int64_t strip = (step.pack_rows + step.kernel_h - (int64_t)1) * LONGEST_VECTOR;
  if (step.pack_plane != step.kernel_w * step.row_vectors * strip) return KERF_ERROR_EXTENT;
  const int64_t copies = step.chunk_channels * (int64_t)step.pack_plane;
  const int64_t sums = step.num_groups * step.max_vectors * LONGEST_VECTOR;
  if (copies + sums > step.scratch_size) return KERF_ERROR_EXTENT;
  KERF_TRY(check.writes(step.scratch, (int64_t)step.pack_parts * step.scratch_size));
  const int64_t columns = LONGEST_VECTOR / step.row_blocks, num_strips = divide_up(step.output_w, columns);
  if (divide_up(step.output_h, step.row_blocks) * num_strips > MAX_EXTENT) return KERF_ERROR_EXTENT;
  KERF_TRY(check.reads(step.pack_mask, step.kernel_w * num_strips * LONGEST_VECTOR));
  // Blocks begin inside of the image, and only its rows are read.
  const int64_t last = (step.input_h - 1) * (int64_t)step.input_row + num_strips * columns + step.kernel_w - 1 - step.padding;
  KERF_TRY(check.reads(step.input, -step.padding, (step.channels - 1) * step.input_plane + last));
  KERF_TRY(check_groups(check, step.num_chunks, -1));
  const int64_t num_entries = step.group_starts[step.num_groups * (int64_t)step.num_chunks];
  if (num_entries > 0) {
    const Range offsets = range_of(step.offsets, num_entries);
    const int64_t reach = (step.row_vectors - 1) * strip + step.pack_rows * LONGEST_VECTOR;
    if (offsets.first < 0 || offsets.last - 1 + reach > copies) return KERF_ERROR_INDEX;
  }
  return check_conv_output(check);
}

int32_t check_conv(const Checker &check) {
  const KerfStep &step = check.step;
  if (step.row_blocks) return check_strips(check);
  const bool is_packed = step.pack_rows > 0;
  if (step.output_h < 1 || step.output_w < 1 || step.num_chunks < 1) return KERF_ERROR_EXTENT;
  int64_t written = rows_extent(step.output_h, step.output_row, step.output_w);
  if (step.row_vectors) {
    // The last vector of a row begins inside of it.
    const int64_t before = (step.row_vectors - 1) * (int64_t)step.vector_length;
    if (step.output_w <= before || step.output_w > before + step.vector_length) return KERF_ERROR_TILE;
    if (step.mask) return KERF_ERROR_EXTENT;
  } else {
    if (step.output_row != (is_packed ? step.pack_row : step.input_row)) return KERF_ERROR_EXTENT;
    if (step.positions != written) return KERF_ERROR_EXTENT;
    if (step.mask) KERF_TRY(check.reads(step.mask, is_packed ? written + LONGEST_VECTOR : whole_vectors(written)));
  }
  if (is_packed) {
    if (step.channels < 1 || step.chunk_channels < 1) return KERF_ERROR_EXTENT;
    if (step.num_chunks != divide_up(step.channels, step.chunk_channels)) return KERF_ERROR_EXTENT;
    KERF_TRY(check_copies(check));
    KERF_TRY(check_groups(check, step.num_chunks, -1));
    KERF_TRY(check_packed_offsets(step));
  } else {
    KERF_TRY(check_groups(check, step.num_chunks, conv_reach(step, step.output_h, step.input_row)));
  }
  return check_conv_output(check);
}

int32_t check_split(const Checker &check) {
  const KerfStep &step = check.step;
  const int64_t stride = step.stride, channels = step.channels;
  if (stride < 1 || stride > (1 << 13) || channels * step.num_phases > MAX_EXTENT) return KERF_ERROR_EXTENT;
  // Copied rows have the output's extent; phases are cut from the input's.
  int64_t read_rows = step.output_h, read_width = step.output_w;
  int64_t written_rows = step.output_h, written_width = step.output_w;
  if (stride > 1) {
    KERF_TRY(check.is_list(step.phases, stride * stride));
    for (int64_t phase = 0; phase < stride * stride; phase++)
      if (step.phases[phase] < -1 || step.phases[phase] >= step.num_phases) return KERF_ERROR_INDEX;
    read_rows = step.input_h, read_width = step.input_w;
    const int64_t phase_rows = divide_up(step.input_h, stride), phase_width = divide_up(step.input_w, stride);
    written_rows = phase_rows > written_rows ? phase_rows : written_rows;
    written_width = phase_width > written_width ? phase_width : written_width;
  } else if (step.num_phases != 1) {
    return KERF_ERROR_EXTENT;
  }
  KERF_TRY(check.reads(step.input,
                       planes_extent(channels, step.input_plane, rows_extent(read_rows, step.input_row, read_width))));
  return check.writes(step.output, planes_extent(channels * step.num_phases, step.output_plane,
                                                 rows_extent(written_rows, step.output_row, written_width)));
}

int32_t check_elementwise(const Checker &check) {
  const KerfStep &step = check.step;
  const int64_t extent = whole_vectors(step.positions);
  if (step.channels > 0) KERF_TRY(check.reads(step.mask, extent));
  KERF_TRY(check.reads(step.input, planes_extent(step.channels, step.input_plane, extent)));
  if (step.second) KERF_TRY(check.reads(step.second, planes_extent(step.channels, step.second_plane, extent)));
  return check.writes(step.output, planes_extent(step.channels, step.output_plane, extent));
}

int32_t check_multiply(const Checker &check) {
  if (check.step.second_plane > 0) return check.step.second ? check_elementwise(check) : KERF_ERROR_READ;
  KerfStep one_operand = check.step;
  one_operand.second = 0;
  KERF_TRY(check.reads(check.step.second, check.step.channels));
  return check_elementwise(check.with(one_operand));
}

int32_t check_activation(const Checker &check) {
  return check.step.second ? KERF_ERROR_READ : check_elementwise(check);
}

// What the kernels of window.h touch: rows are read in vectors that begin up to `padding` columns before the image, and
// end past it where the whole row is narrower than a vector.
int32_t check_walk(const Checker &check) {
  const KerfStep &step = check.step;
  const int64_t kernel = step.kernel_w, stride = step.stride, width = step.output_w;
  if (step.input_h < 1 || step.output_h < 1 || width < 1) return KERF_ERROR_EXTENT;
  const int64_t vectors_width = width <= 4 ? 4 : width <= 8 ? 8 : width <= 16 ? 16 : width;
  const int64_t columns = stride == 1 ? kernel - 1 : kernel == 3 ? 1 : (kernel - 1) / 2 * 2;
  const int64_t read_width = vectors_width * stride + columns - step.padding;
  const int64_t extent = rows_extent(step.input_h, step.input_row, read_width);
  KERF_TRY(check.reads(step.input, -step.padding, planes_extent(step.channels, step.input_plane, extent)));
  return check.writes(step.output, planes_extent(step.channels, step.output_plane,
                                                 rows_extent(step.output_h, step.output_row, width)));
}

int32_t check_pool(const Checker &check) {
  const KerfStep &step = check.step;
  const int64_t stride = step.stride, padding = step.padding;
  if (stride < 1 || step.kernel_h < 1 || step.kernel_w < 1) return KERF_ERROR_EXTENT;
  if (step.input_h < 1 || step.input_w < 1 || step.output_h < 1 || step.output_w < 1) return KERF_ERROR_EXTENT;
  if (is_walked_pool(step)) return check_walk(check);
  // The first row of the last window is a row of the input, and all windows are inside of a padded row.
  const int64_t padded_w = step.input_w + 2 * padding, phase_w = divide_up(padded_w, stride);
  if ((step.output_h - 1) * stride - padding >= step.input_h) return KERF_ERROR_EXTENT;
  if ((step.kernel_w - 1) / stride + step.output_w > phase_w) return KERF_ERROR_EXTENT;
  if (padded_w + (stride == 1 ? 0 : stride * phase_w) > step.scratch_size) return KERF_ERROR_EXTENT;
  KERF_TRY(check.writes(step.scratch, (int64_t)KERF_MAX_THREADS * step.scratch_size));
  KERF_TRY(check.reads(step.input, planes_extent(step.channels, step.input_plane,
                                                 rows_extent(step.input_h, step.input_row, step.input_w))));
  return check.writes(step.output, planes_extent(step.channels, step.output_plane,
                                                 rows_extent(step.output_h, step.output_row, step.output_w)));
}

int32_t check_global_avg_pool(const Checker &check) {
  const KerfStep &step = check.step;
  const int64_t positions = (int64_t)step.input_h * step.input_w;
  if (positions < 1 || positions > MAX_EXTENT || step.input_row < step.input_w) return KERF_ERROR_EXTENT;
  // A vector that ends a row can begin with its last element.
  const int64_t extent = step.input_row == step.input_w
                             ? whole_vectors(positions)
                             : rows_extent(step.input_h, step.input_row, step.input_w) + LONGEST_VECTOR - 1;
  KERF_TRY(check.reads(step.input, planes_extent(step.channels, step.input_plane, extent)));
  return check.writes(step.output, planes_extent(step.channels, step.output_plane, 1));
}

// Bias, second operand and output of a fully connected layer of `outputs` outputs.
int32_t check_outputs(const Checker &check, int64_t outputs) {
  KERF_TRY(check.reads(check.step.bias, outputs));
  if (check.step.second) KERF_TRY(check.reads(check.step.second, outputs));
  return check.writes(check.step.output, outputs);
}

int32_t check_dense_matvec(const Checker &check) {
  const KerfStep &step = check.step;
  KERF_TRY(check.reads(step.input, step.channels));
  KERF_TRY(check.reads(step.weights, whole_vectors(step.outputs) * step.channels));
  return check_outputs(check, step.outputs);
}

int32_t check_sparse_matvec(const Checker &check) {
  KERF_TRY(check_groups(check, 1, 1));
  const int64_t outputs = num_group_channels(check.step);
  return outputs < 0 ? KERF_ERROR_INDEX : check_outputs(check, outputs);
}

int32_t check_zero(const Checker &check) {
  return check.writes(check.step.output, (int64_t)check.step.channels * check.step.output_plane);
}

int32_t check_depthwise(const Checker &check) {
  const KerfStep &step = check.step;
  const int64_t kernel = step.kernel_w;
  if (!is_walkable(step) || (kernel != 3 && kernel != 5) || step.stride < 1 || step.stride > 2) return KERF_ERROR_EXTENT;
  KERF_TRY(check.reads(step.bias, step.channels));
  KERF_TRY(check.reads(step.weights, step.channels * kernel * kernel));
  return check_walk(check);
}

// How many tiles are in a block, and their scratch memory, the kernel checks by itself: they depend on the tile.
int32_t check_winograd(const Checker &check) {
  const KerfStep &step = check.step;
  const int64_t size = step.winograd_size, points = size + 2, padding = step.padding;
  if ((size != 2 && size != 4) || padding > 1 || step.winograd_parts < 1) return KERF_ERROR_EXTENT;
  if (step.channels < 1 || step.outputs < 1 || step.output_h < 1 || step.output_w < 1) return KERF_ERROR_EXTENT;
  if (step.output_h != step.input_h + 2 * padding - 2 || step.output_w != step.input_w + 2 * padding - 2)
    return KERF_ERROR_EXTENT;
  const int64_t read_width = whole_vectors(divide_up(step.output_w, size) * size + 2) - padding;
  KERF_TRY(check.reads(step.input, -padding, planes_extent(step.channels, step.input_plane,
                                                           rows_extent(step.input_h, step.input_row, read_width))));
  KERF_TRY(check.reads(step.bias, step.outputs));
  KERF_TRY(check.reads(step.weights, points * points * whole_vectors(step.outputs) * step.channels));
  if (step.second)
    KERF_TRY(check.reads(step.second,
                         planes_extent(step.outputs, step.second_plane,
                                       rows_extent(step.output_h, step.output_row, whole_vectors(step.output_w)))));
  KERF_TRY(check.writes(step.scratch, (int64_t)step.winograd_parts * step.scratch_size));
  return check.writes(step.output, planes_extent(step.outputs, step.output_plane,
                                                 rows_extent(step.output_h, step.output_row, step.output_w)));
}

struct KindCheck {
  int32_t kind;
  int32_t (*check)(const Checker &);
};

constexpr KindCheck KIND_CHECKS[] = {
    {KERF_CONV, check_conv},
    {KERF_SPLIT, check_split},
    {KERF_ELEMENTWISE, check_elementwise},
    {KERF_MAX_POOL, check_pool},
    {KERF_AVG_POOL, check_pool},
    {KERF_GLOBAL_AVG_POOL, check_global_avg_pool},
    {KERF_DENSE_MATVEC, check_dense_matvec},
    {KERF_SPARSE_MATVEC, check_sparse_matvec},
    {KERF_ZERO, check_zero},
    {KERF_DEPTHWISE, check_depthwise},
    {KERF_WINOGRAD, check_winograd},
    {KERF_MULTIPLY, check_multiply},
    {KERF_SIGMOID, check_activation},
    {KERF_SILU, check_activation},
    {KERF_HARDSIGMOID, check_activation},
    {KERF_HARDSWISH, check_activation},
};

constexpr bool is_complete() {
  for (int kind = 0; kind < KERF_NUM_KINDS; kind++)
    if (KIND_CHECKS[kind].kind != kind) return false;
  return sizeof(KIND_CHECKS) / sizeof(KIND_CHECKS[0]) == KERF_NUM_KINDS;
}
static_assert(is_complete(), "every KerfKind needs a check, in the order of the kinds");

}  // namespace

int32_t kerf_check_step(const KerfStep *step, KerfFindSpan find, const void *context) {
  if (step->kind < 0 || step->kind >= KERF_NUM_KINDS) return KERF_ERROR_KIND;
  KERF_TRY(check_numbers(*step));
  const Checker check(*step, find, context);
  KERF_TRY(KIND_CHECKS[step->kind].check(check));
  // Kernels tell the compiler that what they write is not what they read. Those without a window may work in place.
  const bool is_in_place = step->kind == KERF_ELEMENTWISE || step->kind >= KERF_MULTIPLY;
  return is_in_place || check.are_apart() ? KERF_OK : KERF_ERROR_OVERLAP;
}

// --- steps whose pointers are resolved already -----------------------------------------------------------------------

namespace {

struct RegionTable {
  const KerfRegion *regions;
  int32_t count;
};

bool find_in_table(const void *context, const void *pointer, KerfSpan *span) {
  const RegionTable &table = *(const RegionTable *)context;
  const uint64_t address = (uint64_t)(uintptr_t)pointer;
  int32_t low = 0, high = table.count;
  while (low < high) {
    const int32_t middle = low + (high - low) / 2;
    if (table.regions[middle].address <= address) low = middle + 1;
    else high = middle;
  }
  if (low == 0) return false;
  const KerfRegion &region = table.regions[low - 1];
  span->before = address - region.address;
  if (span->before > region.bytes) return false;
  span->after = region.bytes - span->before;
  span->is_writable = region.is_writable != 0;
  return true;
}

}  // namespace

// Checks steps against the memory that they may use: `regions` in ascending order, apart from each other. KERF_OK, or an
// error code, and in *failed_step the index of the step at fault.
extern "C" __attribute__((visibility("default"))) int32_t kerf_check_steps(const KerfStep *steps, int32_t num_steps,
                                                                           const KerfRegion *regions,
                                                                           int32_t num_regions, int32_t *failed_step) {
  *failed_step = -1;
  if (num_steps < 0 || num_regions < 0) return KERF_ERROR_COUNT;
  for (int32_t i = 0; i + 1 < num_regions; i++)
    if (regions[i].bytes > regions[i + 1].address - regions[i].address) return KERF_ERROR_REGION;
  const RegionTable table = {regions, num_regions};
  for (int32_t i = 0; i < num_steps; i++) {
    *failed_step = i;
    KERF_TRY(kerf_check_step(steps + i, find_in_table, &table));
  }
  *failed_step = -1;
  return KERF_OK;
}
