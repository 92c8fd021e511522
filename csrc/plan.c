/* Runs a list of calls in one parallel region.
 *
 *     parallel region:
 *         for each call:  resolve its arguments; run its kernel
 *
 * Kernels share their loops among the region's threads by orphaned `omp for`, and every kernel ends with a
 * barrier, so the next call sees all of its results. */
#include "pycnn.h"

#include <stddef.h>

#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#endif

enum { MAX_ARGUMENTS = sizeof((pycnn_call *)0)->args / sizeof(pycnn_ref) };

static void run_calls(const pycnn_call *calls, int64_t first, int64_t last, void *const *bases)
{
    const pycnn_kernel *kernels = pycnn_active()->kernels;
    for (int64_t i = first; i < last; i++) {
        const pycnn_call *call = &calls[i];
        void *args[MAX_ARGUMENTS];
        for (int64_t j = 0; j < call->arguments; j++) {
            const pycnn_ref ref = call->args[j];
            args[j] = ref.base < 0 ? NULL : (char *)bases[ref.base] + ref.offset;
        }
        kernels[call->kernel].run(call->desc, args);
    }
}

#ifdef _OPENMP
/* A forked child has none of its parent's threads, yet libgomp would wait for them at its next parallel
 * region. Releasing the pool before the fork makes both sides start a new one when they need it. */
static void release_threads(void)
{
#if _OPENMP >= 201811 || __GNUC__ >= 9 /* gcc has it without claiming OpenMP 5 */
    omp_pause_resource_all(omp_pause_soft);
#endif
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(release_threads, NULL, NULL); }
#endif

void pycnn_run(const pycnn_call *calls, int64_t first, int64_t last, void *const *bases, int64_t threads)
{
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads((int)threads)
        run_calls(calls, first, last, bases);
        return;
    }
#else
    (void)threads;
#endif
    run_calls(calls, first, last, bases);
}
