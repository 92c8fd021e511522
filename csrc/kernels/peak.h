/* The machine's peak: TILE_ROWS x TILE_VECTORS independent multiply-adds in registers, no memory. They start from
 * numbers that the compiler does not know: it would see that one which starts at 1 stays there, and leave it out. */

static double fma_loop(int64_t iterations)
{
    vec acc[TILE_ROWS][TILE_VECTORS], a = splat(0.999f), b = splat(1e-3f);
    UNROLL for (int i = 0; i < TILE_ROWS; i++)
        UNROLL for (int j = 0; j < TILE_VECTORS; j++)
            acc[i][j] = splat((float)(iterations + TILE_VECTORS * i + j));
    for (int64_t n = 0; n < iterations; n++)
        UNROLL for (int i = 0; i < TILE_ROWS; i++)
            UNROLL for (int j = 0; j < TILE_VECTORS; j++)
                acc[i][j] = acc[i][j] * a + b;
    vec sum = splat(0);
    for (int i = 0; i < TILE_ROWS; i++)
        for (int j = 0; j < TILE_VECTORS; j++)
            sum += acc[i][j];
    volatile float keep = lane_sum(sum);
    (void)keep;
    return 2.0 * TILE_ROWS * TILE_VECTORS * VL * (double)iterations;
}
