/* NEON on AArch64: 32 registers of 4 floats; tiles of 12 rows by 2 vectors. */
#if defined(__aarch64__)
#include "../kernels/system.h"

#define ISA_NAME neon
#define VEC_BYTES 16
#define TILE_ROWS 12
#define TILE_VECTORS 2
#define TALL_ROWS 12

#include "../kernels/all.h"
#else
typedef int not_on_this_processor;
#endif
