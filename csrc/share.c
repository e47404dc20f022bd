/* share.c: files that several processes map, and the marks that tell who has which part.
 *
 *      file      [ part 0 | part 1 | part 2 | ... | words ]
 *                    ^         ^                     '- 64 bits each, changed by all at once
 *                    '- many ---- one
 *
 * A mark belongs to the open file that it was made through, never to a process: it ends with the last descriptor and the last mapping
 * of that open file, however their processes ended. So the OS counts who has a part, and nobody who was killed is counted.
 *
 * Invariant: while one open file has a part alone, no other has a mark on it.
 *
 * Rejected: counts in the shared memory (a process that is killed never takes its own back), and locks that belong to a process
 * (they go with the first descriptor that it closes). */
#include "internal.h"

bool mp_share_exists(void) { return mp__os_file_can_mark(); }

mp_status mp_share_map(int file, size_t size, void **out, int *error) {
    int ignored;
    mp_status status = mp__os_file_map(file, 0, size, MP_ACCESS_WRITE, out, error);
    if (status == MP_OK && size >= mp_huge_page_size()) (void)mp__os_advise(*out, size, MP_ADVICE_HUGEPAGE, &ignored);
    return status;
}

void mp_share_unmap(void *data, size_t size) { (void)mp__os_file_unmap(data, size); }

void mp_share_close(int file) {
    int ignored;
    (void)mp__os_file_close(file, &ignored);
}

mp_status mp_share_mark(int file, uint64_t part, mp_share_as as, int *error) { return mp__os_file_mark(file, part, as, error); }

uint64_t mp_word_get(const void *word) { return atomic_load((const _Atomic uint64_t *)word); }

void mp_word_set(void *word, uint64_t value) { atomic_store((_Atomic uint64_t *)word, value); }

void mp_word_add(void *word) { (void)atomic_fetch_add((_Atomic uint64_t *)word, 1); }

void mp_word_drop(void *word) {
    uint64_t value = mp_word_get(word);
    while (value > 0 && !atomic_compare_exchange_weak((_Atomic uint64_t *)word, &value, value - 1)) {
    }
}
