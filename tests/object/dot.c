/* Dot products of microkernels, assembled in cases.s, against a scalar loop. Ends with 0, or names the case that failed. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void (*dot_function)(const void *x, const void *weights, float *c);

enum { BLOCK = 32, GUARD = 64 };

static uint32_t state = 1;

static uint32_t draw(void)
{
    state = state * 1664525 + 1013904223; /* Numerical Recipes' generator. */
    return state >> 8;
}

static float from_bf16(const unsigned char *at)
{
    uint32_t bits = (uint32_t)at[0] << 16 | (uint32_t)at[1] << 24;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static int run(int number, dot_function function, int bits, size_t k, size_t rows)
{
    size_t blocks = k / BLOCK, quant_bytes = k * (size_t)bits / 8, row_bytes = quant_bytes + 2 * blocks;
    size_t x_bytes = (k + 2 * BLOCK - 1) / (2 * BLOCK) * (2 * BLOCK);
    /* x: quants (i8), scales (f32), sums (i32). To the byte, so that a checker of memory sees what is read beyond. */
    signed char *x = malloc(x_bytes + 8 * blocks);
    unsigned char *w = malloc(rows * row_bytes);
    float c[8], *scales = malloc(4 * blocks);
    if (!x || !w || !scales)
        exit(2);
    for (size_t i = 0; i < k; i++)
        x[i] = (signed char)((int)(draw() % 255) - 127);
    for (size_t b = 0; b < blocks; b++) {
        int32_t sum = 0;
        for (size_t i = 0; i < BLOCK; i++)
            sum += x[b * BLOCK + i];
        scales[b] = (float)(draw() % 1000 + 1) / 4096.0f;
        memcpy(x + x_bytes + 4 * b, &scales[b], 4);
        memcpy(x + x_bytes + 4 * blocks + 4 * b, &sum, 4);
    }
    for (size_t r = 0; r < rows; r++) {
        for (size_t i = 0; i < quant_bytes; i++)
            w[r * row_bytes + i] = (unsigned char)draw();
        for (size_t b = 0; b < blocks; b++) {
            /* A bf16 of either sign between 2^-9 and 2^-7. */
            uint32_t bits16 = (draw() % 2) << 15 | 0x3b00u | (draw() & 0xff);
            w[r * row_bytes + quant_bytes + 2 * b] = (unsigned char)bits16;
            w[r * row_bytes + quant_bytes + 2 * b + 1] = (unsigned char)(bits16 >> 8);
        }
    }
    for (int i = 0; i < 8; i++)
        c[i] = 12345.0f;
    function(x, w, c);
    int bad = 0;
    for (size_t r = 0; r < rows; r++) {
        const unsigned char *row = w + r * row_bytes;
        double sum = 0, size = 0;
        for (size_t i = 0; i < k; i++) {
            size_t b = i / BLOCK, within = i % BLOCK;
            int q;
            if (bits == 8)
                q = (signed char)row[i];
            else if (within < BLOCK / 2)
                q = (row[b * BLOCK / 2 + within] & 15) - 8;
            else
                q = (row[b * BLOCK / 2 + within - BLOCK / 2] >> 4) - 8;
            double part = (double)q * x[i] * from_bf16(row + quant_bytes + 2 * b) * scales[b];
            sum += part;
            size += fabs(part);
        }
        if (!(fabs(c[r] - sum) <= 1e-6 * size)) {
            fprintf(stderr, "case %d (%d bits, k %zu), row %zu: %g, expected %g\n", number, bits, k, r, c[r], sum);
            bad = 1;
        }
    }
    for (size_t i = rows; i < 8; i++)
        bad |= c[i] != 12345.0f;
    free(x);
    free(w);
    free(scales);
    return bad;
}

#include "cases.h"

int main(void)
{
    int bad = 0;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        bad |= run((int)i, cases[i].function, cases[i].bits, cases[i].k, cases[i].rows);
    return bad;
}
