/* bench.c: what the core costs, with nothing but a C compiler. One JSON object a line:
 *
 *      {"name": "acquire_release_4KiB", "ns": 11.2, "ratio": 1.31, "against": "malloc", "threads": 1}
 *
 * `ns` is the wall clock's time for each acquire and release, all threads together; `ratio` says how many times as many of them are done
 * as by what stands in `against`. The machine may be busy with other things, so the rounds of all rows are interleaved, each ratio is taken
 * within a round, and medians are printed; two_threads_of_arithmetic tells what the machine had to give. ./bench [ROUNDS] */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "include/mempool.h"

enum { ROUNDS = 9, MOST_ROUNDS = 1000, BATCH = 256, MOST_THREADS = 64, ROWS = 32, SLICE_MS = 15, CROWD_MS = 150 };

static uint64_t now_ns(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

_Noreturn static void die(const char *what) {
    (void)fprintf(stderr, "bench: %s failed\n", what);
    exit(1);
}

/* ---- what a thread does over and over ---- */

typedef struct task {
    void (*batch)(struct task *self, unsigned number); /* BATCH pairs of acquire and release */
    mp_pool *pool;
    size_t sizes[16]; /* a thread's number picks one */
    unsigned n_sizes;
} task;

/* Blocks on their way from one thread to another. */
enum { QUEUE = 1024, PATIENCE = 100000 };

static struct {
    mp_block *blocks[QUEUE];
    _Alignas(128) atomic_uint in;
    _Alignas(128) atomic_uint out;
} queue;

static void use_pool(task *self, unsigned number) {
    size_t nbytes = self->sizes[number % self->n_sizes];
    for (unsigned i = 0; i < BATCH; i++) {
        mp_block *block;
        if (mp_pool_acquire(self->pool, nbytes, &block, NULL) != MP_OK) die("acquire");
        *(volatile char *)block->data = 1;
        (void)mp_pool_release(block, MP_END_RELEASED);
    }
}

static void use_malloc(task *self, unsigned number) {
    size_t nbytes = self->sizes[number % self->n_sizes];
    for (unsigned i = 0; i < BATCH; i++) {
        volatile char *ptr = malloc(nbytes);
        if (ptr == NULL) die("malloc");
        *ptr = 1;
        free((void *)ptr);
    }
}

/* Arithmetic alone: what the machine has to give to two threads at this moment. */
static void use_nothing(task *self, unsigned number) {
    volatile unsigned sink;
    unsigned value = number + self->n_sizes;
    for (unsigned i = 0; i < BATCH * 16; i++) value = value * 1664525U + 1013904223U;
    sink = value;
    (void)sink;
}

/* Several at once, as a program with buffers in flight has them. */
static void use_window(task *self, unsigned number) {
    enum { WINDOW = 16 };
    mp_block *held[WINDOW];
    size_t nbytes = self->sizes[number % self->n_sizes];
    for (unsigned i = 0; i < BATCH; i += WINDOW) {
        for (unsigned k = 0; k < WINDOW; k++) {
            if (mp_pool_acquire(self->pool, nbytes, &held[k], NULL) != MP_OK) die("acquire");
            *(volatile char *)held[k]->data = 1;
        }
        for (unsigned k = 0; k < WINDOW; k++) (void)mp_pool_release(held[k], MP_END_RELEASED);
    }
}

static mp_pool *open_pool(size_t limit, size_t max_idle, mp_account *account) {
    mp_pool_config config = {
        .limit = limit, .max_idle = max_idle, .idle_timeout = UINT64_C(10000000000), .alignment = 64, .account = account};
    mp_pool *pool;
    if (mp_pool_create(&config, &pool) != MP_OK) die("mp_pool_create");
    return pool;
}

static mp_pool *plain_pool(void) { return open_pool(MP_NO_LIMIT, MP_NO_LIMIT, NULL); }

/* A pool is closed, or may keep nothing idle, while many small blocks are lent; they end in no good order. */
static void use_in_bulk(mp_pool *pool, bool close) {
    enum { MANY = BATCH * 16 };
    static mp_block *held[MANY];
    for (unsigned i = 0; i < MANY; i++) {
        if (mp_pool_acquire(pool, 64, &held[i], NULL) != MP_OK) die("acquire");
    }
    if (close) mp_pool_close(pool);
    for (unsigned i = 0; i < MANY; i++) (void)mp_pool_release(held[i * 2053 % MANY], MP_END_RELEASED);
}

static void use_closed(task *self, unsigned number) {
    mp_pool *pool = plain_pool();
    (void)self;
    (void)number;
    use_in_bulk(pool, true);
    mp_pool_destroy(pool);
}

static void use_keeping_nothing(task *self, unsigned number) {
    (void)number;
    use_in_bulk(self->pool, false);
}

/* Every acquire goes to the OS, every release back to it. */
static void use_cold(task *self, unsigned number) {
    for (unsigned i = 0; i < BATCH; i += 16) {
        mp_block *block;
        if (mp_pool_acquire(self->pool, self->sizes[number % self->n_sizes], &block, NULL) != MP_OK) die("acquire");
        *(volatile char *)block->data = 1;
        (void)mp_pool_release(block, MP_END_RELEASED);
        if (mp_pool_trim(self->pool, 0) == 0) die("trim");
    }
}

/* Waits until the queue has something to take, or room; not for ever, because the other thread may have ended. */
static bool queue_is_ready(bool to_take) {
    for (unsigned i = 0; i < PATIENCE; i++) {
        unsigned length =
            atomic_load_explicit(&queue.in, memory_order_acquire) - atomic_load_explicit(&queue.out, memory_order_acquire);
        if (to_take ? length >= BATCH : length + BATCH <= QUEUE) return true;
        if (i % 64 == 63) (void)sched_yield();
    }
    return false;
}

/* An even thread acquires, an odd one releases. */
static void hand_over(task *self, unsigned number) {
    atomic_uint *end = number % 2 ? &queue.out : &queue.in;
    unsigned at = atomic_load_explicit(end, memory_order_relaxed);
    if (!queue_is_ready(number % 2 == 1)) return;
    for (unsigned i = at; i < at + BATCH; i++) {
        mp_block **slot = &queue.blocks[i % QUEUE];
        if (number % 2) (void)mp_pool_release(*slot, MP_END_RELEASED);
        else if (mp_pool_acquire(self->pool, self->sizes[0], slot, NULL) != MP_OK) die("acquire");
    }
    atomic_store_explicit(end, at + BATCH, memory_order_release);
}

/* ---- threads ---- */

static const double QUIET = 1.8;

typedef struct worker {
    _Alignas(128) atomic_ullong batches;
    struct measurement *of;
    pthread_t thread;
    unsigned number;
} worker;

typedef struct measurement {
    task *task;
    atomic_bool open, over;
    worker workers[MOST_THREADS];
} measurement;

static void sleep_ms(double ms) {
    const struct timespec time = {.tv_nsec = (long)(ms * 1e6)};
    (void)nanosleep(&time, NULL);
}

/* Sleeps until all are there, and by the clock: a lock that is handed from one to the next takes long when the first already work. */
static void *work(void *context) {
    worker *me = context;
    measurement *all = me->of;
    while (!atomic_load(&all->open)) sleep_ms(0.2);
    while (!atomic_load_explicit(&all->over, memory_order_relaxed)) {
        all->task->batch(all->task, me->number);
        atomic_fetch_add_explicit(&me->batches, 1, memory_order_relaxed);
    }
    return NULL;
}

static uint64_t count_batches(measurement *all, unsigned threads) {
    uint64_t sum = 0;
    for (unsigned i = 0; i < threads; i++) sum += atomic_load_explicit(&all->workers[i].batches, memory_order_relaxed);
    return sum;
}

static void start_workers(measurement *all, unsigned threads) {
    for (unsigned i = 0; i < threads; i++) {
        worker *new = &all->workers[i];
        new->of = all;
        new->number = i;
        if (pthread_create(&new->thread, NULL, work, new) != 0) die("pthread_create");
    }
    atomic_store(&all->open, true);
}

/* Pairs per nanosecond of all threads together. */
static double measure(task *of, unsigned threads, unsigned ms) {
    static measurement all;
    memset(&all, 0, sizeof all);
    all.task = of;
    start_workers(&all, threads);
    sleep_ms(ms / 5.0);
    uint64_t before = count_batches(&all, threads), start = now_ns();
    do sleep_ms(ms);
    while (count_batches(&all, threads) == before);
    double done = (double)(count_batches(&all, threads) - before), elapsed = (double)(now_ns() - start);
    atomic_store(&all.over, true);
    for (unsigned i = 0; i < threads; i++) (void)pthread_join(all.workers[i].thread, NULL);
    return done * BATCH / elapsed;
}

/* ---- rows ---- */

typedef struct row {
    const char *name, *against;
    task task, rival;
    unsigned threads, rival_threads, ms;
    double scale; /* pairs that a batch counts as more than it does */
    double ns[MOST_ROUNDS], ratios[MOST_ROUNDS];
} row;

static row rows[ROWS];
static unsigned n_rows;

static mp_pool *accounted_pool(void) {
    mp_account *root, *leaf;
    if (mp_account_create(NULL, MP_NO_LIMIT, NULL, &root) != MP_OK) die("mp_account_create");
    if (mp_account_create(root, (size_t)1 << 32, NULL, &leaf) != MP_OK) die("mp_account_create");
    return open_pool((size_t)1 << 32, MP_NO_LIMIT, leaf);
}

static task one_size(void (*batch)(task *, unsigned), mp_pool *pool, size_t nbytes) {
    return (task){.batch = batch, .pool = pool, .sizes = {nbytes}, .n_sizes = 1};
}

static row *add(const char *name, task what, unsigned threads, const char *against, task rival, unsigned rival_threads) {
    row *new = &rows[n_rows++];
    new->name = name;
    new->against = against;
    new->task = what;
    new->rival = rival;
    new->threads = threads;
    new->rival_threads = rival_threads;
    new->ms = threads > 2 ? CROWD_MS : SLICE_MS;
    new->scale = 1;
    return new;
}

static void add_single_rows(void) {
    static const struct {
        const char *warm, *cold;
        size_t nbytes;
    } sizes[] = {{"acquire_release_64B", "miss_64B", 64},
                 {"acquire_release_4KiB", "miss_4KiB", 4096},
                 {"acquire_release_1MiB", "miss_1MiB", 1 << 20}};
    for (unsigned i = 0; i < 3; i++) {
        size_t n = sizes[i].nbytes;
        task warm = one_size(use_pool, plain_pool(), n);
        (void)add(sizes[i].warm, warm, 1, "malloc", one_size(use_malloc, NULL, n), 1);
        add(sizes[i].cold, one_size(use_cold, plain_pool(), n), 1, "warm", warm, 1)->scale = 1.0 / 16;
    }
    task plain = one_size(use_pool, plain_pool(), 4096);
    (void)add("malloc_free_4KiB", one_size(use_malloc, NULL, 4096), 1, "mempool", plain, 1);
    (void)add("limit_and_account", one_size(use_pool, accounted_pool(), 4096), 1, "plain pool", plain, 1);
    (void)add("max_idle", one_size(use_pool, open_pool(MP_NO_LIMIT, (size_t)1 << 30, NULL), 4096), 1, "plain pool", plain, 1);
    add("closed_64B", one_size(use_closed, NULL, 64), 1, "plain pool", plain, 1)->scale = 16;
    add("keeping_nothing_64B", one_size(use_keeping_nothing, open_pool(MP_NO_LIMIT, 0, NULL), 64), 1, "plain pool", plain, 1)
        ->scale = 16;
    (void)add("window_of_16", one_size(use_window, plain_pool(), 4096), 1, "plain pool", plain, 1);
}

static void add_thread_rows(void) {
    mp_pool *pool = plain_pool();
    task same = one_size(use_pool, pool, 4096), classes = {.batch = use_pool, .pool = pool, .n_sizes = 16};
    for (unsigned i = 0; i < 16; i++) classes.sizes[i] = 4096 * (i + 1);
    task nothing = one_size(use_nothing, NULL, 0);
    (void)add("two_threads_of_arithmetic", nothing, 2, "one thread", nothing, 1);
    (void)add("two_threads_two_classes", classes, 2, "one thread", same, 1);
    (void)add("two_threads_same_class", same, 2, "one thread", same, 1);
    add("two_threads_handing_over", one_size(hand_over, plain_pool(), 4096), 2, "one thread", same, 1)->scale = 0.5;
    (void)add("two_threads_malloc", one_size(use_malloc, NULL, 4096), 2, "one thread", one_size(use_malloc, NULL, 4096), 1);
    (void)add("sixty_four_threads_vs_two", classes, 64, "two threads", classes, 2);
    (void)add("sixty_four_threads_same_class", same, 64, "two threads", same, 2);
}

/* Rows of several threads say something about mempool only while the machine has two processors to give. */
static void wait_for_quiet(void) {
    static double patience_ms = 30000;
    const task nothing = one_size(use_nothing, NULL, 0);
    while (patience_ms > 0) {
        task alone = nothing, both = nothing;
        double ratio = measure(&both, 2, SLICE_MS) / measure(&alone, 1, SLICE_MS);
        if (ratio > QUIET) return;
        patience_ms -= 100;
        sleep_ms(100);
    }
}

static void run_round(unsigned round) {
    for (unsigned i = 0; i < n_rows; i++) {
        row *at = &rows[i];
        if (at->threads > 1) wait_for_quiet();
        double rival = measure(&at->rival, at->rival_threads, at->ms);
        double mine = measure(&at->task, at->threads, at->ms) * at->scale;
        at->ns[round] = 1 / mine;
        at->ratios[round] = mine / rival;
    }
}

static int by_value(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, unsigned count) {
    qsort(values, count, sizeof *values, by_value);
    return (values[(count - 1) / 2] + values[count / 2]) / 2;
}

int main(int argc, char **argv) {
    unsigned rounds = argc > 1 ? (unsigned)strtoul(argv[1], NULL, 10) : ROUNDS;
    if (rounds == 0 || rounds > MOST_ROUNDS) die("the number of rounds");
    add_single_rows();
    add_thread_rows();
    for (unsigned round = 0; round < rounds; round++) run_round(round);
    for (unsigned i = 0; i < n_rows; i++) {
        (void)printf("{\"name\": \"%s\", \"ns\": %.1f, \"ratio\": %.3f, \"against\": \"%s\", \"threads\": %u}\n", rows[i].name,
                     median(rows[i].ns, rounds), median(rows[i].ratios, rounds), rows[i].against, rows[i].threads);
    }
    return 0;
}
