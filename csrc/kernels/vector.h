/* Vectors of VL floats over GNU vector extensions: the macros and functions all kernels are written with. */

typedef float vec __attribute__((vector_size(VEC_BYTES)));
typedef int32_t ivec __attribute__((vector_size(VEC_BYTES)));
typedef uint32_t uvec __attribute__((vector_size(VEC_BYTES)));
typedef float vec_anywhere __attribute__((vector_size(VEC_BYTES), aligned(4), may_alias));

enum { VL = VEC_BYTES / 4, LINE_BYTES = 64 };

/* What a thread may keep in L2, as blocks are cut. */
#ifndef CACHE_FLOATS
#define CACHE_FLOATS 81920
#endif

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
/* Makes the compiler load again what it would otherwise keep in registers that are wanted for sums. */
#define LOAD_AGAIN __asm__ volatile("" ::: "memory")
/* Keeps the compiler from making vectors of what a short loop does. */
#define ONE_BY_ONE __asm__ volatile("")
#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

INLINE vec load(const float *p) { return *(const vec_anywhere *)p; }
INLINE void store(float *p, vec v) { *(vec_anywhere *)p = v; }

/* For what is used several times, which compilers for x86 may load again as an operand of each use. */
INLINE vec load_once(const float *p)
{
    vec v = load(p);
#ifdef __x86_64__
    __asm__("" : "+v"(v));
#endif
    return v;
}

/* x - 0 is x to the bit, which x + 0 is not for -0. */
INLINE vec splat(float x) { return x - (vec){ 0 }; }
INLINE ivec splat_int(int32_t x) { return x - (ivec){ 0 }; }

#ifndef LOAD_PART
INLINE vec load_part_(const any_float *p, int64_t n)
{
    vec v = { 0 };
    for (int64_t i = 0; i < n; i++)
        v[i] = p[i];
    return v;
}
INLINE void store_part_(any_float *p, vec v, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        p[i] = v[i];
}
#define LOAD_PART(p, n) load_part_(p, n)
#define STORE_PART(p, v, n) store_part_(p, v, n)
#endif

/* The first n lanes (the others zero); n may be VL or more. */
INLINE vec load_n(const float *p, int64_t n) { return n >= VL ? load(p) : LOAD_PART(p, n); }

/* These call the line of p[at], which may lie outside of the array. */
INLINE void call_for_reading(const float *p, int64_t at)
{
    __builtin_prefetch((const void *)((uintptr_t)p + (uintptr_t)at * sizeof(float)));
}
INLINE void call_into_l2(const float *p, int64_t at)
{
    __builtin_prefetch((const void *)((uintptr_t)p + (uintptr_t)at * sizeof(float)), 0, 2);
}
INLINE void call_for_writing(const float *p, int64_t at)
{
    __builtin_prefetch((const void *)((uintptr_t)p + (uintptr_t)at * sizeof(float)), 1);
}

/* As load_n; where a loop reads an array from memory (`far`), what it reads later is called: a processor that does so
 * by itself ends with each page. */
enum { AHEAD_FLOATS = 1024 };
INLINE vec get_n(const float *p, int64_t n, int far)
{
    if (far)
        call_for_reading(p, AHEAD_FLOATS);
    return load_n(p, n);
}

INLINE void store_n(float *p, vec v, int64_t n)
{
    if (n >= VL)
        store(p, v);
    else
        STORE_PART(p, v, n);
}

/* The outputs of a kernel that reads and writes so many floats, more than a usual last cache holds, go past the caches:
 * the next reader would find few of them there, and a line that a plain store writes is first fetched from memory. */
enum { STREAM_FLOATS = 10 << 20 };

#ifndef STREAM
#define STREAM(p, v) store(p, v)
#define END_STREAM (void)0
#endif

INLINE int moves_much(int64_t moved) { return moved >= STREAM_FLOATS; }

/* Whether the outputs, which are stored in rows of `step`, are streamed by a kernel that moves so many floats. */
INLINE int streams(const float *out, int64_t moved, int64_t step)
{
    return moves_much(moved) && step % VL == 0 && (uintptr_t)out % VEC_BYTES == 0;
}

/* What follows the loop, without a barrier of its own, of threads that store past the caches. */
static void end_stream(int past)
{
    if (past)
        END_STREAM;
#pragma omp barrier
}

/* The floats before the next vector that may go past the caches, at most n. */
INLINE int64_t before_vector(const float *p, int64_t n)
{
    return MIN(n, (int64_t)(-(uintptr_t)p % VEC_BYTES / sizeof(float)));
}

/* As store_n, or past the caches. */
INLINE void put_n(float *p, vec v, int64_t n, int past)
{
    if (past && n >= VL)
        STREAM(p, v);
    else
        store_n(p, v, n);
}

INLINE ivec load_int_n(const int32_t *p, int64_t n) { return (ivec)load_n((const float *)p, n); }
INLINE void store_int_n(int32_t *p, ivec v, int64_t n) { store_n((float *)p, (vec)v, n); }

/* For short runs, where a call of memcpy or memset costs more than the work. */
INLINE void copy_floats(float *to, const float *from, int64_t n)
{
    for (int64_t i = 0; i < n; i += VL)
        store_n(to + i, load_n(from + i, n - i), n - i);
}
INLINE void clear_floats(float *to, int64_t n)
{
    for (int64_t i = 0; i < n; i += VL)
        store_n(to + i, splat(0), n - i);
}

/* Comparisons give lanes of all ones or all zeros. */
INLINE vec where(ivec mask, vec a, vec b) { return (vec)((mask & (ivec)a) | (~mask & (ivec)b)); }
INLINE ivec where_int(ivec mask, ivec a, ivec b) { return (mask & a) | (~mask & b); }
#ifndef VEC_MAX
#define VEC_MAX(a, b) where((a) > (b), a, b)
#endif
/* a where a > b, else b: also where one is NaN. */
INLINE vec vec_max(vec a, vec b) { return VEC_MAX(a, b); }

/* A value, found at some place, replaces the highest so far when it is greater or NaN: ties keep the first, and a NaN
 * comes out. */
INLINE void take_greater(vec *best, ivec *at_best, vec v, ivec at)
{
#ifdef TAKE_GREATER
    TAKE_GREATER(*best, *at_best, v, at);
#else
    const ivec takes = (v > *best) | (v != v);
    *best = where(takes, v, *best);
    *at_best = where_int(takes, at, *at_best);
#endif
}

/* v where v > 0, and else slope * v, or 0 even of an infinity where slope is 0; NaN stays NaN. */
INLINE vec rectify(vec v, float slope)
{
    return where(v <= 0.0f, slope == 0 ? splat(0) : v * slope, v);
}

/* All ones in the first n lanes. */
INLINE ivec lanes_below(int64_t n)
{
    ivec lane;
    for (int i = 0; i < VL; i++)
        lane[i] = i;
    return lane < (int32_t)n;
}

/* The even and the odd lanes of a and b, and back: a0 b0 a1 b1 ... */
#if defined(__clang__)
#define LANES_OF(name, from) \
    INLINE vec name(vec a, vec b) \
    { \
        vec to = { 0 }; \
        UNROLL for (int i = 0; i < VL; i++) \
            to[i] = (from) < VL ? a[(from) % VL] : b[(from) % VL]; \
        return to; \
    }
#else
#define LANES_OF(name, from) \
    INLINE vec name(vec a, vec b) \
    { \
        ivec lanes = { 0 }; \
        UNROLL for (int i = 0; i < VL; i++) \
            lanes[i] = from; \
        return __builtin_shuffle(a, b, lanes); \
    }
#endif
LANES_OF(even_lanes, 2 * i)
LANES_OF(odd_lanes, 2 * i + 1)
LANES_OF(low_pairs, i / 2 + i % 2 * VL)
LANES_OF(high_pairs, i / 2 + VL / 2 + i % 2 * VL)

/* Lane i gets lane `from` of v, an expression of i and constants. */
#if defined(__clang__)
#define MOVE_LANES(v, from)                                                                                   \
    vec to = { 0 };                                                                                           \
    UNROLL for (int i = 0; i < VL; i++)                                                                       \
        to[i] = v[from];                                                                                      \
    return to
#else
#define MOVE_LANES(v, from)                                                                                   \
    ivec lanes = { 0 };                                                                                       \
    UNROLL for (int i = 0; i < VL; i++)                                                                       \
        lanes[i] = from;                                                                                      \
    return __builtin_shuffle(v, lanes)
#endif
/* Each lane gets lane l of the 2^n lanes that it is one of. */
INLINE vec spread_lane(vec v, const int lanes_each, const int l) { MOVE_LANES(v, i / lanes_each * lanes_each + l); }
/* Each lane gets the one so many behind it, the last lanes the first ones. */
INLINE vec rotate_lanes(vec v, const int by) { MOVE_LANES(v, (i + by) % VL); }

/* Each lane gets its neighbour: a1 a0 a3 a2 ... */
INLINE vec swap_pairs(vec v) { MOVE_LANES(v, i ^ 1); }

/* A fixed order: one half of the lanes is added to the other, as long as there are two. */
INLINE float lane_sum(vec v)
{
    v = VL > 8 ? v + rotate_lanes(v, 8) : v;
    v = VL > 4 ? v + rotate_lanes(v, 4) : v;
    v = v + rotate_lanes(v, 2);
    v = v + rotate_lanes(v, 1);
    return v[0];
}

/* floor(a / b) for b > 0, also below zero. */
INLINE int64_t floor_div(int64_t a, int64_t b) { return (a >= 0 ? a : a - b + 1) / b; }
INLINE int64_t ceil_div(int64_t a, int64_t b) { return -floor_div(-a, b); }
INLINE int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

/* Sizes of workspace parts are kept at multiples of a cache line. */
INLINE int64_t line_floats(int64_t floats) { return round_up(floats, 16); }

/* The threads' own parts of a workspace, each of so many floats. A page lies in front of each and behind the last: the
 * processor fetches lines behind those that one thread reads, and would take them from another that writes them. */
enum { PAGE_FLOATS = 1024 };
INLINE int64_t own_floats(int64_t threads, int64_t floats) { return threads * (floats + PAGE_FLOATS) + PAGE_FLOATS; }
INLINE float *own_part(float *parts, int64_t floats)
{
    return parts + PAGE_FLOATS + omp_get_thread_num() * (floats + PAGE_FLOATS);
}

/* Where part i of n begins when `total` is cut into n even parts. */
INLINE int64_t part_start(int64_t total, int64_t i, int64_t n)
{
    return n == 1 ? total * i : total / n * i + MIN(i, total % n);
}
/* Which part of these item `at` lies in. */
INLINE int64_t part_holding(int64_t total, int64_t at, int64_t n)
{
    const int64_t longer = total % n * (total / n + 1);
    return at < longer ? at / (total / n + 1) : total % n + (at - longer) / (total / n);
}

/* The task that a thread takes next in a loop of tasks that are shared as threads come for them; `taken` counts its
 * own. Of two threads, one begins with the first task and the other with the last: what they wrote or read in the loop
 * before lies in their own caches, however much faster one of them is. */
INLINE int64_t next_task(int64_t ticket, int64_t tasks, int64_t *taken)
{
    const int64_t own = (*taken)++;
    return omp_get_num_threads() != 2 ? ticket : omp_get_thread_num() == 0 ? own : tasks - 1 - own;
}
