/* Finds out what the processor can do, keeps the table of the instruction set in use, and describes the
 * kernels to Python. */
#include "pycnn.h"

#include <stddef.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(__x86_64__)
#include <cpuid.h>

/* The register state that the operating system saves and restores (XCR0); 0 without OSXSAVE. */
static uint64_t saved_state(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & (1u << 27)))
        return 0;
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static int cpu_has_avx2(void)
{
    const uint64_t sse_and_avx_state = 0x6;
    const unsigned fma = 1u << 12, avx = 1u << 28, avx2 = 1u << 5;
    unsigned a, b, c, d;
    if ((saved_state() & sse_and_avx_state) != sse_and_avx_state)
        return 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || (c & (fma | avx)) != (fma | avx))
        return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & avx2);
}

static int cpu_has_avx512(void)
{
    const uint64_t opmask_and_zmm_state = 0xe6;
    const unsigned f = 1u << 16, dq = 1u << 17, bw = 1u << 30, vl = 1u << 31;
    unsigned a, b, c, d;
    if (!cpu_has_avx2() || (saved_state() & opmask_and_zmm_state) != opmask_and_zmm_state)
        return 0;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (f | dq | bw | vl)) == (f | dq | bw | vl);
}
#endif

#define ISA(name, usable) extern const pycnn_isa PYCNN_ISA_TABLE(name);
#include "isa.def"
#undef ISA

static const pycnn_isa *isa_table(int64_t isa)
{
    int64_t row = 0;
#define ISA(name, usable) if (isa == row++) return &PYCNN_ISA_TABLE(name);
#include "isa.def"
#undef ISA
    return NULL;
}

int64_t pycnn_isa_count(void)
{
    int64_t rows = 0;
#define ISA(name, usable) rows++;
#include "isa.def"
#undef ISA
    return rows;
}

const char *pycnn_isa_name(int64_t isa)
{
    static const char *const names[] = {
#define ISA(name, usable) #name,
#include "isa.def"
#undef ISA
    };
    return names[isa];
}

int pycnn_isa_usable(int64_t isa)
{
    int64_t row = 0;
#define ISA(name, usable) if (isa == row++) return usable;
#include "isa.def"
#undef ISA
    return 0;
}

static int64_t selected = -1;
static const pycnn_isa *active;

int pycnn_isa_select(int64_t isa)
{
    if (isa < 0 || isa >= pycnn_isa_count() || !pycnn_isa_usable(isa))
        return 0;
    selected = isa;
    active = isa_table(isa);
    return 1;
}

int64_t pycnn_isa_selected(void) { return selected; }
const pycnn_isa *pycnn_active(void) { return active; }
int64_t pycnn_vector_bytes(void) { return active->vector_bytes; }

static const struct { const char *name, *desc; int arrays, workspace; } descriptions[] = {
#define KERNEL(name, desc, arrays) { #name, #desc, arrays, 0 },
#define KERNEL_WS(name, desc, arrays) { #name, #desc, arrays, 1 },
#include "kernels.def"
#undef KERNEL
#undef KERNEL_WS
};

int64_t pycnn_kernel_count(void) { return (int64_t)(sizeof descriptions / sizeof descriptions[0]); }
const char *pycnn_kernel_name(int64_t kernel) { return descriptions[kernel].name; }
const char *pycnn_kernel_desc(int64_t kernel) { return descriptions[kernel].desc; }
int pycnn_kernel_arrays(int64_t kernel) { return descriptions[kernel].arrays; }
int pycnn_kernel_has_workspace(int64_t kernel) { return descriptions[kernel].workspace; }

int64_t pycnn_workspace(int64_t kernel, const void *desc, int64_t threads)
{
    return descriptions[kernel].workspace ? active->kernels[kernel].workspace(desc, threads) : 0;
}

const char *pycnn_compiler(void)
{
#if defined(__clang__)
    return "clang " __clang_version__;
#else
    return "gcc " __VERSION__;
#endif
}

int pycnn_has_openmp(void)
{
#ifdef _OPENMP
    return 1;
#else
    return 0;
#endif
}

int64_t pycnn_processors(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* The machine's multiply-add rate: each thread runs a loop of independent FMAs that touches no memory. */
double pycnn_peak_gflops(int64_t threads, int64_t iterations)
{
    double flops = 0, start = seconds();
#ifdef _OPENMP
#pragma omp parallel num_threads((int)threads) if (threads > 1) reduction(+ : flops)
#else
    (void)threads;
#endif
    flops += active->fma_loop(iterations);
    return flops / (seconds() - start) * 1e-9;
}
