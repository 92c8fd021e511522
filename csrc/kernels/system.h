/* What the kernels need of the system, included before any target pragma. */
#include "../pycnn.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#else
static inline int omp_get_thread_num(void) { return 0; }
static inline int omp_get_num_threads(void) { return 1; }
#endif

typedef float any_float __attribute__((may_alias)); /* also an int32's memory */
