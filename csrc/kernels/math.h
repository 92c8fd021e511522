/* exp, expm1, tanh, sigmoid and the normal distribution on vectors.
 *
 * exp(x) = 2^n exp(r) with n = round(x / ln 2), |r| <= ln(2) / 2, and exp(r) - 1 = r + r^2 P(r), the
 * polynomial of Cephes's expf (Moshier). 2^n is applied in two halves, so that subnormal and infinite
 * results come out right. Errors: exp and expm1 2 ulp, tanh and sigmoid 4 ulp. */

typedef struct { vec q, two_n1, two_n2; } exp_parts;

INLINE vec power_of_two(ivec n) { return (vec)(((uvec)n + 127u) << 23); }

/* q = exp(r) - 1 and the two factors of 2^n. */
INLINE exp_parts exp_reduce(vec x)
{
    const vec round_shift = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer */
    x = where(x < -105.0f, splat(-105.0f), x);
    x = where(x > 90.0f, splat(90.0f), x);
    vec shifted = x * 1.44269504088896341f + round_shift;
    vec n = shifted - round_shift;
    vec r = x - n * 0.693359375f;
    r = r - n * -2.12194440e-4f;
    vec p = splat(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    ivec whole = (ivec)((uvec)shifted - (uvec)round_shift);
    ivec half = whole >> 1;
    return (exp_parts){ r + r * r * p, power_of_two(half), power_of_two((ivec)((uvec)whole - (uvec)half)) };
}

INLINE vec vec_exp(vec x)
{
    exp_parts e = exp_reduce(x);
    return (e.q * e.two_n1 + e.two_n1) * e.two_n2;
}

/* For x <= 0, exact near zero, where exp(x) - 1 would cancel. */
INLINE vec vec_expm1_negative(vec x)
{
    exp_parts e = exp_reduce(where(x < -30.0f, splat(-30.0f), x));
    vec two_n = e.two_n1 * e.two_n2;
    return e.q * two_n + (two_n - 1.0f);
}

INLINE vec vec_abs(vec x) { return (vec)((ivec)x & 0x7fffffff); }
INLINE vec vec_copysign(vec x, vec sign) { return (vec)(((ivec)x & 0x7fffffff) | ((ivec)sign & (int32_t)0x80000000)); }

INLINE vec vec_tanh(vec x)
{
    vec m = vec_expm1_negative(-2.0f * vec_abs(x));
    return vec_copysign(-m / (m + 2.0f), x);
}

INLINE vec vec_sigmoid(vec x) { return 1.0f / (1.0f + vec_exp(-x)); }

/* exp(-x^2 / 2) */
INLINE vec vec_gauss(vec x) { return vec_exp(-0.5f * x * x); }

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
