/* The C interface. What stands between the two cffi marks is also read by cffi, which takes no
 * preprocessor lines. All sizes are in elements and all offsets in bytes; pointers are to float32
 * unless a kernel says otherwise. Images are channels-last (N, H, W, C) everywhere in C. */
#ifndef PYCNN_H
#define PYCNN_H

#include <stdint.h>

/* cffi: begin */

/* An argument of a call: an offset into one of the blocks that a run is given; base -1 is NULL. */
typedef struct { int64_t base; int64_t offset; } pycnn_ref;

/* One entry of a plan. Arguments: outputs, inputs, then the workspace where the kernel has one. `parallel`: whether the
 * threads share its work; `stops`: whether the run ends after it if its first output, a float, is not finite. */
typedef struct {
    int64_t kernel;
    int64_t arguments;
    int64_t parallel, stops;
    const void *desc;
    pycnn_ref args[14];
} pycnn_call;

/* What a kernel does to its results as it stores them: nothing, or y where y > 0 and else slope * y. */
typedef struct { int64_t rectifies; float slope; } pycnn_epilogue;

/* Convolution. Element (tap, c, k) of the weights lies at tap * w_tap + c * w_c + k * w_k, where
 * tap = r * S + s and c counts within a group. */
typedef struct {
    int64_t n, c, h, w, k, r, s, oh, ow;
    int64_t stride_h, stride_w, pad_top, pad_bottom, pad_left, pad_right;
    int64_t dilation_h, dilation_w, groups;
    int64_t w_tap, w_c, w_k;
    int64_t prepacked;   /* whether the weights come as the pack_ kernel of the same name has left them */
    int64_t measures;    /* whether mean and variance of each filter's outputs are wanted */
    int64_t planes;      /* whether what it makes, y or dx, goes to contiguous planes (N, C, H, W) */
    int64_t from_planes; /* whether the images it takes come in such planes; for Winograd alone, undilated and
                          * with as many patches as columns */
    pycnn_epilogue epilogue;
} pycnn_conv2d;

typedef struct {
    int64_t n, c, h, w, r, s, oh, ow;
    int64_t stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
    int64_t count_include_pad;
    pycnn_epilogue epilogue;    /* of max_pool2d */
} pycnn_pool2d;

/* Images of (h, w) made to (oh, ow); an upsampling is by whole numbers, bilinear or by the nearest pixel. */
typedef struct { int64_t n, c, h, w, oh, ow, bilinear; } pycnn_resize;

/* Images of (h, w) with so many rows and columns of zeros around them; below zero, with so many less. */
typedef struct { int64_t n, c, h, w, top, bottom, left, right; } pycnn_pad2d;

/* c (m, n) = alpha * a b + beta * c + bias; element (i, p) of a lies at i * a_row + p * a_col, etc. */
typedef struct {
    int64_t m, n, k;
    int64_t a_row, a_col, b_row, b_col;
    float alpha, beta;
    int64_t planes;      /* whether c is written transposed, (n, m): as planes, one for each column; with beta 0 */
    int64_t prepacked;   /* as for convolution, b being the weights */
    pycnn_epilogue epilogue;
} pycnn_gemm;

/* Rows by columns: matrices, or pixels by channels. */
typedef struct { int64_t rows, columns; } pycnn_matrix;

/* Convolution weights of rows (taps and channels) by columns (filters), and the batch norm to be folded into them. */
typedef struct { int64_t rows, columns; float eps; } pycnn_fold;

/* Some columns of a matrix that become columns of another: where the first row of them starts in each matrix, and
 * how far apart rows are. */
typedef struct { int64_t rows, columns, from, from_row, to, to_row; } pycnn_columns;

/* n matrices of rows by columns, each to be transposed. */
typedef struct { int64_t n, rows, columns; } pycnn_transpose;

/* Rows by channels; training takes the statistics of the batch, which the convolution before may have measured,
 * otherwise the running ones. */
typedef struct {
    int64_t rows, columns, training, measured;
    int64_t plane;              /* floats of a contiguous plane, where a kernel goes by planes */
    float eps, momentum;
    pycnn_epilogue epilogue;
} pycnn_batch_norm;

/* Element-wise; `kind` picks the activation, in the order of elementwise.h. */
typedef struct {
    int64_t size, kind;
    float alpha;
} pycnn_elementwise;

/* Dropout of (n, h, w, c): an element, or (spatial) a channel of an image, is kept, times scale, where its random word
 * >= threshold. */
typedef struct {
    int64_t n, h, w, c;
    int64_t entry, threshold, spatial;
    float scale;
} pycnn_dropout;

/* A loss of rows by columns; `parameter` is cross entropy's label smoothing, Huber's delta. */
typedef struct {
    int64_t rows, columns;
    float parameter;
} pycnn_loss;

/* The constants of an update; what changes from step to step comes through a pointer (optimizer.h). rest: 1 - beta, in
 * double. weight_decay is part of the gradient, decoupled_decay (AdamW's) of the step. */
typedef struct {
    int64_t size, nesterov;
    float momentum, beta1, beta2, rest1, rest2, eps, weight_decay, decoupled_decay, clip_value;
} pycnn_update;

int64_t pycnn_kernel_count(void);
const char *pycnn_kernel_name(int64_t kernel);
const char *pycnn_kernel_desc(int64_t kernel);
int pycnn_kernel_arrays(int64_t kernel);
int pycnn_kernel_has_workspace(int64_t kernel);
int64_t pycnn_workspace(int64_t kernel, const void *desc, int64_t threads);

int64_t pycnn_isa_count(void);
const char *pycnn_isa_name(int64_t isa);
int pycnn_isa_usable(int64_t isa);
int pycnn_isa_select(int64_t isa);
int64_t pycnn_isa_selected(void);
int64_t pycnn_vector_bytes(void);

const char *pycnn_compiler(void);
int pycnn_has_openmp(void);
int64_t pycnn_processors(void);
int64_t pycnn_run(const pycnn_call *calls, int64_t first, int64_t last, void *const *bases, int64_t threads);
double pycnn_peak_gflops(int64_t threads, int64_t iterations);

/* cffi: end */

typedef struct {
    void (*run)(const void *desc, void *const *args);
    int64_t (*workspace)(const void *desc, int64_t threads);
} pycnn_kernel;

/* An instruction set's table: its kernels in the order of kernels.def, and its peak loop. */
typedef struct {
    const pycnn_kernel *kernels;
    int64_t vector_bytes;
    double (*fma_loop)(int64_t iterations);
} pycnn_isa;

#define PYCNN_ISA_TABLE_(name) pycnn_isa_##name
#define PYCNN_ISA_TABLE(name) PYCNN_ISA_TABLE_(name)

const pycnn_isa *pycnn_active(void);

#endif
