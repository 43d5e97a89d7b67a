/* Whether what an object refuses, it refuses, by the code in its header: `pick`, which reads by ids. */
#include "main.c"
#include "pick.h"

int main(int argc, char **argv)
{
    void *engine = zeroed(PICK_ENGINE_ALIGN, PICK_ENGINE_BYTES);
    char *weights = zeroed(PICK_WEIGHTS_ALIGN, PICK_WEIGHTS_BYTES);
    size_t length = load(argc > 1 ? argv[1] : "", weights, PICK_WEIGHTS_BYTES);
    float x[9] = {0}, y[4] = {0};
    int32_t columns[4] = {8, 0, 1, 2}, ids[1] = {10};

    CHECK(pick_supported() == 1);
    CHECK(pick_call(NULL, 1, x, columns, ids, y) == PICK_ERROR_STATE);
    CHECK(pick_call(engine, 1, x, columns, ids, y) == PICK_ERROR_STATE);
    CHECK(pick_init(engine, PICK_ENGINE_BYTES - 1, weights, length, NULL, NULL) == PICK_ERROR_STATE);
    CHECK(pick_init(engine, PICK_ENGINE_BYTES, weights, length - 1, NULL, NULL) == PICK_ERROR_WEIGHTS);
    CHECK(pick_init(engine, PICK_ENGINE_BYTES, NULL, length, NULL, NULL) == PICK_ERROR_WEIGHTS);
    weights[20] ^= 1;
    CHECK(pick_init(engine, PICK_ENGINE_BYTES, weights, length, NULL, NULL) == PICK_ERROR_WEIGHTS);
    weights[20] ^= 1;
    CHECK(pick_init(engine, PICK_ENGINE_BYTES, weights, length, NULL, NULL) == PICK_OK);
    CHECK(pick_call(engine, 0, x, columns, ids, y) == PICK_ERROR_ROWS);
    CHECK(pick_call(engine, PICK_MAX_ROWS + 1, x, columns, ids, y) == PICK_ERROR_ROWS);
    CHECK(pick_call(engine, 1, x, NULL, ids, y) == PICK_ERROR_ARGUMENT);
    CHECK(pick_call(engine, 1, x, columns, ids, NULL) == PICK_ERROR_ARGUMENT);
    CHECK(pick_call(engine, 1, x, columns, ids, y) == PICK_OK);
    ids[0] = 11;
    CHECK(pick_call(engine, 1, x, columns, ids, y) == PICK_ERROR_ID);
    ids[0] = -1;
    CHECK(pick_call(engine, 1, x, columns, ids, y) == PICK_ERROR_ID);
    ids[0] = 0;
    columns[3] = 9;
    CHECK(pick_call(engine, 1, x, columns, ids, y) == PICK_ERROR_ID);
    columns[3] = 8;
    CHECK(pick_call(engine, 1, x, columns, ids, y) == PICK_OK);
    free(engine);
    free(weights);
    return 0;
}
