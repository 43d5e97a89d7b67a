/* What the programs that `own.rs` writes share: memory that ends where a page does, so that what is read or written
 * beyond an operand is a fault; launches cut in two. */
#define _DEFAULT_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static void *guarded(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = (bytes + page - 1) / page * page;
    char *start = mmap(NULL, whole + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED || mprotect(start + whole, page, PROT_NONE) != 0)
        abort();
    return start + (whole - bytes);
}

static void *input(size_t bytes)
{
    void *memory = guarded(bytes);
    if (fread(memory, 1, bytes, stdin) != bytes)
        abort();
    return memory;
}

static void *zeroed(size_t align, size_t bytes)
{
    void *memory = aligned_alloc(align, (bytes + align - 1) / align * align);
    return memset(memory, 0, bytes);
}

static size_t load(const char *path, void *memory, size_t bytes)
{
    FILE *file = fopen(path, "rb");
    size_t length = file ? fread(memory, 1, bytes, file) : 0;
    if (file)
        fclose(file);
    return length;
}

typedef void (*task_type)(const void *job, uint64_t begin, uint64_t end, void *scratch);

/* `context` is scratch; its second half is used by the second part. */
struct parts {
    char *scratch;
    size_t bytes;
};

static void split(void *context, uint64_t items, task_type task, const void *job)
{
    struct parts *parts = context;
    memset(parts->scratch, 0xff, 2 * parts->bytes);
    task(job, items / 2, items, parts->scratch + parts->bytes);
    if (items / 2 > 0)
        task(job, 0, items / 2, parts->scratch);
}

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
            return 1; \
        } \
    } while (0)
