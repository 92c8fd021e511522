/* Any processor: GNU vectors of 4 floats, which are SSE2 on x86-64; tiles of 3 rows by 4 vectors. */
#include "../kernels/system.h"

#define ISA_NAME baseline
#define VEC_BYTES 16
#define TILE_ROWS 3
#define TILE_VECTORS 4
#define TALL_ROWS 6

#if defined(__SSE2__)
#include <emmintrin.h>
/* p is a multiple of 16. */
#define STREAM(p, v) _mm_stream_ps(p, (__m128)(v))
#define END_STREAM _mm_sfence()
#endif

#include "../kernels/all.h"
