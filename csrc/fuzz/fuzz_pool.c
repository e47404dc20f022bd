/* fuzz_pool.c: bytes become moves among pools and accounts (tests/moves.h), against the plain model of tests/world.h.
 *
 *   byte 0       bit 0: pools end before leases; bit 1: the source may refuse while all ends
 *   bytes 1, 2   which call the source refuses (0: none), and whether all after it too
 *   the rest     one move after the other, each taking as many bytes as it has choices
 *
 * With libFuzzer:     clang -fsanitize=fuzzer,address,undefined ... fuzz_pool.c *.c
 * Without:            cc -DMP_FUZZ_STANDALONE ... fuzz_pool.c *.c
 *                     ./fuzz_pool FILE...         replays inputs
 *                     ./fuzz_pool [-seed=N] [-runs=N]   makes its own */
#include "tests/moves.h"

enum { MOST_MOVES = 4000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void play(world *w) {
    for (unsigned i = 0; i < MOST_MOVES && w->hand.left > 0; i++) {
        make_move(w);
        if (i % 32 == 0) world_inspect(w);
    }
    world_inspect(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static world w;
    static const uint8_t nothing;
    world_open(&w, (hand){.bytes = size > 0 ? data : &nothing, .left = size});
    size_t ending = pick_byte(&w.hand);
    w.books.refuse_at = pick_byte(&w.hand) * 4;
    w.books.from_then_on = pick_byte(&w.hand) % 8 == 7;
    play(&w);
    if (!(ending & 2)) ledger_relent(&w.books);
    world_close(&w, (ending & 1) != 0);
    return 0;
}

#if defined(MP_FUZZ_STANDALONE)

enum { LONGEST = 16384, RUNS = 2000 };

static uint8_t input[1 << 20];

static void replay(const char *path) {
    FILE *file = fopen(path, "rb");
    CHECK(file != NULL);
    size_t size = fread(input, 1, sizeof input, file);
    CHECK_EQ(fclose(file), 0);
    (void)printf("   %s: %zu bytes\n", path, size);
    (void)fflush(stdout);
    (void)LLVMFuzzerTestOneInput(input, size);
}

/* Half of the bytes are small: they reach the rare branches of a choice more often. */
static void run_random(uint64_t seed) {
    dice luck = {.state = check_seed = seed};
    size_t size = 1 + roll_below(&luck, LONGEST);
    bool small = roll_below(&luck, 2) == 0;
    for (size_t i = 0; i < size; i++) input[i] = (uint8_t)roll_below(&luck, small && i % 2 ? 16 : 256);
    (void)LLVMFuzzerTestOneInput(input, size);
}

int main(int argc, char **argv) {
    uint64_t seed = 1, runs = RUNS, files = 0;
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "-seed=", 6) == 0) {
            seed = strtoull(argv[i] + 6, NULL, 0);
        } else if (strncmp(argv[i], "-runs=", 6) == 0) {
            runs = strtoull(argv[i] + 6, NULL, 0);
        } else {
            replay(argv[i]);
            files++;
        }
    }
    for (uint64_t i = 0; i < runs && files == 0; i++) run_random(seed + i);
    if (files == 0) (void)printf("   %" PRIu64 " inputs from seed %" PRIu64 "\n", runs, seed);
    return 0;
}

#endif
