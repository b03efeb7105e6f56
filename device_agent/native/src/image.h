// A program image in memory: what its parts are, and that they are sound. docs/image.md describes the format.
#ifndef KERF_IMAGE_H
#define KERF_IMAGE_H

#include "check.h"
#include "kerf.h"
#include "kerf_errors.h"
#include "step_fields.h"

namespace {

const uint32_t FORMAT_VERSION = 1;
// As in PNG: a transfer that changes line ends or drops the eighth bit is found out.
const unsigned char MAGIC[8] = {0x8b, 'K', 'E', 'R', 'F', '\r', '\n', 0x1a};
const uint64_t FIRST_SUMMED_BYTE = 32;
// A reference is the byte in a region, and above these bits 1 + the number of the region. 0 is null.
const int REFERENCE_BITS = 40;
// Files and workspaces up to this, so that their addresses never wrap around.
const uint64_t MAX_BYTES = sizeof(void *) == 8 ? (uint64_t)1 << 40 : (uint64_t)1 << 30;
const uint32_t MAX_COUNT = 1 << 22;  // regions, steps

// The file is header | regions | steps | constants.
struct Tensor {
  uint64_t reference;
  KerfShape shape;
  uint32_t reserved;
};
struct Header {
  unsigned char magic[8];
  uint32_t format_version, abi_version;
  uint64_t image_bytes, checksum, workspace_bytes;
  uint32_t num_regions, num_constants, num_steps, step_bytes;
  Tensor input, output;
  char isa[16], name[64];
  uint32_t reserved[2];
};
struct Region {
  uint64_t offset, bytes;
};
static_assert(sizeof(Header) == 192 && sizeof(Region) == 16, "these sizes are part of the format");

// The parts of a file whose header is sound. The workspace may have any address as long as nothing is run: no check
// reads from it.
struct Image {
  const Header *header;
  const Region *regions;
  const unsigned char *records;
  uintptr_t file, workspace;
};

static inline uint64_t align_up(uint64_t bytes) { return (bytes + KERF_ALIGNMENT - 1) / KERF_ALIGNMENT * KERF_ALIGNMENT; }

// FNV-1a over 64-bit words. `bytes` is a multiple of 8.
uint64_t checksum(const unsigned char *data, uint64_t bytes) {
  const uint64_t *words = (const uint64_t *)data;
  uint64_t sum = 0xcbf29ce484222325;
  for (uint64_t i = 0; i < bytes / 8; i++) sum = (sum ^ words[i]) * 0x100000001b3;
  return sum;
}

// --- the file --------------------------------------------------------------------------------------------------------

// Regions are in order, apart from each other, and inside of the file after its tables, or inside of the workspace.
int32_t check_regions(const Image &image, uint64_t tables_end) {
  const Header &header = *image.header;
  uint64_t end = tables_end;
  for (uint32_t i = 0; i < header.num_regions; i++) {
    if (i == header.num_constants) end = 0;
    const uint64_t limit = i < header.num_constants ? header.image_bytes : header.workspace_bytes;
    const Region region = image.regions[i];
    if (region.offset % KERF_ALIGNMENT != 0 || region.offset < end || region.offset > limit) return KERF_ERROR_REGION;
    if (region.bytes == 0 || region.bytes > limit - region.offset) return KERF_ERROR_REGION;
    end = region.offset + region.bytes;
    // Nothing lies behind the last one.
    const bool is_last = i + 1 == header.num_constants || i + 1 == header.num_regions;
    if (is_last && align_up(end) != limit) return KERF_ERROR_REGION;
  }
  return KERF_OK;
}

bool is_text(const char *text, int size) {
  for (int i = 0; i < size; i++)
    if (text[i] == 0) return true;
  return false;
}

// Fills in `image` from a file whose header, sizes, checksum and regions are sound.
int32_t open_image(const void *data, uint64_t data_bytes, Image *image) {
  if (!data) return KERF_ERROR_NULL;
  if (data_bytes < sizeof(Header)) return KERF_ERROR_TRUNCATED;
  if ((uintptr_t)data % KERF_ALIGNMENT != 0) return KERF_ERROR_ALIGNMENT;
  const Header *header = (const Header *)data;
  for (int i = 0; i < 8; i++)
    if (header->magic[i] != MAGIC[i]) return KERF_ERROR_MAGIC;
  if (header->format_version != FORMAT_VERSION || header->abi_version != KERF_ABI_VERSION) return KERF_ERROR_VERSION;
  if (header->image_bytes > data_bytes) return KERF_ERROR_TRUNCATED;
  if (header->image_bytes > MAX_BYTES || header->image_bytes % KERF_ALIGNMENT != 0) return KERF_ERROR_HEADER;
  if (header->workspace_bytes > MAX_BYTES || header->workspace_bytes % KERF_ALIGNMENT != 0)
    return KERF_ERROR_HEADER;
  if (header->num_regions > MAX_COUNT || header->num_constants > header->num_regions) return KERF_ERROR_HEADER;
  if (header->num_steps > MAX_COUNT || header->step_bytes != STEP_RECORD_BYTES) return KERF_ERROR_HEADER;
  if (!is_text(header->isa, sizeof(header->isa)) || !is_text(header->name, sizeof(header->name)))
    return KERF_ERROR_HEADER;
  for (const uint32_t word : header->reserved)
    if (word != 0) return KERF_ERROR_HEADER;
  const uint64_t region_bytes = header->num_regions * sizeof(Region);
  const uint64_t tables_end = sizeof(Header) + region_bytes + header->num_steps * (uint64_t)STEP_RECORD_BYTES;
  if (header->image_bytes < tables_end) return KERF_ERROR_HEADER;
  const unsigned char *bytes = (const unsigned char *)data;
  if (checksum(bytes + FIRST_SUMMED_BYTE, header->image_bytes - FIRST_SUMMED_BYTE) != header->checksum)
    return KERF_ERROR_CHECKSUM;
  image->header = header;
  image->regions = (const Region *)(bytes + sizeof(Header));
  image->records = bytes + sizeof(Header) + region_bytes;
  image->file = (uintptr_t)data;
  image->workspace = image->file + header->image_bytes;
  return check_regions(*image, tables_end);
}

// The address that a reference stands for, and the bytes from it to the end of its region. False for regions that are
// not there.
bool resolve(const Image &image, uint64_t reference, uintptr_t *address, uint64_t *bytes) {
  const uint64_t index = (reference >> REFERENCE_BITS) - 1;
  const uint64_t byte = reference & (((uint64_t)1 << REFERENCE_BITS) - 1);
  if (index >= image.header->num_regions || byte >= image.regions[index].bytes) return false;
  const uintptr_t base = index < image.header->num_constants ? image.file : image.workspace;
  *address = base + (uintptr_t)image.regions[index].offset + (uintptr_t)byte;
  *bytes = image.regions[index].bytes - byte;
  return true;
}

// The input or the output: its address in the workspace.
int32_t find_tensor(const Image &image, const Tensor &tensor, uintptr_t *address) {
  const KerfShape shape = tensor.shape;
  const int64_t limit = 1 << 20;
  uint64_t bytes;
  if (tensor.reserved != 0 || !resolve(image, tensor.reference, address, &bytes)) return KERF_ERROR_TENSOR;
  if ((tensor.reference >> REFERENCE_BITS) - 1 < image.header->num_constants) return KERF_ERROR_TENSOR;
  if (*address % sizeof(float) != 0) return KERF_ERROR_TENSOR;
  if (shape.channels < 1 || shape.height < 1 || shape.width < 1) return KERF_ERROR_TENSOR;
  if (shape.channels > limit || shape.height > limit || shape.width > limit) return KERF_ERROR_TENSOR;
  const uint64_t elements = (uint64_t)shape.channels * (uint64_t)shape.height * (uint64_t)shape.width;
  return elements <= bytes / sizeof(float) ? KERF_OK : KERF_ERROR_TENSOR;
}

// --- steps -----------------------------------------------------------------------------------------------------------

// Fills in `step` from a record, with its references resolved to pointers into their regions.
int32_t read_step(const Image &image, uint32_t index, KerfStep *step) {
  const unsigned char *record = image.records + (uint64_t)index * STEP_RECORD_BYTES;
  unsigned char *target = (unsigned char *)step;
  for (const StepField &field : STEP_FIELDS) {
    if (field.type != 'P') {
      __builtin_memcpy(target + field.offset, record, field_bytes(field.type));
    } else {
      const uint64_t reference = *(const uint64_t *)record;
      uintptr_t address = 0;
      uint64_t bytes;
      if (reference != 0 && !resolve(image, reference, &address, &bytes)) return KERF_ERROR_REFERENCE;
      __builtin_memcpy(target + field.offset, &address, sizeof(address));
    }
    record += field_bytes(field.type);
  }
  return KERF_OK;
}

// A KerfFindSpan whose context is an Image. Regions do not meet, so an address in or at the end of one is in one only.
bool find_in_image(const void *context, const void *pointer, KerfSpan *span) {
  const Image &image = *(const Image *)context;
  const Header &header = *image.header;
  const uintptr_t address = (uintptr_t)pointer;
  const bool is_constant = address - image.file < header.image_bytes;
  const uintptr_t base = is_constant ? image.file : image.workspace;
  uint32_t low = is_constant ? 0 : header.num_constants, high = is_constant ? header.num_constants : header.num_regions;
  // The last region that begins at or before the address.
  while (low < high) {
    const uint32_t middle = low + (high - low) / 2;
    if (image.regions[middle].offset <= address - base) low = middle + 1;
    else high = middle;
  }
  if (low == (is_constant ? 0 : header.num_constants)) return false;
  const Region &region = image.regions[low - 1];
  const uint64_t before = address - base - region.offset;
  if (before > region.bytes) return false;
  span->before = before;
  span->after = region.bytes - before;
  span->is_writable = !is_constant;
  return true;
}

int32_t check_steps(const Image &image, int32_t *failed_step) {
  for (uint32_t i = 0; i < image.header->num_steps; i++) {
    KerfStep step;
    *failed_step = (int32_t)i;
    KERF_TRY(read_step(image, i, &step));
    KERF_TRY(kerf_check_step(&step, find_in_image, &image));
  }
  *failed_step = -1;
  return KERF_OK;
}

}  // namespace

#endif
