/* AVX-512: 32 registers of 16 floats; tiles of 7 rows by 4 vectors. */
#if defined(__x86_64__)
#include "../kernels/system.h"
#include <immintrin.h>

#define ISA_NAME avx512
#define VEC_BYTES 64
#define TILE_ROWS 7
#define TILE_VECTORS 4
#define TALL_ROWS 14
#define QUAD_ROWS 8
#define CACHE_FLOATS (1 << 18)

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prfchw"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,prfchw,prefer-vector-width=512")
#endif

#define LOAD_PART(p, n) ((vec)_mm512_maskz_loadu_ps((__mmask16)((1u << (n)) - 1), p))
#define STORE_PART(p, v, n) _mm512_mask_storeu_ps(p, (__mmask16)((1u << (n)) - 1), (__m512)(v))
/* Twice a masked move where GCC makes two pairs of exclusive ors of `where`. */
#define TAKE_GREATER(best, at_best, v, at)                                                                    \
    do {                                                                                                      \
        const __mmask16 takes = _mm512_cmp_ps_mask((__m512)(v), (__m512)(best), _CMP_GT_OQ) |                 \
                                _mm512_cmp_ps_mask((__m512)(v), (__m512)(v), _CMP_UNORD_Q);                   \
        best = (vec)_mm512_mask_mov_ps((__m512)(best), takes, (__m512)(v));                                   \
        at_best = (ivec)_mm512_mask_mov_epi32((__m512i)(at_best), takes, (__m512i)(at));                      \
    } while (0)
#define VEC_MAX(a, b) ((vec)_mm512_max_ps((__m512)(a), (__m512)(b)))

/* p is a multiple of 64. */
#define STREAM(p, v) _mm512_stream_ps(p, (__m512)(v))
#define END_STREAM _mm_sfence()

#define LOAD_PAIR(low, high)                                                                                  \
    ((eight)_mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(low)), _mm_loadu_ps(high), 1))

#define LOAD_FOURS(p, step) ((vec)load_fours(p, step))
#define STORE_FOURS(p, step, v) store_fours(p, step, (__m512)(v))
static inline __m512 load_fours(const float *p, int64_t step)
{
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(p));
    v = _mm512_insertf32x4(v, _mm_loadu_ps(p + step), 1);
    v = _mm512_insertf32x4(v, _mm_loadu_ps(p + 2 * step), 2);
    return _mm512_insertf32x4(v, _mm_loadu_ps(p + 3 * step), 3);
}
static inline void store_fours(float *p, int64_t step, __m512 v)
{
    _mm_storeu_ps(p, _mm512_castps512_ps128(v));
    _mm_storeu_ps(p + step, _mm512_extractf32x4_ps(v, 1));
    _mm_storeu_ps(p + 2 * step, _mm512_extractf32x4_ps(v, 2));
    _mm_storeu_ps(p + 3 * step, _mm512_extractf32x4_ps(v, 3));
}

/* Four floats, or n < 4 of them and zeros, again and again. */
#define SPREAD_FOUR(p) ((vec)_mm512_broadcast_f32x4(_mm_loadu_ps(p)))
#define SPREAD_PART(p, n) ((vec)_mm512_broadcast_f32x4(_mm_maskz_loadu_ps((__mmask8)((1u << (n)) - 1), p)))

#include "../kernels/all.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int not_on_this_processor;
#endif
