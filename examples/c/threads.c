#include "threads.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

struct worker {
    struct threads *all;
    pthread_t thread;
    void *scratch;
};

struct threads {
    pthread_mutex_t lock;
    pthread_cond_t work, done;
    threads_task task;
    const void *job;
    uint64_t items, next, chunk;
    uint64_t launch; /* Number of the launch, so that each worker joins it once. */
    int inside;      /* Workers that have not finished it. */
    int stop;
    int count; /* Workers, the caller, number 0, included. */
    struct worker workers[THREADS_MAX];
};

/* Takes items until none is left. */
static void take(struct threads *all, void *scratch)
{
    for (;;) {
        pthread_mutex_lock(&all->lock);
        uint64_t begin = all->next;
        uint64_t end = begin + all->chunk < all->items ? begin + all->chunk : all->items;
        all->next = end;
        pthread_mutex_unlock(&all->lock);
        if (begin == end)
            return;
        all->task(all->job, begin, end, scratch);
    }
}

static void *work(void *argument)
{
    struct worker *self = argument;
    struct threads *all = self->all;
    uint64_t seen = 0;
    for (;;) {
        pthread_mutex_lock(&all->lock);
        while (!all->stop && all->launch == seen)
            pthread_cond_wait(&all->work, &all->lock);
        seen = all->launch;
        int stop = all->stop;
        pthread_mutex_unlock(&all->lock);
        if (stop)
            return NULL;
        take(all, self->scratch);
        pthread_mutex_lock(&all->lock);
        if (--all->inside == 0)
            pthread_cond_signal(&all->done);
        pthread_mutex_unlock(&all->lock);
    }
}

struct threads *threads_start(int count, size_t scratch_bytes, size_t scratch_align)
{
    struct threads *all = calloc(1, sizeof *all);
    if (!all || count < 1 || count > THREADS_MAX) {
        free(all);
        return NULL;
    }
    pthread_mutex_init(&all->lock, NULL);
    pthread_cond_init(&all->work, NULL);
    pthread_cond_init(&all->done, NULL);
    scratch_bytes = (scratch_bytes + scratch_align - 1) / scratch_align * scratch_align;
    for (; all->count < count; all->count++) {
        struct worker *worker = &all->workers[all->count];
        worker->all = all;
        worker->scratch = aligned_alloc(scratch_align, scratch_bytes);
        if (!worker->scratch || (all->count > 0 && pthread_create(&worker->thread, NULL, work, worker) != 0)) {
            free(worker->scratch);
            threads_stop(all);
            return NULL;
        }
        memset(worker->scratch, 0, scratch_bytes);
    }
    return all;
}

void threads_run(void *context, uint64_t items, threads_task task, const void *job)
{
    struct threads *all = context;
    pthread_mutex_lock(&all->lock);
    all->task = task;
    all->job = job;
    all->items = items;
    all->next = 0;
    all->chunk = items / (4 * (uint64_t)all->count) + 1;
    all->inside = all->count - 1;
    all->launch++;
    pthread_cond_broadcast(&all->work);
    pthread_mutex_unlock(&all->lock);
    take(all, all->workers[0].scratch);
    pthread_mutex_lock(&all->lock);
    while (all->inside > 0)
        pthread_cond_wait(&all->done, &all->lock);
    pthread_mutex_unlock(&all->lock);
}

void threads_stop(struct threads *all)
{
    if (!all)
        return;
    pthread_mutex_lock(&all->lock);
    all->stop = 1;
    pthread_cond_broadcast(&all->work);
    pthread_mutex_unlock(&all->lock);
    for (int i = 0; i < all->count; i++) {
        if (i > 0)
            pthread_join(all->workers[i].thread, NULL);
        free(all->workers[i].scratch);
    }
    pthread_cond_destroy(&all->done);
    pthread_cond_destroy(&all->work);
    pthread_mutex_destroy(&all->lock);
    free(all);
}
