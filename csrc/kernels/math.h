/* exp and expm1 of what is not positive, tanh, sigmoid and the normal distribution on vectors.
 *
 * exp(x) = 2^n exp(r) with n = round(x / ln 2), |r| <= ln(2) / 2, and exp(r) - 1 = r + r^2 P(r), the polynomial of
 * Cephes's expf (Moshier). Results below 2^-126 come out with less precision or as 0. All functions but sigmoid reduce
 * to exponents x <= 0, so 2^n cannot overflow; for x > 0 the result is any number.
 * Errors: exp and expm1 2 ulp, tanh and sigmoid 4 ulp. */

typedef struct { vec q, two_n; } exp_parts;

/* q = exp(r) - 1 and 2^n, x >= -88.02. */
INLINE exp_parts exp_reduce(vec x)
{
    /* Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits; 127 is the exponent's bias. */
    const vec shift = splat(12582912.0f + 127.0f);
    const vec shifted = x * 1.44269504088896341f + shift;
    const vec n = shifted - shift;
    vec r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return (exp_parts){ r + r * r * p, (vec)((uvec)shifted << 23) };
}

/* exp(x) for x <= 0; from -88.02 on, where n is -127, it is 0. */
INLINE vec vec_exp_negative(vec x)
{
    const exp_parts e = exp_reduce(vec_max(splat(-88.02f), x));
    return e.q * e.two_n + e.two_n;
}

/* For x <= 0, exact near zero, where exp(x) - 1 would cancel. */
INLINE vec vec_expm1_negative(vec x)
{
    const exp_parts e = exp_reduce(vec_max(splat(-30.0f), x));
    return e.q * e.two_n + (e.two_n - 1.0f);
}

INLINE vec vec_abs(vec x) { return (vec)((ivec)x & 0x7fffffff); }
INLINE vec vec_copysign(vec x, vec sign) { return (vec)(((ivec)x & 0x7fffffff) | ((ivec)sign & (int32_t)0x80000000)); }

INLINE vec vec_tanh(vec x)
{
    vec m = vec_expm1_negative(-2.0f * vec_abs(x));
    return vec_copysign(-m / (m + 2.0f), x);
}

/* 1 / (1 + exp(-x)), where exp(-x) is infinite from n = 128 on, and the result 0. */
INLINE vec vec_sigmoid(vec x)
{
    const exp_parts e = exp_reduce(vec_max(splat(-88.02f), -vec_max(splat(-88.8f), x)));
    return 1.0f / (1.0f + (1.0f + e.q) * e.two_n);
}

/* exp(-x^2 / 2) */
INLINE vec vec_gauss(vec x) { return vec_exp_negative(-0.5f * x * x); }

/* The normal distribution function, by erfc of Abramowitz and Stegun 7.1.26 (error 0.75e-7). */
INLINE vec vec_normal_cdf(vec x)
{
    vec z = vec_abs(x) * 0.70710678118654752f;
    vec t = 1.0f / (1.0f + 0.3275911f * z);
    vec p = splat(1.061405429f);
    p = p * t + -1.453152027f;
    p = p * t + 1.421413741f;
    p = p * t + -0.284496736f;
    p = p * t + 0.254829592f;
    vec tail = 0.5f * p * t * vec_gauss(x);
    return where(x < 0.0f, tail, 1.0f - tail);
}
