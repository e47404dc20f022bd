/* A source that refuses: one call in twenty, each call once, none at all. Random moves among several pools; after each the model must
 * agree, and at the end every byte must have come back. MP_SEED=n and MP_ROUNDS=n in the environment repeat or prolong it. */
#include "moves.h"

enum { ROUNDS = 100000, ROUNDS_PER_WORLD = 1000 };

static uint64_t from_environment(const char *name, uint64_t otherwise) {
    const char *text = getenv(name);
    return text != NULL ? strtoull(text, NULL, 0) : otherwise;
}

/* Unmap, decommit and the rest may also be refused while all ends (`relent` false); then the ledger tells what could not go. */
static uint64_t live_once(uint64_t seed, unsigned rounds, unsigned one_in, uint64_t refuse_at, bool relent) {
    static world w;
    check_seed = seed;
    world_open(&w, (hand){.luck = {.state = seed}});
    w.books.luck.state = seed ^ 1;
    w.books.one_in = one_in;
    w.books.refuse_at = refuse_at;
    for (unsigned i = 0; i < rounds; i++) {
        make_move(&w);
        if (i % 16 == 0) world_inspect(&w);
    }
    if (relent) ledger_relent(&w.books);
    world_inspect(&w);
    uint64_t calls = w.books.total;
    world_close(&w, seed % 3 == 0);
    return calls;
}

static void one_call_in_twenty_fails(void) {
    uint64_t seed = from_environment("MP_SEED", 1), rounds = from_environment("MP_ROUNDS", ROUNDS);
    for (uint64_t done = 0; done < rounds; done += ROUNDS_PER_WORLD) {
        (void)live_once(seed, ROUNDS_PER_WORLD, 20, 0, seed % 2 == 0);
        seed++;
    }
}

static void most_calls_fail(void) {
    for (uint64_t seed = 1; seed <= 20; seed++) (void)live_once(seed, 500, 2, 0, seed % 2 == 0);
}

static void each_call_fails_once(void) {
    for (uint64_t call = 1; call <= live_once(7, 120, 0, call, false); call++) continue;
}

static void nothing_fails(void) {
    for (uint64_t seed = 1; seed <= 20; seed++) (void)live_once(seed, ROUNDS_PER_WORLD, 0, 0, true);
}

/* Where unmap is refused, pages go and addresses stay: they are committed before they are used again, also those that never were used. */
static void what_stays_mapped_is_used_again(void) {
    const size_t sizes[] = {64, 1500, 4096, 40000, 3 * MIB};
    for (size_t i = 0; i < 5; i++) {
        ledger books;
        mp_block *held[40];
        ledger_open(&books);
        books.may_refuse = 1 << LEDGER_UNMAP;
        books.one_in = 1;
        mp_pool_config config = plain(&books);
        mp_pool *pool = open_pool(&config);
        for (size_t many = 1; many <= 40; many += 13) {
            for (size_t k = 0; k < many; k++) {
                held[k] = take(pool, sizes[i]);
                mp_block_zero(held[k], sizes[i]);
                CHECK(is_filled(held[k]->data, 0, sizes[i]));
                memset(held[k]->data, 7, sizes[i]);
            }
            for (size_t k = 0; k < many; k++) give(held[k]);
            (void)mp_pool_trim(pool, 0);
            CHECK_EQ(snapshot(pool).reserved, 0);
            CHECK_EQ(ledger_resident(&books), 0);
        }
        mp_pool_destroy(pool);
        ledger_close(&books);
    }
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    TEST(what_stays_mapped_is_used_again);
    TEST(nothing_fails);
    TEST(each_call_fails_once);
    TEST(most_calls_fail);
    TEST(one_call_in_twenty_fails);
    return check_end();
}
