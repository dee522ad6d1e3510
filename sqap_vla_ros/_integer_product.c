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

/* (M, K) int8 times (N, K) int8 to int32, for processors with AVX-512 VNNI, which multiply bytes and add up four
 * products in one instruction. The weight is laid out once, when it is loaded; oneDNN's product behind torch._int_mm
 * does that at every call. */

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

/* From _fused_rows.c. */
void add_scaled_rows(const int32_t *sums, const float *token_scale, const float *weight_scale, const float *onto,
                     float *out, ptrdiff_t rows, ptrdiff_t width);
void attend(const float *q, ptrdiff_t q_head, ptrdiff_t q_step, const float *k, ptrdiff_t k_head, ptrdiff_t k_step,
            const float *v, ptrdiff_t v_head, ptrdiff_t v_step, const int64_t *last, const float *bias, float *out,
            float *scratch, ptrdiff_t heads, ptrdiff_t group, ptrdiff_t queries, ptrdiff_t size, float scale);
void gate_rows(const int32_t *sums, const float *token_scale, const float *weight_scale, float *out, ptrdiff_t rows,
               ptrdiff_t width);
void rotate_rows(const float *x, const float *signs, const float *base, float *out, float *other, ptrdiff_t blocks,
                 ptrdiff_t n, ptrdiff_t base_size, ptrdiff_t right);
void round_normalized_rows(const float *x, int8_t *codes, float *scale, ptrdiff_t rows, ptrdiff_t width, float largest,
                           float step, float smallest, float eps);
void round_rows(const float *x, int8_t *codes, float *scale, ptrdiff_t rows, ptrdiff_t width, float largest, float step,
                float smallest);
void scale_and_turn_rows(const int32_t *sums, const float *token_scale, const float *weight_scale, const float *cosine,
                         const float *sine, float *out, ptrdiff_t rows, ptrdiff_t width, ptrdiff_t head,
                         ptrdiff_t turned);
void scale_rows(const int32_t *sums, const float *token_scale, const float *weight_scale, float *out, ptrdiff_t rows,
                ptrdiff_t width);

enum { OUTPUTS = 16 };

#ifdef __x86_64__
#include <immintrin.h>
#define VNNI __attribute__((target("avx512f,avx512vnni")))
#define INLINE static inline __attribute__((always_inline)) VNNI

int has_integer_product(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vnni");
}

/* The instruction takes one operand as unsigned, here the weight + 128; 128 x the sum of the token's codes is taken
 * away again. */
INLINE int32_t sum_codes(const int8_t *codes, ptrdiff_t columns) {
    int32_t sum = 0;
    for (ptrdiff_t k = 0; k < columns; k++) sum += codes[k];
    return sum;
}

/* ``tokens`` rows of a times ``blocks`` blocks of 16 outputs. */
#define MULTIPLY(tokens, blocks)                                                                                      \
    do {                                                                                                              \
        __m512i sums[tokens][blocks];                                                                                 \
        _Pragma("GCC unroll 6") for (int i = 0; i < (tokens); i++)                                                    \
            _Pragma("GCC unroll 4") for (int j = 0; j < (blocks); j++)                                                \
                sums[i][j] = _mm512_set1_epi32(offsets[m + i]);                                                       \
        for (ptrdiff_t k = 0; k < columns; k += 4) {                                                                  \
            __m512i w[blocks];                                                                                        \
            _Pragma("GCC unroll 4") for (int j = 0; j < (blocks); j++)                                                \
                w[j] = _mm512_loadu_si512(weight + (block + j) * stride + k * OUTPUTS);                               \
            _Pragma("GCC unroll 6") for (int i = 0; i < (tokens); i++) {                                              \
                int32_t four;                                                                                         \
                __builtin_memcpy(&four, a + (m + i) * columns + k, sizeof four);                                      \
                const __m512i x = _mm512_set1_epi32(four);                                                            \
                _Pragma("GCC unroll 4") for (int j = 0; j < (blocks); j++)                                            \
                    sums[i][j] = _mm512_dpbusd_epi32(sums[i][j], w[j], x);                                            \
            }                                                                                                         \
        }                                                                                                             \
        _Pragma("GCC unroll 6") for (int i = 0; i < (tokens); i++)                                                    \
            _Pragma("GCC unroll 4") for (int j = 0; j < (blocks); j++)                                                \
                _mm512_storeu_si512(out + (m + i) * outputs + (block + j) * OUTPUTS, sums[i][j]);                     \
    } while (0)

#define MULTIPLY_ALL(blocks)                                                                                          \
    do {                                                                                                              \
        ptrdiff_t m = 0;                                                                                              \
        for (; m + 6 <= rows; m += 6) MULTIPLY(6, blocks);                                                            \
        for (; m + 2 <= rows; m += 2) MULTIPLY(2, blocks);                                                            \
        for (; m < rows; m++) MULTIPLY(1, blocks);                                                                    \
    } while (0)

/* weight: for each 16 outputs and each four columns 64 bytes, output after output, each four columns + 128.
 * outputs is a multiple of 16, columns of 4; offsets holds a number for each row. */
VNNI void multiply_integers(const int8_t *a, const uint8_t *weight, int32_t *out, int32_t *offsets, ptrdiff_t rows,
                            ptrdiff_t columns, ptrdiff_t outputs) {
    const ptrdiff_t stride = columns * OUTPUTS, count = outputs / OUTPUTS;
    for (ptrdiff_t m = 0; m < rows; m++) offsets[m] = -128 * sum_codes(a + m * columns, columns);
    ptrdiff_t block = 0;
    for (; block + 4 <= count; block += 4) MULTIPLY_ALL(4);
    for (; block < count; block++) MULTIPLY_ALL(1);
}
#else
int has_integer_product(void) {
    return 0;
}

void multiply_integers(const int8_t *a, const uint8_t *weight, int32_t *out, int32_t *offsets, ptrdiff_t rows,
                       ptrdiff_t columns, ptrdiff_t outputs) {
    (void)a, (void)weight, (void)out, (void)offsets, (void)rows, (void)columns, (void)outputs;
    abort();
}
#endif

/* So many tokens at a time that what lies between two steps stays near the processor. */
enum { TOKENS = 48 };

/* A product and its scales, and with a head size also the rotary embedding of the first ``turned`` heads. */
void multiply_scaled(const int8_t *codes, const float *token_scale, const uint8_t *weight, const float *weight_scale,
                     const float *cosine, const float *sine, float *out, ptrdiff_t rows, ptrdiff_t columns,
                     ptrdiff_t outputs, ptrdiff_t head, ptrdiff_t turned) {
    int32_t offsets[TOKENS];
    for (ptrdiff_t first = 0; first < rows; first += TOKENS) {
        const ptrdiff_t count = rows - first < TOKENS ? rows - first : TOKENS;
        int32_t *part = (int32_t *)(out + first * outputs);
        multiply_integers(codes + first * columns, weight, part, offsets, count, columns, outputs);
        if (head)
            scale_and_turn_rows(part, token_scale + first, weight_scale, cosine + first * head, sine + first * head,
                                (float *)part, count, outputs, head, turned);
        else
            scale_rows(part, token_scale + first, weight_scale, (float *)part, count, outputs);
    }
}

/* Bytes for attend_and_project: what the heads see, sums, scales, offsets, codes, and what attend needs. */
ptrdiff_t attention_scratch(ptrdiff_t width, ptrdiff_t outputs, ptrdiff_t size, ptrdiff_t keys) {
    return 4 * (TOKENS * (width + outputs + 2) + (size + keys) * OUTPUTS) + TOKENS * width;
}

/* Attention as ``attend`` does it, rounding, product, on top of ``onto``; out and onto hold (queries, outputs). scratch
 * holds attention_scratch(heads x size, outputs, size, keys) bytes. */
void attend_and_project(const float *q, ptrdiff_t q_head, ptrdiff_t q_step, const float *k, ptrdiff_t k_head,
                        ptrdiff_t k_step, const float *v, ptrdiff_t v_head, ptrdiff_t v_step, const int64_t *last,
                        const float *bias, const uint8_t *weight, const float *weight_scale, const float *onto,
                        float *out, float *scratch, ptrdiff_t heads, ptrdiff_t group, ptrdiff_t queries, ptrdiff_t size,
                        ptrdiff_t outputs, float scale, float largest, float step, float smallest) {
    const ptrdiff_t width = heads * size;
    float *hidden = scratch, *token_scale = hidden + TOKENS * width;
    int32_t *sums = (int32_t *)(token_scale + TOKENS), *offsets = sums + TOKENS * outputs;
    float *inner = (float *)(offsets + TOKENS);
    for (ptrdiff_t first = 0; first < queries; first += TOKENS) {
        const ptrdiff_t count = queries - first < TOKENS ? queries - first : TOKENS;
        const ptrdiff_t keys = (ptrdiff_t)last[first + count - 1] + 1;
        int8_t *codes = (int8_t *)(inner + (size + keys) * OUTPUTS);
        attend(q + first * q_step, q_head, q_step, k, k_head, k_step, v, v_head, v_step, last + first, bias, hidden,
               inner, heads, group, count, size, scale);
        round_rows(hidden, codes, token_scale, count, width, largest, step, smallest);
        multiply_integers(codes, weight, sums, offsets, count, width, outputs);
        add_scaled_rows(sums, token_scale, weight_scale, onto + first * outputs, out + first * outputs, count, outputs);
    }
}

/* Bytes for feed_forward: sums of both products, hidden values, scales, offsets, a block of the rotation, codes. */
ptrdiff_t feed_forward_scratch(ptrdiff_t columns, ptrdiff_t width, ptrdiff_t n) {
    return 4 * (TOKENS * (2 * width + width + columns + 2) + n) + TOKENS * (width + columns);
}

/* A SwiGLU behind a norm, on top of its input: rounding, product, gate, rotation, rounding, product. The rotation is
 * left out without signs; it works in blocks of n numbers. scratch holds feed_forward_scratch(columns, width, n)
 * bytes. */
void feed_forward(const float *x, const uint8_t *wide, const float *wide_scale, const float *signs, const float *base,
                  const uint8_t *narrow, const float *narrow_scale, float *out, float *scratch, ptrdiff_t rows,
                  ptrdiff_t columns, ptrdiff_t width, ptrdiff_t n, ptrdiff_t base_size, ptrdiff_t right, float eps,
                  float wide_largest, float wide_step, float largest, float step, float smallest) {
    int32_t *sums = (int32_t *)scratch, *narrow_sums = sums + TOKENS * 2 * width;
    int32_t *offsets = narrow_sums + TOKENS * columns;
    float *hidden = (float *)(offsets + TOKENS), *scale = hidden + TOKENS * width, *other = scale + TOKENS;
    int8_t *codes = (int8_t *)(other + n), *narrow_codes = codes + TOKENS * columns;
    for (ptrdiff_t first = 0; first < rows; first += TOKENS) {
        const ptrdiff_t count = rows - first < TOKENS ? rows - first : TOKENS;
        const float *part = x + first * columns;
        round_normalized_rows(part, codes, scale, count, columns, wide_largest, wide_step, smallest, eps);
        multiply_integers(codes, wide, sums, offsets, count, columns, 2 * width);
        gate_rows(sums, scale, wide_scale, hidden, count, width);
        if (signs) rotate_rows(hidden, signs, base, hidden, other, count * width / n, n, base_size, right);
        round_rows(hidden, narrow_codes, scale, count, width, largest, step, smallest);
        multiply_integers(narrow_codes, narrow, narrow_sums, offsets, count, width, columns);
        add_scaled_rows(narrow_sums, scale, narrow_scale, part, out + first * columns, count, columns);
    }
}
