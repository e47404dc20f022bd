/* npy_kit.h: what the tests of .npy headers share: files in memory of exactly their size, so that ASan sees a read behind them, and
 * what must hold for any bytes. */
#ifndef MP_TESTS_NPY_KIT_H
#define MP_TESTS_NPY_KIT_H

#include "include/mempool.h"
#include "tests/check.h"

enum { LONGEST = 1 << 20, MOST_TEXT = 8192 };

typedef struct file {
    char *bytes;
    size_t size;
} file;

/* As NumPy 2 writes it: a multiple of 64 bytes, and room for more rows. */
static const char *const usual =
    "{'descr': '<f8', 'fortran_order': False, 'shape': (3, 4), }                                                          \n";
static const char *const python2 =
    "{'descr': [('a', '<f8', (2L, 3L)), ('L 1L', '|S5')], 'fortran_order': True, 'shape': (3L, 40L), }    \n";

static inline file copy_of(const char *bytes, size_t size) {
    file f = {.bytes = malloc(size), .size = size};
    CHECK(f.bytes != NULL || size == 0);
    if (size > 0) memcpy(f.bytes, bytes, size);
    return f;
}

static inline file make_n(unsigned major, const char *text, size_t length) {
    size_t start = major == 1 ? 10 : 12;
    file f = {.bytes = malloc(start + length), .size = start + length};
    CHECK(f.bytes != NULL);
    memcpy(f.bytes, "\x93NUMPY", 6);
    f.bytes[6] = (char)major;
    f.bytes[7] = 0;
    for (size_t i = 8; i < start; i++) f.bytes[i] = (char)(length >> (8 * (i - 8)) & 255);
    memcpy(f.bytes + start, text, length);
    return f;
}

static inline file make(unsigned major, const char *text) { return make_n(major, text, strlen(text)); }

static inline void drop(file f) { free(f.bytes); }

static inline mp_npy parse(file f) {
    mp_npy header;
    mp_status status = mp_npy_parse(f.bytes, f.size, &header);
    if (status != MP_OK) check_fail(__FILE__, __LINE__, header.problem);
    CHECK(header.problem == NULL);
    return header;
}

/* Whether the bytes from start to stop are that text. */
static inline bool reads(file f, size_t start, size_t stop, const char *text) {
    return start <= stop && stop <= f.size && stop - start == strlen(text) && memcmp(f.bytes + start, text, stop - start) == 0;
}

static inline mp_npy accept(unsigned major, const char *text) {
    file f = make(major, text);
    mp_npy header = parse(f);
    drop(f);
    return header;
}

static inline void refuse_file(file f, const char *why) {
    char message[MOST_TEXT];
    file before = copy_of(f.bytes, f.size);
    mp_npy header = {.ndim = 77};
    mp_status status = mp_npy_parse(f.bytes, f.size, &header);
    if (status != MP_ERR_INVALID || header.problem == NULL || strcmp(header.problem, why) != 0) {
        size_t start = f.size < 12 ? f.size : f.bytes[6] == 1 ? 10 : 12;
        (void)snprintf(message, sizeof message, "%.*s\n   is not refused because \"%s\" but: %s", (int)(f.size - start),
                       f.bytes + start, why, status == MP_ERR_INVALID ? header.problem : "it is taken");
        check_fail(__FILE__, __LINE__, message);
    }
    CHECK_EQ(header.ndim, 77);
    CHECK(memcmp(before.bytes, f.bytes, f.size) == 0);
    drop(before);
    drop(f);
}

static inline void refuse(unsigned major, const char *text, const char *why) { refuse_file(make(major, text), why); }

#define LIST(...) \
    (const char *const[]) { __VA_ARGS__, NULL }

/* A header with that descr, or that shape. */
static inline const char *with_descr(const char *descr) {
    static char text[MOST_TEXT];
    (void)snprintf(text, sizeof text, "{'descr': %s, 'fortran_order': False, 'shape': (3, 4), }  \n", descr);
    return text;
}

static inline const char *with_shape(const char *shape) {
    static char text[MOST_TEXT];
    (void)snprintf(text, sizeof text, "{'descr': '<f8', 'fortran_order': False, 'shape': %s, }  \n", shape);
    return text;
}

/* ---- what must hold for any bytes ---- */

static inline bool is_same(const mp_npy *a, const mp_npy *b) {
    return a->major == b->major && a->minor == b->minor && a->data_offset == b->data_offset && a->descr_start == b->descr_start &&
           a->descr_stop == b->descr_stop && a->rows_start == b->rows_start && a->rows_stop == b->rows_stop &&
           a->dict_stop == b->dict_stop && a->fortran_order == b->fortran_order && a->ndim == b->ndim &&
           memcmp(a->shape, b->shape, a->ndim * sizeof a->shape[0]) == 0;
}

static inline void check_offsets(file f, const mp_npy *header) {
    char digits[32];
    CHECK_EQ(header->data_offset, f.size);
    CHECK_LT(header->descr_start, header->descr_stop);
    CHECK_LT(header->descr_stop, header->dict_stop);
    CHECK_LE(header->dict_stop, f.size);
    CHECK_EQ(f.bytes[header->dict_stop - 1], '}');
    CHECK_LE(header->ndim, MP_NPY_MAX_DIMS);
    for (size_t i = header->dict_stop; i < f.size; i++) CHECK(strchr(" \t\r\n", f.bytes[i]) != NULL && f.bytes[i] != '\0');
    if (header->ndim == 0) {
        CHECK_EQ(header->rows_start, header->rows_stop);
    } else {
        (void)snprintf(digits, sizeof digits, "%" PRIu64, header->shape[0]);
        CHECK(reads(f, header->rows_start, header->rows_stop, digits));
    }
}

/* Taken or refused, the result makes sense; true if taken. */
static inline bool try_bytes(const char *bytes, size_t size) {
    file f = copy_of(bytes, size);
    mp_npy header, again;
    bool taken = mp_npy_parse(f.bytes, f.size, &header) == MP_OK;
    if (taken) {
        check_offsets(f, &header);
        again = parse(f);
        CHECK(is_same(&header, &again));
    } else {
        CHECK(header.problem != NULL && header.problem[0] != '\0');
        CHECK(memcmp(f.bytes, bytes, size) == 0);
    }
    drop(f);
    return taken;
}

static const char *const too_many = "the number of elements does not fit in 64 bits";

#endif
