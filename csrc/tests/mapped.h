/* mapped.h: files to map, in a folder of their own that is removed at the end.
 *
 *      rows are numbers of 8 bytes, `columns` in each; number i of a file is `mark(i)`, so that a byte in the wrong place shows */
#ifndef MP_TESTS_MAPPED_H
#define MP_TESTS_MAPPED_H

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "kit.h"

/* Sanitizers take most of the addresses, and make mlock do nothing. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

enum { HEADER = 128 };

static char folder[64];

static inline void folder_open(void) {
    (void)snprintf(folder, sizeof folder, "/tmp/mempool-XXXXXX");
    CHECK(mkdtemp(folder) != NULL);
}

static inline void folder_close(void) {
    DIR *entries = opendir(folder);
    CHECK(entries != NULL);
    for (const struct dirent *entry; (entry = readdir(entries)) != NULL;) {
        if (entry->d_name[0] != '.') (void)unlinkat(dirfd(entries), entry->d_name, 0);
    }
    CHECK_EQ(closedir(entries), 0);
    CHECK_EQ(rmdir(folder), 0);
}

/* A new, empty file that is open to read and write. It has no name any more unless one is given. */
static inline int fresh_file(const char *name) {
    static atomic_uint count;
    char path[160], number[16];
    (void)snprintf(number, sizeof number, "%u", atomic_fetch_add(&count, 1));
    (void)snprintf(path, sizeof path, "%s/%s", folder, name != NULL ? name : number);
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    CHECK(file >= 0);
    if (name == NULL) CHECK_EQ(unlink(path), 0);
    return file;
}

static inline uint64_t mark(uint64_t i) { return (i + 1) * UINT64_C(0x9E3779B97F4A7C15); }

static inline bool is_marked(const void *data, size_t from, size_t numbers) {
    for (size_t i = 0; i < numbers; i++) {
        uint64_t value; /* offsets may be odd */
        memcpy(&value, (const char *)data + 8 * i, 8);
        if (value != mark(from + i)) return false;
    }
    return true;
}

static inline void fill_marks(void *data, size_t from, size_t numbers) {
    for (size_t i = 0; i < numbers; i++) {
        uint64_t value = mark(from + i);
        memcpy((char *)data + 8 * i, &value, 8);
    }
}

static inline void put_marks(int file, uint64_t offset, size_t from, size_t numbers) {
    char *bytes = malloc(8 * numbers + 1);
    CHECK(bytes != NULL);
    fill_marks(bytes, from, numbers);
    CHECK_EQ(pwrite(file, bytes, 8 * numbers, (off_t)offset), (ssize_t)(8 * numbers));
    free(bytes);
}

static inline uint64_t file_size(int file) {
    struct stat found;
    CHECK_EQ(fstat(file, &found), 0);
    return (uint64_t)found.st_size;
}

static inline bool file_is_marked(int file, uint64_t offset, size_t from, size_t numbers) {
    char *bytes = malloc(8 * numbers + 1);
    CHECK(bytes != NULL);
    CHECK_EQ(pread(file, bytes, 8 * numbers, (off_t)offset), (ssize_t)(8 * numbers));
    bool marked = is_marked(bytes, from, numbers);
    free(bytes);
    return marked;
}

/* ---- headers ---- */

static inline void make_header(char out[HEADER], size_t rows, size_t columns) {
    memset(out, ' ', HEADER);
    memcpy(out, "\x93NUMPY\x01\x00\x76\x00", 10);
    int length = snprintf(out + 10, HEADER - 10, "{'descr': '<u8', 'fortran_order': False, 'shape': (%zu, %zu), }", rows, columns);
    out[10 + length] = ' ';
    out[HEADER - 1] = '\n';
}

/* Rows that the header in the file tells of; the file must have them. */
static inline size_t header_rows(int file) {
    char bytes[HEADER];
    mp_npy header;
    CHECK_EQ(pread(file, bytes, HEADER, 0), HEADER);
    CHECK_EQ(mp_npy_parse(bytes, HEADER, &header), MP_OK);
    CHECK_EQ(header.ndim, 2);
    CHECK_LE(HEADER + header.shape[0] * header.shape[1] * 8, file_size(file));
    return (size_t)header.shape[0];
}

/* ---- mappings ---- */

/* The mapping owns `file` afterwards: keep another descriptor by dup to look behind it. */
static inline mp_mapping *open_mapping(const mp_mapping_config *config) {
    mp_mapping *mapping = NULL;
    int error = 0;
    CHECK_EQ(mp_mapping_create(config, &mapping, NULL, &error), MP_OK);
    CHECK(mp_mapping_is_valid(mapping));
    return mapping;
}

static inline mp_mapping_config raw_file(int file, uint64_t offset, size_t rows) {
    return (mp_mapping_config){.file = file, .access = MP_ACCESS_WRITE, .offset = offset, .row_bytes = 8, .rows = rows};
}

/* A .npy file of so many rows, with its header in `header`. */
static inline mp_mapping_config npy_file(int file, char header[HEADER], size_t rows, size_t columns, size_t max_rows) {
    make_header(header, rows, columns);
    CHECK_EQ(pwrite(file, header, HEADER, 0), HEADER);
    put_marks(file, HEADER, 0, rows * columns);
    return (mp_mapping_config){.file = file,
                               .access = MP_ACCESS_WRITE,
                               .offset = HEADER,
                               .row_bytes = 8 * columns,
                               .rows = rows,
                               .max_rows = max_rows,
                               .header = header,
                               .header_size = HEADER};
}

static inline mp_mapping_config no_file(size_t row_bytes, size_t rows, size_t max_rows) {
    return (mp_mapping_config){.file = -1, .access = MP_ACCESS_WRITE, .row_bytes = row_bytes, .rows = rows, .max_rows = max_rows};
}

static inline mp_mapping_state look(mp_mapping *mapping) {
    mp_mapping_state state;
    mp_mapping_look(mapping, &state);
    CHECK(state.data != NULL);
    return state;
}

static inline char *view(mp_mapping *mapping) {
    mp_mapping_state state;
    CHECK_EQ(mp_mapping_view(mapping, &state), MP_OK);
    CHECK(state.data != NULL);
    return state.data;
}

static inline void append(mp_mapping *mapping, const void *data, size_t rows) {
    int error = 0;
    CHECK_EQ(mp_mapping_append(mapping, data, rows, NULL, &error), MP_OK);
    CHECK(mp_mapping_is_valid(mapping));
}

static inline void append_marks(mp_mapping *mapping, size_t from, size_t numbers, size_t columns) {
    char *bytes = malloc(8 * numbers + 1);
    CHECK(bytes != NULL);
    fill_marks(bytes, from, numbers);
    append(mapping, bytes, numbers / columns);
    free(bytes);
}

static inline void resize(mp_mapping *mapping, size_t rows) {
    int error = 0;
    CHECK_EQ(mp_mapping_resize(mapping, rows, NULL, &error), MP_OK);
    CHECK_EQ(look(mapping).rows, rows);
    CHECK(mp_mapping_is_valid(mapping));
}

static inline void flush(mp_mapping *mapping) {
    int error = 0;
    CHECK_EQ(mp_mapping_flush(mapping, 0, look(mapping).rows, true, &error), MP_OK);
}

static inline void close_mapping(mp_mapping *mapping) {
    int error = 0;
    CHECK_EQ(mp_mapping_close(mapping, &error), MP_OK);
    CHECK(look(mapping).closed && mp_mapping_is_valid(mapping));
}

static inline bool is_mapped(const void *address) {
    unsigned char in;
    char *page = (char *)((uintptr_t)address & ~(uintptr_t)(mp_page_size() - 1));
    return mincore(page, mp_page_size(), (void *)&in) == 0;
}

static inline bool is_open(int file) { return fcntl(file, F_GETFD) >= 0; }

/* Reads a byte under which another thread may be exchanging the page. That is what a view has to bear; for TSan it is a race. */
__attribute__((noinline, unused, no_sanitize("thread"))) static char peek(const void *at) { return *(const volatile char *)at; }

/* ---- children ---- */

/* A child that hangs is a failure, not a wait. */
static inline pid_t fork_child(void) {
    (void)fflush(stdout);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) (void)alarm(60);
    return child;
}

static inline int wait_for(pid_t child) {
    int status = 0;
    CHECK_EQ(waitpid(child, &status, 0), child);
    return status;
}

static inline void expect_success(pid_t child) {
    int status = wait_for(child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static inline void expect_death(pid_t child, int number) {
    int status = wait_for(child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == number);
}

static inline void run_apart(void (*test)(void)) {
    pid_t child = fork_child();
    if (child == 0) {
        test();
        _exit(0);
    }
    expect_success(child);
}

#endif
