/* stress_heap.c: threads that allocate, move, hand to each other and free, while the current heap changes and pools go. */
#include "kit.h"

enum { THREADS = 6, ROUNDS = 4000, SLOTS = 64 };

typedef struct shared {
    mp_heap *heap;
    _Atomic(void *) slots[SLOTS]; /* memory on its way from one thread to another */
    atomic_uint working;
} shared;

static void put(void *ptr) {
    mp_block *block;
    mp_heap *heap = mp_heap_take_out(ptr, &block);
    CHECK(heap != NULL);
    (void)mp_pool_release(block, MP_END_RELEASED);
    (void)mp_heap_release(heap);
}

/* Each piece begins with its own address and ends with it: memory that were lent twice would show. */
static void stamp(void *ptr, size_t nbytes) {
    memcpy(ptr, &ptr, sizeof ptr);
    memcpy((char *)ptr + nbytes - sizeof ptr, &ptr, sizeof ptr);
}

static void check_stamp(void *ptr, size_t nbytes) {
    CHECK(memcmp(ptr, &ptr, sizeof ptr) == 0);
    CHECK(memcmp((char *)ptr + nbytes - sizeof ptr, &ptr, sizeof ptr) == 0);
}

static void *get(mp_heap *heap, dice *luck) {
    void *ptr;
    size_t nbytes = MP_HEAP_LEAST + roll_below(luck, 300 * KIB);
    mp_status status = mp_heap_alloc(heap, nbytes, roll_below(luck, 4) == 0, &ptr);
    if (status == MP_ERR_CLOSED || status == MP_ERR_LIMIT) return NULL;
    CHECK_EQ(status, MP_OK);
    stamp(ptr, nbytes);
    return ptr;
}

static void *move(void *ptr, dice *luck) {
    void *moved;
    mp_heap *waiting;
    size_t nbytes = MP_HEAP_LEAST + roll_below(luck, 300 * KIB);
    if (mp_heap_realloc(ptr, nbytes, &moved, &waiting) != MP_OK) return ptr;
    CHECK(memcmp(moved, &ptr, sizeof ptr) == 0);
    stamp(moved, nbytes);
    return moved;
}

static void turn_over(shared *all, mp_heap *heap, dice *luck) {
    size_t nbytes = 0;
    void *fresh = heap != NULL ? get(heap, luck) : NULL;
    void *found = atomic_exchange(&all->slots[roll_below(luck, SLOTS)], fresh);
    if (found == NULL) return;
    CHECK(mp_heap_has(found, &nbytes));
    check_stamp(found, nbytes);
    if (roll_below(luck, 3) == 0) found = move(found, luck);
    put(found);
}

static void work(void *context, unsigned number) {
    shared *all = context;
    dice luck = {number + 1};
    for (unsigned round = 0; round < ROUNDS; round++) {
        mp_heap *heap = number % 2 ? mp_heap_current() : all->heap;
        turn_over(all, heap, &luck);
        if (number % 2 && heap != NULL) (void)mp_heap_release(heap);
    }
    atomic_fetch_sub(&all->working, 1);
}

/* Installs pools and destroys them while their memory is out. */
static void replace(shared *all) {
    while (atomic_load(&all->working) > 1) {
        mp_pool_config config = plain(NULL);
        config.limit = 8 * MIB;
        mp_pool *pool = open_pool(&config);
        mp_heap *heap = NULL;
        CHECK_EQ(mp_heap_create(pool, NULL, &heap), MP_OK);
        mp_heap *before = mp_heap_set_current(heap);
        if (before != NULL) (void)mp_heap_release(before);
        sched_yield();
        before = mp_heap_set_current(NULL);
        if (before != NULL) (void)mp_heap_release(before);
        mp_pool_destroy(pool);
    }
    atomic_fetch_sub(&all->working, 1);
}

static void work_or_replace(void *context, unsigned number) {
    if (number == 0) replace(context);
    else work(context, number);
}

static void memory_goes_from_hand_to_hand(void) {
    static shared all;
    mp_pool_config config = plain(NULL);
    config.limit = 16 * MIB;
    mp_pool *pool = open_pool(&config);
    CHECK_EQ(mp_heap_create(pool, NULL, &all.heap), MP_OK);
    atomic_store(&all.working, THREADS);
    crew_run(THREADS, work_or_replace, &all);
    for (size_t i = 0; i < SLOTS; i++) {
        void *left = atomic_exchange(&all.slots[i], NULL);
        if (left != NULL) put(left);
    }
    CHECK_EQ(snapshot(pool).live, 0);
    CHECK(mp_pool_is_valid(pool));
    (void)mp_heap_release(all.heap);
    mp_pool_destroy(pool);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(memory_goes_from_hand_to_hand);
    return check_end();
}
