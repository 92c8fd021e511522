/* AVX2 and FMA: 16 registers of 8 floats; tiles of 6 rows by 2 vectors. A prefetch for a store (prfchw) takes the line
 * away from other cores at once; processors before 2014 pass over it. */
#if defined(__x86_64__)
#include "../kernels/system.h"
#include <immintrin.h>

#define ISA_NAME avx2
#define VEC_BYTES 32
#define TILE_ROWS 6
#define TILE_VECTORS 2
#define TALL_ROWS 12

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,prfchw"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,prfchw")
#endif

/* The first n of eight lanes: lane numbers below n. */
#define LANES_BELOW(n) _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define LOAD_PART(p, n) ((vec)_mm256_maskload_ps(p, LANES_BELOW(n)))
#define STORE_PART(p, v, n) store_lanes(p, (__m256)(v), n)
#define VEC_MAX(a, b) ((vec)_mm256_max_ps((__m256)(a), (__m256)(b)))

/* By halves: a masked store is many times slower on some processors. */
static inline void store_lanes(float *p, __m256 v, int64_t n)
{
    __m128 part = _mm256_castps256_ps128(v);
    if (n & 4) {
        _mm_storeu_ps(p, part);
        part = _mm256_extractf128_ps(v, 1);
        p += 4;
    }
    if (n & 2) {
        _mm_storel_pi((__m64 *)p, part);
        part = _mm_movehl_ps(part, part);
        p += 2;
    }
    if (n & 1)
        *(any_float *)p = part[0];
}

/* p is a multiple of 32. */
#define STREAM(p, v) _mm256_stream_ps(p, (__m256)(v))
#define END_STREAM _mm_sfence()

#define LOAD_PAIR(low, high)                                                                                  \
    ((eight)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1))

#define LOAD_FOURS(p, step) ((vec)LOAD_PAIR(p, (p) + (step)))
#define STORE_FOURS(p, step, v) store_fours(p, step, (__m256)(v))
static inline void store_fours(float *p, int64_t step, __m256 v)
{
    _mm_storeu_ps(p, _mm256_castps256_ps128(v));
    _mm_storeu_ps(p + step, _mm256_extractf128_ps(v, 1));
}

#include "../kernels/all.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int not_on_this_processor;
#endif
