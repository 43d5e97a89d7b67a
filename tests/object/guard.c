/* Prints what an object answers on this CPU: `model_supported`, `model_init`, and where that went well the most likely
 * token.
 *
 *     guard model.weights [blind]
 *
 * blind: no file may be opened meanwhile, so that the system cannot be asked; the model is not run then. */
#define _XOPEN_SOURCE 700
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

#include "model.h"

int main(int argc, char **argv)
{
    size_t bytes = MODEL_ENGINE_BYTES, state_bytes = MODEL_STATE_BYTES, file_bytes = MODEL_WEIGHTS_BYTES;
    unsigned char *weights = aligned_alloc(MODEL_WEIGHTS_ALIGN, file_bytes);
    unsigned char *engine = aligned_alloc(MODEL_STATE_ALIGN, bytes);
    unsigned char *state = aligned_alloc(MODEL_STATE_ALIGN, state_bytes);
    FILE *file = argc > 1 ? fopen(argv[1], "rb") : NULL;
    if (!weights || !engine || !state || !file || fread(weights, 1, file_bytes, file) != file_bytes)
        return 1;
    fclose(file);
    memset(engine, 0, bytes);
    memset(state, 0, state_bytes);
    int blind = argc > 2;
    if (blind && setrlimit(RLIMIT_NOFILE, &(struct rlimit){0, 0}) != 0)
        return 1;
    int supported = (int)model_supported(), status = (int)model_init(engine, bytes, weights, file_bytes, NULL, NULL);
    printf("%d %d", supported, status);
    if (status == MODEL_ERROR_CPU)
        for (size_t i = 0; i < bytes; i++)
            if (engine[i] != 0)
                return 1;
    if (status == MODEL_OK && !blind) {
        const int32_t ids[] = {MODEL_BOS, 17, 5};
        if (model_open(state, state_bytes, engine) != MODEL_OK)
            return 1;
        printf(" %d %d", (int)model_prefill(state, ids, 3), (int)model_argmax(state));
    }
    printf("\n");
    return 0;
}
