/* AVX2 and FMA: 16 registers of 8 floats; tiles of 6 rows by 2 vectors. */
#if defined(__x86_64__)
#include "../kernels/system.h"
#include <immintrin.h>

#define ISA_NAME avx2
#define VEC_BYTES 32
#define TILE_ROWS 6

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

/* The first n of eight lanes: lane numbers below n. */
#define LANES_BELOW(n) _mm256_cmpgt_epi32(_mm256_set1_epi32((int)(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
#define LOAD_PART(p, n) ((vec)_mm256_maskload_ps(p, LANES_BELOW(n)))
#define STORE_PART(p, v, n) _mm256_maskstore_ps(p, LANES_BELOW(n), (__m256)(v))
#define VEC_MAX(a, b) ((vec)_mm256_max_ps((__m256)(a), (__m256)(b)))

#include "../kernels/all.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#else
typedef int not_on_this_processor;
#endif
