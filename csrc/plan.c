/* Runs a list of calls.
 *
 *     for each stretch of calls that are all parallel, or none is:
 *         parallel region, or this thread alone:
 *             for each call:  resolve its arguments; run its kernel; end the run where the call says so
 *
 * Kernels share their loops among the region's threads by orphaned `omp for`, and every kernel ends with a
 * barrier, so the next call sees all of its results. */
#include "pycnn.h"

#include <math.h>
#include <stddef.h>

#ifdef _OPENMP
#include <omp.h>
#include <pthread.h>
#endif

enum { MAX_ARGUMENTS = sizeof((pycnn_call *)0)->args / sizeof(pycnn_ref) };

/* The number of the call that ended the run, or `last`. */
static int64_t run_calls(const pycnn_call *calls, int64_t first, int64_t last, void *const *bases)
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
        if (call->stops && !isfinite(*(const float *)args[0]))
            return i;
    }
    return last;
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

/* A stretch of calls that all are parallel. */
static int64_t run_parallel(const pycnn_call *calls, int64_t first, int64_t last, void *const *bases, int64_t threads)
{
    int64_t ended = last;
    (void)threads;
#pragma omp parallel num_threads((int)threads)
    {
        const int64_t end = run_calls(calls, first, last, bases);
#pragma omp master
        ended = end;
    }
    return ended;
}

/* Calls first..last-1; the number of the call that ended the run, or `last`. */
int64_t pycnn_run(const pycnn_call *calls, int64_t first, int64_t last, void *const *bases, int64_t threads)
{
    for (int64_t i = first, end; i < last; i = end) {
        const int64_t parallel = threads > 1 && calls[i].parallel;
        for (end = i + 1; end < last && (threads > 1 && calls[end].parallel) == parallel;)
            end++;
        const int64_t ended = parallel ? run_parallel(calls, i, end, bases, threads) : run_calls(calls, i, end, bases);
        if (ended < end)
            return ended;
    }
    return last;
}
