/* fuzz_slab.c: bytes become moves among slabs and accounts (tests/slab_model.h), against the plain model there.
 *
 *   byte 0       bit 0: slabs end before their views; bit 1: the source may refuse while all ends
 *   bytes 1, 2   which call the source refuses (0: none), and whether all after it too
 *   the rest     one move after the other, each taking as many bytes as it has choices
 *
 * With libFuzzer:     clang -fsanitize=fuzzer,address,undefined ... fuzz_slab.c *.c
 * Without:            cc -DMP_FUZZ_STANDALONE ... fuzz_slab.c *.c; ./fuzz_slab FILE... replays inputs */
#include "tests/slab_model.h"

enum { MOST_MOVES = 2000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void play(slab_world *w) {
    for (unsigned i = 0; i < MOST_MOVES && w->hand.left > 0; i++) {
        slab_move(w);
        if (i % 32 == 0) slab_world_inspect(w);
    }
    slab_world_inspect(w);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static slab_world w;
    static const uint8_t nothing;
    slab_world_open(&w, (hand){.bytes = size > 0 ? data : &nothing, .left = size});
    size_t ending = pick_byte(&w.hand);
    w.books.refuse_at = pick_byte(&w.hand);
    if (w.books.refuse_at != 0) w.books.refuse_at += 1; /* not the root account */
    w.books.from_then_on = pick_byte(&w.hand) % 8 == 7;
    play(&w);
    if (!(ending & 2)) ledger_relent(&w.books);
    slab_world_close(&w, (ending & 1) != 0);
    return 0;
}

#if defined(MP_FUZZ_STANDALONE)

static uint8_t input[1 << 20];

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        CHECK(file != NULL);
        size_t size = fread(input, 1, sizeof input, file);
        CHECK_EQ(fclose(file), 0);
        (void)printf("   %s: %zu bytes\n", argv[i], size);
        (void)fflush(stdout);
        (void)LLVMFuzzerTestOneInput(input, size);
    }
    return argc > 1 ? 0 : 1;
}

#endif
