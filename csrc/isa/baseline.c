/* Any processor: GNU vectors of 4 floats, which are SSE2 on x86-64; tiles of 6 rows by 2 vectors. */
#include "../kernels/system.h"

#define ISA_NAME baseline
#define VEC_BYTES 16
#define TILE_ROWS 6

#include "../kernels/all.h"
