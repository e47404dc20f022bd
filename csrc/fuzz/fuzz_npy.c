/* fuzz_npy.c: bytes become a .npy header, which is read, given other rows, and read again.
 *
 *   bytes 0 to 7   the rows to set, little-endian
 *   byte 8         0: the rest is a file as it is; 1 to 3: it is the text of a header of that version
 *   the rest       the file, or the text
 *
 * With libFuzzer:     clang -fsanitize=fuzzer,address,undefined ... fuzz_npy.c npy.c
 * Without:            cc -DMP_FUZZ_STANDALONE ... fuzz_npy.c npy.c
 *                     ./fuzz_npy FILE...         replays inputs */
#include "include/mempool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONTROL = 9, MOST_TEXT = 60000 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* Not that of tests/check.h, whose _Exit keeps libFuzzer from saving the input. */
static void check(bool holds, int line, const char *what) {
    if (holds) return;
    (void)fprintf(stderr, "%s:%d: %s is false\n", __FILE__, line, what);
    abort();
}

#define CHECK(condition) check(condition, __LINE__, #condition)

static char *copy_of(const void *bytes, size_t size) {
    char *copy = malloc(size);
    CHECK(copy != NULL || size == 0);
    if (size > 0) memcpy(copy, bytes, size);
    return copy;
}

/* The text behind a preamble that fits it. */
static char *with_preamble(unsigned major, const uint8_t *text, size_t length, size_t *size) {
    const char first[] = {'\x93', 'N', 'U', 'M', 'P', 'Y', (char)major, 0, (char)(length & 255), (char)(length >> 8), 0, 0};
    size_t start = major == 1 ? 10 : 12;
    char *bytes = malloc(*size = start + length);
    CHECK(bytes != NULL);
    memcpy(bytes, first, start);
    if (length > 0) memcpy(bytes + start, text, length);
    return bytes;
}

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

static void check_shape(const char *bytes, const mp_npy *header) {
    uint64_t product = 1, rows = 0;
    bool empty = false;
    CHECK(header->ndim <= MP_NPY_MAX_DIMS);
    for (unsigned i = 0; i < header->ndim; i++) empty = empty || header->shape[i] == 0;
    for (unsigned i = 0; i < header->ndim && !empty; i++) CHECK(!__builtin_mul_overflow(product, header->shape[i], &product));
    CHECK((header->rows_start < header->rows_stop) == (header->ndim > 0));
    for (size_t i = header->rows_start; i < header->rows_stop; i++) rows = rows * 10 + (uint64_t)(bytes[i] - '0');
    CHECK(rows == header->shape[0]);
}

/* descr and the rows stand within the dict, apart from each other, and space stands behind it. */
static void check_offsets(const char *bytes, size_t size, const mp_npy *header) {
    size_t start = header->major == 1 ? 10 : 12;
    CHECK(header->problem == NULL);
    CHECK(header->data_offset == size);
    CHECK(start < header->descr_start);
    CHECK(header->descr_start < header->descr_stop);
    CHECK(header->descr_stop < header->dict_stop);
    CHECK(header->dict_stop <= size);
    CHECK(header->rows_stop < header->dict_stop);
    CHECK(header->ndim == 0 || start < header->rows_start);
    CHECK(header->rows_stop < header->descr_start || header->descr_stop < header->rows_start);
    CHECK(strchr("\"'ub([N0123456789", bytes[header->descr_start]) != NULL);
    CHECK(bytes[header->dict_stop - 1] == '}');
    for (size_t i = header->dict_stop; i < size; i++) CHECK(is_space(bytes[i]));
    check_shape(bytes, header);
}

static void check_same(const mp_npy *a, const mp_npy *b) {
    CHECK(a->major == b->major && a->minor == b->minor && a->data_offset == b->data_offset && a->dict_stop == b->dict_stop);
    CHECK(a->descr_start == b->descr_start && a->descr_stop == b->descr_stop);
    CHECK(a->rows_start == b->rows_start && a->rows_stop == b->rows_stop);
    CHECK(a->fortran_order == b->fortran_order && a->ndim == b->ndim && memcmp(a->shape, b->shape, sizeof a->shape) == 0);
}

/* Only an L may have become a space. */
static void check_blanked(const char *before, const char *bytes, size_t size) {
    for (size_t i = 0; i < size; i++) CHECK(before[i] == bytes[i] || (before[i] == 'L' && bytes[i] == ' ' && before[6] < 3));
}

static void check_rows(const char *before, const mp_npy *old, const char *bytes, size_t size, const mp_npy *header) {
    size_t end = old->dict_stop > header->dict_stop ? old->dict_stop : header->dict_stop;
    CHECK(header->rows_start == old->rows_start);
    CHECK(header->descr_stop - header->descr_start == old->descr_stop - old->descr_start);
    CHECK(memcmp(before + old->descr_start, bytes + header->descr_start, header->descr_stop - header->descr_start) == 0);
    CHECK(memcmp(before, bytes, old->rows_start) == 0);
    CHECK(memcmp(before + old->rows_stop, bytes + header->rows_stop, old->dict_stop - old->rows_stop) == 0);
    CHECK(memcmp(before + end, bytes + end, size - end) == 0);
    for (size_t i = header->dict_stop; i < end; i++) CHECK(bytes[i] == ' ');
}

static void set_rows(char *bytes, size_t size, mp_npy *header, uint64_t rows) {
    mp_npy old = *header, again;
    char *before = copy_of(bytes, size);
    if (mp_npy_set_rows(bytes, size, header, rows) == MP_OK) {
        CHECK(header->shape[0] == rows);
        check_rows(before, &old, bytes, size, header);
        check_offsets(bytes, size, header);
        CHECK(mp_npy_parse(bytes, size, &again) == MP_OK);
        check_same(header, &again);
        CHECK(mp_npy_set_rows(bytes, size, header, old.shape[0]) == MP_OK);
    } else {
        CHECK(header->problem != NULL && memcmp(before, bytes, size) == 0);
    }
    check_same(header, &old);
    free(before);
}

static void read_header(char *bytes, size_t size, uint64_t rows) {
    mp_npy header, again;
    char *before = copy_of(bytes, size);
    if (mp_npy_parse(bytes, size, &header) == MP_OK) {
        check_blanked(before, bytes, size);
        check_offsets(bytes, size, &header);
        CHECK(mp_npy_parse(bytes, size, &again) == MP_OK);
        check_same(&header, &again);
        set_rows(bytes, size, &header, rows);
    } else {
        CHECK(header.problem != NULL && memcmp(before, bytes, size) == 0);
    }
    free(before);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint64_t rows = 0;
    mp_npy header;
    if (size < CONTROL || size - CONTROL > MOST_TEXT) return 0;
    for (size_t i = 8; i > 0; i--) rows = rows << 8 | data[i - 1];
    unsigned major = data[8] % 4;
    size_t length = size - CONTROL;
    char *bytes = major > 0 ? with_preamble(major, data + CONTROL, length, &length) : copy_of(data + CONTROL, length);
    if (mp_npy_measure(bytes, length, &header) == MP_OK) {
        CHECK(header.problem == NULL && header.data_offset >= 10);
        if (header.data_offset < length) { /* as of a file with its data */
            char *head = copy_of(bytes, length = header.data_offset);
            free(bytes);
            bytes = head;
        }
    } else {
        CHECK(header.problem != NULL);
    }
    read_header(bytes, length, rows);
    free(bytes);
    return 0;
}

#if defined(MP_FUZZ_STANDALONE)

static uint8_t input[1 << 20];

int main(int argc, char **argv) {
    for (int i = 1; i < argc; i++) {
        FILE *file = fopen(argv[i], "rb");
        CHECK(file != NULL);
        size_t size = fread(input, 1, sizeof input, file);
        CHECK(fclose(file) == 0);
        (void)printf("   %s: %zu bytes\n", argv[i], size);
        (void)fflush(stdout);
        (void)LLVMFuzzerTestOneInput(input, size);
    }
    return 0;
}

#endif
