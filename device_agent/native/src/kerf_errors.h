// The codes that the library's functions return, and what each one says. No error is reported in any other way.
//
// 0 is success. A positive number is 1 + the index of a step that the chosen backend cannot run. Codes are never reused.
// Images: -20 and below.
#ifndef KERF_ERRORS_H
#define KERF_ERRORS_H

// X(name, code, text)
#define KERF_ERRORS(X)                                                                                                \
  X(KERF_OK, 0, "no error")                                                                                           \
  X(KERF_ERROR_BACKEND, -1, "there is no backend of this number: numbers are 0 .. kerf_num_backends() - 1")           \
  X(KERF_ERROR_COUNT, -2, "a number of steps, runs or rounds is negative or too large")                               \
  X(KERF_ERROR_CLOCK, -3, "the clock that was passed failed")                                                         \
  X(KERF_ERROR_THREADS, -4, "a number of threads is not in 1 .. 16, or a thread's number is not below it")            \
  X(KERF_ERROR_TEAM_MEMORY, -5, "the memory of a team is null or not at a multiple of 128 bytes")                     \
  X(KERF_ERROR_STOPPED, -6, "the team was stopped: its threads are gone")                                             \
  X(KERF_ERROR_NULL, -20, "a pointer that is needed is null")                                                         \
  X(KERF_ERROR_ALIGNMENT, -21, "images and memory begin at a multiple of 64 bytes")                                   \
  X(KERF_ERROR_TRUNCATED, -22, "the image is shorter than its header says")                                           \
  X(KERF_ERROR_MAGIC, -23, "this is no program image of Kerf")                                                        \
  X(KERF_ERROR_VERSION, -24, "the image was written by another version of Kerf: export it again")                     \
  X(KERF_ERROR_HEADER, -25, "the image's header contradicts itself")                                                  \
  X(KERF_ERROR_CHECKSUM, -26, "the image's checksum is wrong: the file is damaged")                                   \
  X(KERF_ERROR_REGION, -27, "a region is out of order or outside of its memory")                                      \
  X(KERF_ERROR_TENSOR, -28, "the input or the output does not fit its region")                                        \
  X(KERF_ERROR_REFERENCE, -29, "a step refers to a region that is not there")                                         \
  X(KERF_ERROR_MEMORY, -30, "less memory than kerf_image_check asks for")                                             \
  X(KERF_ERROR_KIND, -31, "a step of unknown kind")                                                                   \
  X(KERF_ERROR_EXTENT, -32, "an extent of a step is out of range or contradicts another")                             \
  X(KERF_ERROR_READ, -33, "a step would read outside of its memory")                                                  \
  X(KERF_ERROR_WRITE, -34, "a step would write outside of its memory, or over constants")                             \
  X(KERF_ERROR_INDEX, -35, "an index of a step is out of range or out of order")                                      \
  X(KERF_ERROR_LIST, -36, "an index list is in memory that steps can write")                                          \
  X(KERF_ERROR_TILE, -37, "the backend has no such tile")                                                              \
  X(KERF_ERROR_OVERLAP, -38, "a step would write over what it reads")

#define KERF_ERROR_CODE(name, code, text) name = code,
enum KerfError { KERF_ERRORS(KERF_ERROR_CODE) };
#undef KERF_ERROR_CODE

// Hands an error on to the caller.
#define KERF_TRY(call)                    \
  do {                                    \
    const int32_t code_ = (call);         \
    if (code_ != KERF_OK) return code_;   \
  } while (0)

#endif
