/* All kernels of one instruction set, and its table. */
#include "vector.h"
#include "math.h"
#include "layout.h"
#include "moments.h"
#include "tile.h"
#include "product.h"
#include "row_taps.h"
#include "outer.h"
#include "gemm.h"
#include "few_channels.h"
#include "planar.h"
#include "conv2d.h"
#include "winograd.h"
#include "winograd_weights.h"
#include "grouped.h"
#include "depthwise.h"
#include "pointwise.h"
#include "pool.h"
#include "planar_pool.h"
#include "resize.h"
#include "elementwise.h"
#include "norm.h"
#include "planar_norm.h"
#include "loss.h"
#include "optimizer.h"
#include "peak.h"

static const pycnn_kernel table[] = {
#define KERNEL(name, desc, arrays) { name, NULL },
#define KERNEL_WS(name, desc, arrays) { name, name##_workspace },
#include "../kernels.def"
#undef KERNEL
#undef KERNEL_WS
};

const pycnn_isa PYCNN_ISA_TABLE(ISA_NAME);
const pycnn_isa PYCNN_ISA_TABLE(ISA_NAME) = { table, VEC_BYTES, fma_loop };
