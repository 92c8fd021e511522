/* exp and expm1 of what is not positive, tanh, sigmoid, the normal distribution and logarithms on vectors.
 *
 * exp(x) = 2^n exp(r) with n = round(x / ln 2), |r| <= ln(2) / 2, and exp(r) - 1 = r + r^2 P(r), where P of degree 4
 * has the least relative error, 1.3e-8. Results below 2^-126 come out with less precision or as 0. All functions but
 * sigmoid reduce to exponents x <= 0, so 2^n cannot overflow; for x > 0 the result is any number.
 * Errors: exp and expm1 2 ulp, tanh and sigmoid 4 ulp. */

typedef struct { vec q, two_n; } exp_parts;

/* Of exp(scale x): q = exp(scale r) - 1 and 2^n; scale x >= -88.02, scale a power of two. */
INLINE exp_parts exp_reduce(vec x, const float scale)
{
    const float s2 = scale * scale, s3 = s2 * scale, s4 = s2 * s2;
    /* Adding 1.5 * 2^23 rounds to an integer, which then stands in the lowest bits; 127 is the exponent's bias. */
    const vec shift = splat(12582912.0f + 127.0f);
    const vec shifted = x * (scale * 1.44269504088896341f) + shift;
    const vec n = shifted - shift;
    vec r = x - n * (0.693359375f / scale);
    r = r - n * (-2.12194440e-4f / scale);
    /* By halves: all steps of Horner's rule would wait for each other. */
    const vec r2 = r * r;
    vec p = s3 * s3 * 1.3882516487e-3f * r2 + (s4 * scale * 8.3665471274e-3f * r + s4 * 4.1667200711e-2f);
    p = p * r2 + (s3 * 1.6666543424e-1f * r + s2 * 4.9999998150e-1f);
    return (exp_parts){ scale * r + r2 * p, (vec)((uvec)shifted << 23) };
}

/* exp(x) for x <= 0; from -88.02 on, where n is -127, it is 0. */
INLINE vec vec_exp_negative(vec x)
{
    const exp_parts e = exp_reduce(vec_max(splat(-88.02f), x), 1);
    return e.q * e.two_n + e.two_n;
}

/* For x <= 0, exact near zero, where exp(x) - 1 would cancel. */
INLINE vec vec_expm1_negative(vec x)
{
    const exp_parts e = exp_reduce(vec_max(splat(-30.0f), x), 1);
    return e.q * e.two_n + (e.two_n - 1.0f);
}

INLINE vec vec_abs(vec x) { return (vec)((ivec)x & 0x7fffffff); }
INLINE vec vec_copysign(vec x, vec sign) { return (vec)(((ivec)x & 0x7fffffff) | ((ivec)sign & (int32_t)0x80000000)); }
INLINE vec vec_minus_abs(vec x) { return (vec)((ivec)x | (int32_t)0x80000000); }

/* (1 - exp(-2 |x|)) / (1 + exp(-2 |x|)) with the sign of x. */
INLINE vec vec_tanh(vec x)
{
    const exp_parts e = exp_reduce(vec_max(splat(-15.0f), vec_minus_abs(x)), 2);
    const vec m = (1.0f - e.two_n) - e.q * e.two_n;
    return vec_copysign(m / (2.0f - m), x);
}

/* 1 / (1 + exp(-x)), where exp(-x) is infinite from n = 128 on, and the result 0. */
INLINE vec vec_sigmoid(vec x)
{
    const exp_parts e = exp_reduce(vec_max(splat(-88.02f), -vec_max(splat(-88.8f), x)), 1);
    return 1.0f / (1.0f + (1.0f + e.q) * e.two_n);
}

/* exp(-x^2 / 2) for x <= 0; from -13.25 on, where n is -127, it is 0. */
INLINE vec vec_gauss(vec x)
{
    const vec near = vec_max(splat(-13.25f), x);
    const exp_parts e = exp_reduce(near * near, -0.5f);
    return e.q * e.two_n + e.two_n;
}

/* The normal distribution function over exp(-x^2 / 2) for x <= 0, by erfc of Abramowitz and Stegun 7.1.26 (their
 * product's error 0.75e-7). */
INLINE vec vec_normal_tail_ratio(vec x)
{
    const vec t = 1.0f / (1.0f - 0.231641888f * x);
    const vec p = ((0.5307027145f * t - 0.7265760135f) * t + 0.7107068705f) * t - 0.142248368f;
    return (p * t + 0.127414796f) * t;
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
