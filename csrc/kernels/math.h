/* exp and expm1 of what is not positive, tanh, sigmoid, the normal distribution and logarithms on vectors.
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
    /* By halves: five steps of Horner's rule would wait for each other. */
    const vec r2 = r * r;
    vec p = 1.9875691500e-4f * r + 1.3981999507e-3f;
    p = p * r2 + (8.3334519073e-3f * r + 4.1665795894e-2f);
    p = p * r2 + (1.6666665459e-1f * r + 5.0000001201e-1f);
    return (exp_parts){ r + r2 * p, (vec)((uvec)shifted << 23) };
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

/* The normal distribution function over exp(-x^2 / 2) for x <= 0, by erfc of Abramowitz and Stegun 7.1.26 (their
 * product's error 0.75e-7), also by halves. */
INLINE vec vec_normal_tail_ratio(vec x)
{
    const vec t = 1.0f / (1.0f - 0.231641888f * x), t2 = t * t;
    const vec p = (0.5307027145f * t - 0.7265760135f) * t2 + (0.7107068705f * t - 0.142248368f);
    return p * t2 + 0.127414796f * t;
}

/* log(1 + x) for x in 0..1 = 2 artanh(x / (2 + x)), whose series ends here at 1e-9. */
INLINE vec vec_log1p_unit(vec x)
{
    const vec t = x / (2.0f + x), s = t * t;
    vec sum = splat(1.0f / 15);
    UNROLL for (int odd = 13; odd > 0; odd -= 2)
        sum = sum * s + 1.0f / (float)odd;
    return 2.0f * t * sum;
}

/* log(x) for finite x from 1 on: that of the power of two in x, and of the rest. x - x brings a NaN through. */
INLINE vec vec_log_from_1(vec x)
{
    const ivec bits = (ivec)x;
    const vec exponent = __builtin_convertvector((bits >> 23) - 127, vec);
    const vec rest = (vec)((bits & 0x7fffff) | 0x3f800000) - 1.0f;
    return exponent * 0.693147180559945f + vec_log1p_unit(rest) + (x - x);
}
