/* Batch normalisation of contiguous planes (N, C, H, W), as norm.h does it for pixels.
 *
 *     for each channel (shared among threads):
 *         over all of its planes: sums of g and of g (x - shift), where g is dy, or x - shift for mean and variance
 *         for each of its planes, the last one first, which may still be in a cache: y or dx
 *
 * Mean and variance are taken relative to the first plane's mean, so that a mean far from zero does not cancel. Sums of
 * single precision stay short: after RUN_FLOATS of them they are added to those of double precision. */

enum { RUN_FLOATS = 1024, CALLED_PLANE = 256, CALL_AHEAD = 512 };

typedef struct { int64_t images, plane, step; } channel_planes;   /* step: floats from image to image */

INLINE channel_planes planes_of(const pycnn_batch_norm *d)
{
    return (channel_planes){ d->rows / d->plane, d->plane, d->plane * d->columns };
}

/* Adds n values of g and of g (x - shift) to two vectors of sums each; dy NULL: g is x - shift. */
INLINE void add_run(vec first[2], vec second[2], const float *x, const float *dy, float shift, int64_t n)
{
    int64_t i = 0;
    for (; i + 2 * VL <= n; i += 2 * VL)
        UNROLL for (int v = 0; v < 2; v++) {
            const vec distance = load(x + i + v * VL) - shift, g = dy ? load(dy + i + v * VL) : distance;
            first[v] = first[v] + g;
            second[v] = second[v] + g * distance;
        }
    for (; i < n; i += VL) {
        const vec distance = (vec)((ivec)(load_n(x + i, n - i) - shift) & lanes_below(MIN(VL, n - i)));
        const vec g = dy ? load_n(dy + i, n - i) : distance;
        first[0] = first[0] + g;
        second[0] = second[0] + g * distance;
    }
}

typedef struct { double first, second; } channel_sums;

INLINE channel_sums sums_of_channel(channel_planes p, const float *x, const float *dy, float shift)
{
    const int64_t together = MAX(1, RUN_FLOATS / p.plane);
    channel_sums sums = { 0, 0 };
    for (int64_t image = 0; image < p.images; image += together)
        for (int64_t i = 0; i < p.plane; i += RUN_FLOATS) {
            vec first[2] = { splat(0), splat(0) }, second[2] = { splat(0), splat(0) };
            for (int64_t n = image; n < MIN(p.images, image + together); n++)
                add_run(first, second, x + n * p.step + i, dy ? dy + n * p.step + i : NULL, shift,
                        MIN(RUN_FLOATS, p.plane - i));
            sums.first += lane_sum(first[0] + first[1]);
            sums.second += lane_sum(second[0] + second[1]);
        }
    return sums;
}

static void channel_moments(channel_planes p, const float *x, float *mean, float *variance)
{
    channel_planes one = p;
    one.images = 1;
    const float shift = x[0] + (float)(sums_of_channel(one, x, NULL, x[0]).first / (double)p.plane);
    const channel_sums sums = sums_of_channel(p, x, NULL, shift);
    const double count = (double)(p.images * p.plane), distance = sums.first / count;
    *mean = (float)(shift + distance);
    *variance = (float)MAX(0, sums.second / count - distance * distance);
}

/* y, mean, rstd (both kept for backward), variance (of training), x, gamma, beta, running_mean, running_var (both read
 * where it is not training) */
static void planar_batch_norm(const void *desc, void *const *args)
{
    const pycnn_batch_norm own = *(const pycnn_batch_norm *)desc, *d = &own;
    const channel_planes p = planes_of(d);
    float *mean = args[1], *rstd = args[2], *variance = args[3];
    const float *gamma = args[5], *beta = args[6], *running_mean = args[7], *running_var = args[8];
    const int past = streams(args[0], 2 * d->rows * d->columns, d->plane);
#pragma omp for schedule(static) nowait
    for (int64_t c = 0; c < d->columns; c++) {
        float *y = (float *)args[0] + c * p.plane;
        const float *x = (const float *)args[4] + c * p.plane;
        if (d->training)
            channel_moments(p, x, &mean[c], &variance[c]);
        else
            mean[c] = running_mean[c];
        rstd[c] = (float)(1.0 / sqrt((double)(d->training ? variance : running_var)[c] + d->eps));
        const float centre = mean[c], scale = rstd[c] * gamma[c], shift = beta[c];
        for (int64_t n = p.images - 1; n >= 0; n--)
            for (int64_t i = n * p.step, end = i + p.plane; i < end; i += VL)
                put_n(y + i, (load_n(x + i, end - i) - centre) * scale + shift, end - i, past);
    }
    end_stream(past);
}

/* dx, dgamma = sum dy x^, dbeta = sum dy, dy, x, mean, rstd, gamma */
static void planar_batch_norm_backward(const void *desc, void *const *args)
{
    const pycnn_batch_norm own = *(const pycnn_batch_norm *)desc, *d = &own;
    const channel_planes p = planes_of(d);
    float *dgamma = args[1], *dbeta = args[2];
    const float *mean = args[5], *rstd = args[6], *gamma = args[7];
    const float share = d->training ? 1.0f / (float)d->rows : 0.0f;
    const int past = streams(args[0], 3 * d->rows * d->columns, d->plane), calls_dx = !past && p.plane >= CALLED_PLANE;
    const int64_t ahead = MIN(CALL_AHEAD, p.plane);
#pragma omp for schedule(static) nowait
    for (int64_t c = 0; c < d->columns; c++) {
        float *dx = (float *)args[0] + c * p.plane;
        const float *dy = (const float *)args[3] + c * p.plane, *x = (const float *)args[4] + c * p.plane;
        const channel_sums sums = sums_of_channel(p, x, dy, mean[c]);
        dgamma[c] = (float)(sums.second * rstd[c]);
        dbeta[c] = (float)sums.first;
        const float centre = mean[c], scale = gamma[c] * rstd[c];
        const float shift = dbeta[c] * share, slope = dgamma[c] * share * rstd[c];
        for (int64_t n = p.images - 1; n >= 0; n--)
            for (int64_t i = n * p.step, end = i + p.plane; i < end; i += VL) {
                if (calls_dx) /* x and dy are near, dx is not */
                    call_for_writing(dx, i + ahead < end ? i + ahead : i + ahead - p.plane - p.step);
                const vec through = (load_n(x + i, end - i) - centre) * slope + shift;
                put_n(dx + i, scale * (load_n(dy + i, end - i) - through), end - i, past);
            }
    }
    end_stream(past);
}
