/* The C API: loads a program image (network.kerf, written by `kerf export`) and runs it. For C99 and C++.
 *
 * No function allocates memory, keeps global state, or needs a C library. Functions return KERF_OK (0) or an error code;
 * kerf_error_message says what it means. Networks do not share anything: each may run in a thread of its own, but one
 * network must not be run by two threads at the same time.
 */
#ifndef KERF_H
#define KERF_H

#include <stdint.h>

#include "kerf_errors.h"
#include "kerf_team.h"

#ifdef __cplusplus
extern "C" {
#endif

/* The image and the memory of a network begin at a multiple of this many bytes. */
#define KERF_ALIGNMENT 64
/* Instead of a backend's number: the fastest one that this processor runs. */
#define KERF_FASTEST (-1)

/* A tensor of float32 as channels x height x width, without gaps. */
typedef struct KerfShape {
  int32_t channels, height, width;
} KerfShape;

typedef struct KerfImageInfo {
  uint64_t memory_bytes; /* of the memory that kerf_network_init needs: buffers and steps. Weights stay in the image. */
  KerfShape input, output;
  int32_t num_steps;
  int32_t failed_step; /* the step that an error is about, or -1 */
  char isa[16];        /* the instruction set that the image was tuned for */
  char name[64];       /* of the network, UTF-8, cut where it is longer */
} KerfImageInfo;

/* A prepared network, inside of the caller's memory. */
typedef struct KerfNetwork KerfNetwork;

/* Checks an image completely: nothing that its network could read or write lies outside of the image or of the
 * network's memory. Fills in `info`, where it is not null, as far as the image is sound. */
int32_t kerf_image_check(const void *image, uint64_t image_bytes, KerfImageInfo *info);

/* Checks the image and prepares its network in `memory`. Image and memory must stay as they are for as long as the
 * network is used; nothing has to be released. `backend` is KERF_FASTEST or a number below kerf_num_backends(). */
int32_t kerf_network_init(void *memory, uint64_t memory_bytes, const void *image, uint64_t image_bytes, int32_t backend,
                          KerfNetwork **network);

/* Where the input is to be written before a run, and where the output is after it. Both stay valid. A run leaves the
 * input as it is. */
float *kerf_network_input(KerfNetwork *network);
const float *kerf_network_output(const KerfNetwork *network);

/* Runs the network once. */
int32_t kerf_network_run(KerfNetwork *network);
/* The same on several threads: see kerf_team.h for where they come from. The output has the same bits. */
int32_t kerf_network_run_on_team(KerfNetwork *network, struct KerfTeam *team);

/* The backends of the library, one for each instruction set, fastest first. */
int32_t kerf_num_backends(void);
const char *kerf_backend_name(int32_t backend);
int32_t kerf_backend_is_supported(int32_t backend);
/* The number of the backend that `network` runs on. */
int32_t kerf_network_backend(const KerfNetwork *network);

/* What a code means, in English. Never null. */
const char *kerf_error_message(int32_t code);

#ifdef __cplusplus
}
#endif

#endif
