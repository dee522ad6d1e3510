/* What happens to the rows of a matrix between two integer products, each in one pass; fused_rows.py says what for.
 *
 * Plain C with GCC's vector types, which any processor can run: the compiler makes a version of each function for
 * every instruction set named below, and the one that fits is taken when the library is loaded. Rows are contiguous.
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__linux__)
#define FUSED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FUSED
#endif
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16 };
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

INLINE void load(Floats *into, const float *from) {
    memcpy(into, from, sizeof *into);
}

/* A row's codes. The scale comes from the row itself, and a row with a NaN or infinity has one that is not finite:
 * magnitudes are ordered as their bits are, and NaN stands above all of them. */
INLINE float round_row(const float *x, int8_t *codes, ptrdiff_t width, float largest, float step, float smallest) {
    uint32_t top = 0;
    for (ptrdiff_t k = 0; k < width; k++) {
        uint32_t bits;
        memcpy(&bits, x + k, sizeof bits);
        bits &= 0x7fffffff;
        top = bits > top ? bits : top;
    }
    float peak;
    memcpy(&peak, &top, sizeof peak);
    float scale = peak * step;
    scale = scale < smallest ? smallest : scale;
    const float inverse = 1.0f / scale;
    /* Added and taken away, 1.5 x 2^23 rounds to the nearest whole number, halves to the even one. */
    const float magic = 12582912.0f;
    for (ptrdiff_t k = 0; k < width; k++) {
        float code = x[k] * inverse;
        code = code > largest ? largest : code;
        code = code < -largest ? -largest : code;
        code += magic;
        int32_t bits;
        memcpy(&bits, &code, sizeof bits);
        codes[k] = (int8_t)bits;
    }
    return scale;
}

FUSED void round_rows(const float *x, int8_t *codes, float *scale, ptrdiff_t rows, ptrdiff_t width, float largest,
                      float step, float smallest) {
    for (ptrdiff_t m = 0; m < rows; m++)
        scale[m] = round_row(x + m * width, codes + m * width, width, largest, step, smallest);
}

FUSED void round_normalized_rows(const float *x, int8_t *codes, float *scale, ptrdiff_t rows, ptrdiff_t width,
                                 float largest, float step, float smallest, float eps) {
    for (ptrdiff_t m = 0; m < rows; m++) {
        const float *row = x + m * width;
        Floats squares = {0};
        ptrdiff_t k = 0;
        for (; k + LANES <= width; k += LANES) {
            Floats part;
            load(&part, row + k);
            squares += part * part;
        }
        float total = 0.0f;
        for (; k < width; k++) total += row[k] * row[k];
        for (int lane = 0; lane < LANES; lane++) total += squares[lane];
        scale[m] = round_row(row, codes + m * width, width, largest, step, smallest)
            / sqrtf(total / (float)width + eps);
    }
}

FUSED void scale_rows(const int32_t *sums, const float *token_scale, const float *weight_scale, float *out,
                      ptrdiff_t rows, ptrdiff_t width) {
    for (ptrdiff_t m = 0; m < rows; m++)
        for (ptrdiff_t n = 0; n < width; n++)
            out[m * width + n] = (float)sums[m * width + n] * token_scale[m] * weight_scale[n];
}

/* out may be the memory of sums. */
FUSED void scale_and_turn_rows(const int32_t *sums, const float *token_scale, const float *weight_scale,
                               const float *cosine, const float *sine, float *out, ptrdiff_t rows, ptrdiff_t width,
                               ptrdiff_t head, ptrdiff_t turned) {
    const ptrdiff_t half = head / 2;
    for (ptrdiff_t m = 0; m < rows; m++) {
        const int32_t *row = sums + m * width;
        const float *c = cosine + m * head, *s = sine + m * head, token = token_scale[m];
        float *row_out = out + m * width;
        ptrdiff_t n = 0;
        for (; n < turned * head; n += head) {
            for (ptrdiff_t d = 0; d < half; d++) {
                const float low = (float)row[n + d] * token * weight_scale[n + d];
                const float high = (float)row[n + half + d] * token * weight_scale[n + half + d];
                row_out[n + d] = low * c[d] + high * s[d];
                row_out[n + half + d] = high * c[half + d] + low * s[half + d];
            }
        }
        for (; n < width; n++) row_out[n] = (float)row[n] * token * weight_scale[n];
    }
}

/* exp(x) = 2^whole x 2^part; within 1e-7 of itself, x cut to where that is a normal number. */
INLINE float exponential(float x) {
    float power = x * 1.4426950408889634f;
    power = power > 126.0f ? 126.0f : power;
    power = power < -126.0f ? -126.0f : power;
    const float magic = 12582912.0f, shifted = power + magic, part = power - (shifted - magic);
    float value = 1.535336188319500e-4f;
    value = value * part + 1.339887440266574e-3f;
    value = value * part + 9.618437357674640e-3f;
    value = value * part + 5.550332471162809e-2f;
    value = value * part + 2.402264791363012e-1f;
    value = value * part + 6.931472028550421e-1f;
    value = value * part + 1.0f;
    int32_t whole;
    memcpy(&whole, &shifted, sizeof whole);
    whole = (int32_t)((uint32_t)(whole - 0x4b400000 + 127) << 23);
    float scale;
    memcpy(&scale, &whole, sizeof scale);
    return value * scale;
}

FUSED void gate_rows(const int32_t *sums, const float *token_scale, const float *weight_scale, float *out,
                     ptrdiff_t rows, ptrdiff_t width) {
    for (ptrdiff_t m = 0; m < rows; m++) {
        const int32_t *gates = sums + 2 * m * width, *ups = gates + width;
        const float token = token_scale[m];
        for (ptrdiff_t n = 0; n < width; n++) {
            const float gate = (float)gates[n] * token * weight_scale[n];
            const float up = (float)ups[n] * token * weight_scale[width + n];
            out[m * width + n] = gate / (1.0f + exponential(-gate)) * up;
        }
    }
}

/* Butterflies between the lanes of one vector that are ``distance`` apart. */
#define BUTTERFLY(x, distance)                                                                                        \
    do {                                                                                                              \
        Ints other;                                                                                                   \
        Floats sign;                                                                                                  \
        for (int lane = 0; lane < LANES; lane++) {                                                                    \
            other[lane] = lane ^ (distance);                                                                          \
            sign[lane] = lane & (distance) ? -1.0f : 1.0f;                                                            \
        }                                                                                                             \
        x = __builtin_shuffle(x, other) + x * sign;                                                                   \
    } while (0)

INLINE void butterflies(float *v, ptrdiff_t n, ptrdiff_t distance) {
    for (ptrdiff_t start = 0; start < n; start += 2 * distance)
        for (ptrdiff_t i = start; i < start + distance; i += LANES) {
            Floats low, high, sum, difference;
            load(&low, v + i);
            load(&high, v + i + distance);
            sum = low + high;
            difference = low - high;
            memcpy(v + i, &sum, sizeof sum);
            memcpy(v + i + distance, &difference, sizeof difference);
        }
}

/* v (H_(a) x H_base x H_(right)) for n numbers, n = a x base_size x right, right a power of two and a multiple of the
 * lanes; other holds n numbers. */
INLINE void transform(float *v, float *other, ptrdiff_t n, const float *base, ptrdiff_t base_size, ptrdiff_t right) {
    for (ptrdiff_t i = 0; i < n; i += LANES) {
        Floats x;
        load(&x, v + i);
        BUTTERFLY(x, 1);
        BUTTERFLY(x, 2);
        BUTTERFLY(x, 4);
        BUTTERFLY(x, 8);
        memcpy(v + i, &x, sizeof x);
    }
    const ptrdiff_t block = base_size * right;
    for (ptrdiff_t distance = LANES; distance < right; distance *= 2) butterflies(v, n, distance);
    for (ptrdiff_t distance = block; distance < n; distance *= 2) butterflies(v, n, distance);
    if (base_size == 1) return;
    memcpy(other, v, n * sizeof *v);
    for (ptrdiff_t start = 0; start < n; start += block)
        for (ptrdiff_t j = 0; j < right; j += LANES)
            for (ptrdiff_t to = 0; to < base_size; to++) {
                Floats sum = {0};
                for (ptrdiff_t from = 0; from < base_size; from++) {
                    Floats x;
                    load(&x, other + start + from * right + j);
                    sum += base[from * base_size + to] * x;
                }
                memcpy(v + start + to * right + j, &sum, sizeof sum);
            }
}

/* Each row is made of blocks of n numbers; signs hold n numbers, with the factor that makes the rotation orthonormal.
 * other holds n numbers. */
FUSED void rotate_rows(const float *x, const float *signs, const float *base, float *out, float *other,
                       ptrdiff_t blocks, ptrdiff_t n, ptrdiff_t base_size, ptrdiff_t right) {
    for (ptrdiff_t block = 0; block < blocks; block++) {
        float *v = out + block * n;
        for (ptrdiff_t i = 0; i < n; i++) v[i] = x[block * n + i] * signs[i];
        transform(v, other, n, base, base_size, right);
    }
}

/* Farthest points: nearest holds each token's distance to what is kept, table (n x n) those between tokens. */
FUSED void pick_farthest(float *nearest, const float *table, int64_t *picks, ptrdiff_t n, ptrdiff_t count) {
    for (ptrdiff_t pick = 0; pick < count; pick++) {
        float farthest = -INFINITY;
        for (ptrdiff_t i = 0; i < n; i++) farthest = nearest[i] > farthest ? nearest[i] : farthest;
        ptrdiff_t found = 0;
        while (found < n - 1 && nearest[found] != farthest) found++;
        picks[pick] = found;
        const float *row = table + found * n;
        for (ptrdiff_t i = 0; i < n; i++) nearest[i] = row[i] < nearest[i] ? row[i] : nearest[i];
    }
}
