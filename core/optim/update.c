/* One pass over memory for each update rule: read gradient, parameter and state once, write parameter and state once.

   The same arithmetic, operation by operation, as the torch functions of the same names in first_order.py and sophia.py:
   built without contraction, each operation rounds by itself, so that both leave the same bits. */

#include <math.h>
#include <stdint.h>

/* Numbers in one row of `sums`; rows keep the order of summation, whatever the number of threads. native.py knows it. */
#define BLOCK 4096

/* theta, grad, a, b: n numbers each (a and b: the rule's state, or null); k: the rule's constants, k[0] the gradient's
   scale; sums: ceil(n / BLOCK) rows of (sum of squared changes, number of coordinates clipped). */
#define RULE(name, ...)                                                                                                \
    void name(float *restrict theta, const float *restrict grad, float *restrict a, float *restrict b, int64_t n,      \
              const float *restrict k, int threads, double *restrict sums) {                                           \
        (void)a, (void)b, (void)threads;                                                                               \
        _Pragma("omp parallel for num_threads(threads) schedule(static) if (n > 8 * BLOCK)")                           \
        for (int64_t row = 0; row < (n + BLOCK - 1) / BLOCK; row++) {                                                  \
            const int64_t from = row * BLOCK, to = from + BLOCK < n ? from + BLOCK : n;                                \
            float squares = 0, clips = 0;                                                                              \
            _Pragma("omp simd reduction(+ : squares, clips)")                                                          \
            for (int64_t i = from; i < to; i++) {                                                                      \
                float g = grad[i] * k[0], change, clipped = 0;                                                         \
                __VA_ARGS__                                                                                            \
                theta[i] -= change;                                                                                    \
                squares += change * change;                                                                            \
                clips += clipped;                                                                                      \
            }                                                                                                          \
            sums[2 * row] = squares;                                                                                   \
            sums[2 * row + 1] = clips;                                                                                 \
        }                                                                                                              \
    }

/* Comparisons are written so that a NaN stays one. */
#define CLIPPED_CHANGE(denominator, rate, decay)                                                                       \
    float ratio = a[i] / (denominator);                                                                                \
    clipped = ratio >= 1 || ratio <= -1 ? 1 : 0;                                                                       \
    ratio = ratio > 1 ? 1 : ratio;                                                                                     \
    ratio = ratio < -1 ? -1 : ratio;                                                                                   \
    change = ratio * (rate) + theta[i] * (decay);

RULE(sophia, {
    a[i] = a[i] * k[1] + g * k[2];
    float h = b[i] * k[3];
    h = h < k[4] ? k[4] : h;
    CLIPPED_CHANGE(h, k[5], k[6])
})

RULE(soul, {
    b[i] = b[i] * k[3] + g * g * k[4];
    a[i] = a[i] * k[1] + g * k[2];
    CLIPPED_CHANGE(b[i] * k[5] + k[6], k[7], k[8])
})

RULE(adamw, {
    b[i] = b[i] * k[3] + g * g * k[4];
    a[i] = a[i] * k[1] + g * k[2];
    change = a[i] / (sqrtf(b[i]) * k[5] + k[6]) * k[7] + theta[i] * k[8];
})

RULE(sgd, { change = (g + theta[i] * k[1]) * k[2]; })

RULE(sgd_momentum, {
    a[i] = a[i] * k[3] + (g + theta[i] * k[1]);
    change = a[i] * k[2];
})

RULE(sgd_nesterov, {
    g = g + theta[i] * k[1];
    a[i] = a[i] * k[3] + g;
    change = (g + a[i] * k[3]) * k[2];
})
