/* Draws tokens by the header's helper from rows of random logits: `sample ROWS SEED TEMPERATURE TOP_K TOP_P`, a token a
 * line. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "model.h"

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    static float logits[MODEL_VOCAB];
    static int32_t scratch[MODEL_VOCAB];
    model_rng values, draws;
    model_seed(&values, 1);
    model_seed(&draws, (uint64_t)strtoull(argv[2], NULL, 10));
    float temperature = strtof(argv[3], NULL), top_p = strtof(argv[5], NULL);
    int32_t top_k = (int32_t)strtol(argv[4], NULL, 10);
    for (int row = 0; row < atoi(argv[1]); row++) {
        for (int v = 0; v < MODEL_VOCAB; v++) {
            /* Tenths, so that there are equals. */
            logits[v] = (float)floor(model_unit(&values) * 300.0) / 10.0f - 15.0f;
            if (v % 97 == row)
                logits[v] = v % 2 ? NAN : -INFINITY;
        }
        if (row % 8 == 7)
            logits[row] = INFINITY;
        printf("%d\n", (int)model_sample(logits, temperature, top_k, top_p, &draws, scratch));
    }
    for (int v = 0; v < MODEL_VOCAB; v++)
        logits[v] = NAN;
    printf("%d\n", (int)model_sample(logits, temperature, top_k, top_p, &draws, scratch));
    printf("%d\n", (int)model_sample(NULL, temperature, top_k, top_p, &draws, scratch));
    return 0;
}
