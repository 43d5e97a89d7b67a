/* A parallel_for on POSIX threads: a fixed set of threads that take items off a counter. */
#ifndef THREADS_H
#define THREADS_H

#include <stddef.h>
#include <stdint.h>

#define THREADS_MAX 256

struct threads;

typedef void (*threads_task)(const void *job, uint64_t begin, uint64_t end, void *scratch);

/* Starts `count - 1` threads (the caller is one more) with `scratch_bytes` of scratch each. Null on failure. */
struct threads *threads_start(int count, size_t scratch_bytes, size_t scratch_align);

/* Runs items 0 .. items - 1; returns when all are done. `context` is the threads. */
void threads_run(void *context, uint64_t items, threads_task task, const void *job);

/* Ends the threads; null is fine. */
void threads_stop(struct threads *threads);

#endif
