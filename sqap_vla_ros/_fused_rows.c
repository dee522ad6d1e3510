// Copyright 2026 sqap_vla_ros maintainers
//
// Licensed under the Apache License, Version 2.0 (the "License");
// you may not use this file except in compliance with the License.
// You may obtain a copy of the License at
//
//     http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS,
// WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and
// limitations under the License.

/* What happens to the rows of a matrix between two integer products, each in one pass; fused_rows.py says what for.
 *
 * Plain C with GCC's vector types, which any processor can run: the compiler makes a version of each function for
 * every instruction set named below, and the one that fits is taken when the library is loaded. Rows are contiguous.
 */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Choosing among versions when the library is loaded takes GCC and glibc; elsewhere there is one, for any processor. */
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
#define FUSED __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FUSED
#endif
#define INLINE static inline __attribute__((always_inline))

/* A hash of the sources. */
const char *fused_sources(void) {
    return FUSED_SOURCES;
}

enum { LANES = 16 };
typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));

INLINE void load(Floats *into, const float *from) {
    memcpy(into, from, sizeof *into);
}

INLINE void convert(Floats *into, const int32_t *from) {
    Ints numbers;
    memcpy(&numbers, from, sizeof numbers);
    *into = __builtin_convertvector(numbers, Floats);
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

/* The same on top of ``onto``. */
FUSED void add_scaled_rows(const int32_t *sums, const float *token_scale, const float *weight_scale, const float *onto,
                           float *out, ptrdiff_t rows, ptrdiff_t width) {
    for (ptrdiff_t m = 0; m < rows; m++)
        for (ptrdiff_t n = 0; n < width; n++)
            out[m * width + n] = onto[m * width + n] + (float)sums[m * width + n] * token_scale[m] * weight_scale[n];
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
            ptrdiff_t d = 0;
            for (; d + LANES <= half; d += LANES) {
                Floats low, high, scale, low_cosine, high_cosine, low_sine, high_sine;
                convert(&low, row + n + d);
                convert(&high, row + n + half + d);
                load(&scale, weight_scale + n + d);
                low *= token * scale;
                load(&scale, weight_scale + n + half + d);
                high *= token * scale;
                load(&low_cosine, c + d);
                load(&high_cosine, c + half + d);
                load(&low_sine, s + d);
                load(&high_sine, s + half + d);
                const Floats turned_low = low * low_cosine + high * low_sine;
                const Floats turned_high = high * high_cosine + low * high_sine;
                memcpy(row_out + n + d, &turned_low, sizeof turned_low);
                memcpy(row_out + n + half + d, &turned_high, sizeof turned_high);
            }
            for (; d < half; d++) {
                const float low = (float)row[n + d] * token * weight_scale[n + d];
                const float high = (float)row[n + half + d] * token * weight_scale[n + half + d];
                row_out[n + d] = low * c[d] + high * s[d];
                row_out[n + half + d] = high * c[half + d] + low * s[half + d];
            }
        }
        for (; n < width; n++) row_out[n] = (float)row[n] * token * weight_scale[n];
    }
}

/* x = condition ? other : x, lane by lane. */
#define SELECT(x, condition, other) x = (Floats)(((Ints)(x) & ~(condition)) | ((Ints)(other) & (condition)))

/* x = exp(x) = 2^whole x 2^part, to within 1e-7 of itself and x / 2^24; x is cut to where that is a normal number.
 * Added and taken away, 1.5 x 2^23 rounds to the nearest whole number, which then stands in the last bits. */
#define EXPONENTIAL(x)                                                                                                \
    do {                                                                                                              \
        const float magic = 12582912.0f;                                                                              \
        Floats power = (x) * 1.4426950408889634f;                                                                     \
        SELECT(power, power > 126.0f, (Floats){0} + 126.0f);                                                          \
        SELECT(power, power < -126.0f, (Floats){0} - 126.0f);                                                         \
        const Floats shifted = power + magic, part = power - (shifted - magic);                                       \
        Floats value = {0};                                                                                           \
        value += 1.535336188319500e-4f;                                                                               \
        value = value * part + 1.339887440266574e-3f;                                                                 \
        value = value * part + 9.618437357674640e-3f;                                                                 \
        value = value * part + 5.550332471162809e-2f;                                                                 \
        value = value * part + 2.402264791363012e-1f;                                                                 \
        value = value * part + 6.931472028550421e-1f;                                                                 \
        value = value * part + 1.0f;                                                                                  \
        (x) = value * (Floats)(((Ints)shifted - (0x4b400000 - 127)) << 23);                                           \
    } while (0)

FUSED void gate_rows(const int32_t *sums, const float *token_scale, const float *weight_scale, float *out,
                     ptrdiff_t rows, ptrdiff_t width) {
    for (ptrdiff_t m = 0; m < rows; m++) {
        const int32_t *gates = sums + 2 * m * width, *ups = gates + width;
        const float token = token_scale[m];
        float *row = out + m * width;
        ptrdiff_t n = 0;
        for (; n + LANES <= width; n += LANES) {
            Floats gate, up, gate_scale, up_scale;
            convert(&gate, gates + n);
            convert(&up, ups + n);
            load(&gate_scale, weight_scale + n);
            load(&up_scale, weight_scale + width + n);
            gate *= token * gate_scale;
            Floats other = -gate;
            EXPONENTIAL(other);
            gate = gate / (1.0f + other) * (up * (token * up_scale));
            memcpy(row + n, &gate, sizeof gate);
        }
        for (; n < width; n++) {
            const float gate = (float)gates[n] * (token * weight_scale[n]);
            row[n] = gate / (1.0f + expf(-gate)) * ((float)ups[n] * (token * weight_scale[width + n]));
        }
    }
}

#ifdef __clang__
INLINE Floats shuffle(Floats x, Ints from) {
    Floats out;
    for (int lane = 0; lane < LANES; lane++) out[lane] = x[from[lane]];
    return out;
}
#define SHUFFLE shuffle
#else
#define SHUFFLE __builtin_shuffle
#endif

/* Butterflies between the lanes of one vector that are ``distance`` apart. */
#define BUTTERFLY(x, distance)                                                                                        \
    do {                                                                                                              \
        Ints other;                                                                                                   \
        Floats sign;                                                                                                  \
        for (int lane = 0; lane < LANES; lane++) {                                                                    \
            other[lane] = lane ^ (distance);                                                                          \
            sign[lane] = lane & (distance) ? -1.0f : 1.0f;                                                            \
        }                                                                                                             \
        x = SHUFFLE(x, other) + x * sign;                                                                             \
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

/* One head of some rows: row i begins at rows + i x step. */
typedef struct {
    const float *rows;
    ptrdiff_t step;
} Head;

/* scores[key][lane] = k[key] . q[lane] for ``count`` keys; q holds (size, LANES). */
#define SCORE_KEYS(count, first)                                                                                      \
    do {                                                                                                              \
        Floats sums[count] = {{0}};                                                                                   \
        for (ptrdiff_t d = 0; d < size; d++) {                                                                        \
            Floats lanes;                                                                                             \
            load(&lanes, q + d * LANES);                                                                              \
            _Pragma("GCC unroll 12") for (int j = 0; j < (count); j++)                                                \
                sums[j] += k.rows[((first) + j) * k.step + d] * lanes;                                                \
        }                                                                                                             \
        memcpy(scores + (first) * LANES, sums, sizeof sums);                                                          \
    } while (0)

/* out[lane][from to from + vectors x LANES] = sum over keys of weights[key][lane] v[key], for four lanes. */
#define MIX_VALUES(vectors)                                                                                           \
    do {                                                                                                              \
        Floats sums[4][vectors] = {{{0}}};                                                                            \
        for (ptrdiff_t key = 0; key < keys; key++) {                                                                  \
            const float *value = v.rows + key * v.step + from, *weight = weights + key * LANES + lane;                \
            _Pragma("GCC unroll 4") for (int j = 0; j < (vectors); j++) {                                             \
                Floats part;                                                                                          \
                load(&part, value + j * LANES);                                                                       \
                _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++) sums[i][j] += weight[i] * part;                   \
            }                                                                                                         \
        }                                                                                                             \
        _Pragma("GCC unroll 4") for (int i = 0; i < 4; i++)                                                           \
            _Pragma("GCC unroll 4") for (int j = 0; j < (vectors); j++) {                                             \
                const Floats mixed = sums[i][j] * inverse[lane + i];                                                  \
                if (lane + i < lanes) memcpy(out + (lane + i) * out_step + from + j * LANES, &mixed, sizeof mixed);   \
            }                                                                                                         \
    } while (0)

INLINE void score(const float *q, Head k, float *scores, ptrdiff_t keys, ptrdiff_t size) {
    ptrdiff_t key = 0;
    for (; key + 12 <= keys; key += 12) SCORE_KEYS(12, key);
    for (; key < keys; key++) SCORE_KEYS(1, key);
}

/* Softmax of each lane over the keys up to its last one, but for the division by the sum, of which inverse is told. */
INLINE void weigh(float *scores, const int32_t *last, const float *bias, float *inverse, ptrdiff_t keys,
                  float scale) {
    Ints ends;
    memcpy(&ends, last, sizeof ends);
    Floats top = {0}, sum = {0};
    top -= INFINITY;
    for (ptrdiff_t key = 0; key < keys; key++) {
        Floats x;
        load(&x, scores + key * LANES);
        x *= scale;
        if (bias) x += bias[key];
        SELECT(x, (int32_t)key > ends, (Floats){0} - INFINITY);
        memcpy(scores + key * LANES, &x, sizeof x);
        SELECT(top, x > top, x);
    }
    for (ptrdiff_t key = 0; key < keys; key++) {
        Floats x;
        load(&x, scores + key * LANES);
        x -= top;
        EXPONENTIAL(x);
        memcpy(scores + key * LANES, &x, sizeof x);
        sum += x;
    }
    sum = 1.0f / sum;
    memcpy(inverse, &sum, sizeof sum);
}

INLINE void mix(const float *weights, Head v, const float *inverse, float *out, ptrdiff_t out_step, ptrdiff_t keys,
                ptrdiff_t size, ptrdiff_t lanes) {
    for (ptrdiff_t lane = 0; lane < lanes; lane += 4) {
        ptrdiff_t from = 0;
        for (; from + 4 * LANES <= size; from += 4 * LANES) MIX_VALUES(4);
        for (; from < size; from += LANES) MIX_VALUES(1);
    }
}

/* Attention, LANES queries at a time. Query i sees the keys up to last[i], which rises with i; nothing is computed for
 * keys that none of the LANES sees. bias, if there is one, is added to each key's logits. ``group`` heads of q share
 * one of k and v. out holds (queries, heads x size), size a multiple of LANES; scratch holds (size + keys) x LANES
 * numbers. */
FUSED void attend(const float *q, ptrdiff_t q_head, ptrdiff_t q_step, const float *k, ptrdiff_t k_head,
                  ptrdiff_t k_step, const float *v, ptrdiff_t v_head, ptrdiff_t v_step, const int64_t *last,
                  const float *bias, float *out, float *scratch, ptrdiff_t heads, ptrdiff_t group, ptrdiff_t queries,
                  ptrdiff_t size, float scale) {
    float *turned = scratch, *scores = scratch + size * LANES;
    for (ptrdiff_t first = 0; first < queries; first += LANES) {
        const ptrdiff_t lanes = queries - first < LANES ? queries - first : LANES;
        int32_t ends[LANES];
        for (ptrdiff_t lane = 0; lane < LANES; lane++)
            ends[lane] = (int32_t)last[first + (lane < lanes ? lane : lanes - 1)];
        const ptrdiff_t keys = ends[LANES - 1] + 1;
        for (ptrdiff_t head = 0; head < heads; head++) {
            const Head key = {k + head / group * k_head, k_step};
            const Head value = {v + head / group * v_head, v_step};
            for (ptrdiff_t lane = 0; lane < LANES; lane++) {
                const float *query = q + head * q_head + (first + (lane < lanes ? lane : lanes - 1)) * q_step;
                for (ptrdiff_t d = 0; d < size; d++) turned[d * LANES + lane] = query[d];
            }
            float inverse[LANES];
            score(turned, key, scores, keys, size);
            weigh(scores, ends, bias, inverse, keys, scale);
            mix(scores, value, inverse, out + first * heads * size + head * size, heads * size, keys, size, lanes);
        }
    }
}

/* steps x (1 - cosine) between every two of n rows, to the nearest whole number and at least 0; 2 x steps to a row with
 * a NaN. scratch holds n x width + (width + n) x LANES numbers. */
FUSED void cosine_steps(const float *rows, float *out, float *scratch, ptrdiff_t n, ptrdiff_t width, float steps) {
    float *unit = scratch, *turned = unit + n * width, *cosines = turned + width * LANES;
    for (ptrdiff_t i = 0; i < n; i++) {
        const float *row = rows + i * width;
        float total = 0.0f;
        for (ptrdiff_t d = 0; d < width; d++) total += row[d] * row[d];
        total = sqrtf(total);
        const float inverse = 1.0f / (total < 1e-12f ? 1e-12f : total);
        for (ptrdiff_t d = 0; d < width; d++) unit[i * width + d] = row[d] * inverse;
    }
    const float magic = 12582912.0f; /* as in round_row */
    for (ptrdiff_t first = 0; first < n; first += LANES) {
        const ptrdiff_t lanes = n - first < LANES ? n - first : LANES;
        for (ptrdiff_t lane = 0; lane < LANES; lane++)
            for (ptrdiff_t d = 0; d < width; d++)
                turned[d * LANES + lane] = unit[(first + (lane < lanes ? lane : 0)) * width + d];
        score(turned, (Head){unit + first * width, width}, cosines, n - first, width);
        for (ptrdiff_t other = first; other < n; other++) {
            Floats x;
            load(&x, cosines + (other - first) * LANES);
            x = (1.0f - x) * steps;
            SELECT(x, x < 0.0f, (Floats){0});
            SELECT(x, x != x, (Floats){0} + 2.0f * steps);
            x = (x + magic) - magic;
            for (ptrdiff_t lane = 0; lane < lanes && first + lane < other; lane++)
                out[other * n + first + lane] = out[(first + lane) * n + other] = x[lane];
        }
    }
    for (ptrdiff_t i = 0; i < n; i++) out[i * n + i] = 0.0f;
}
