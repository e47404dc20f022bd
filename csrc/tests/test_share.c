/* Files that several processes map: marks belong to open files, and end with them however that comes. */
#include "kit.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static int error;

/* A file without a name, and another way to open it. */
static int make_file(size_t size, char *path) {
    FILE *made = tmpfile();
    CHECK(made != NULL);
    int file = dup(fileno(made));
    CHECK(fclose(made) == 0 && ftruncate(file, (off_t)size) == 0);
    (void)snprintf(path, 64, "/proc/self/fd/%d", file);
    return file;
}

static mp_status mark(int file, uint64_t part, mp_share_as as) { return mp_share_mark(file, part, as, &error); }

static void all_see_what_one_writes(void) {
    char path[64], *one, *other;
    size_t size = 4 * mp_page_size();
    int file = make_file(size, path);
    CHECK_EQ(mp_share_map(file, size, (void **)&one, &error), MP_OK);
    CHECK_EQ(mp_share_map(file, size, (void **)&other, &error), MP_OK);
    CHECK(one != other && is_filled(one, 0, size));
    memset(one, 7, size);
    CHECK(is_filled(other, 7, size));
    mp_share_unmap(one, size);
    CHECK(is_filled(other, 7, size));
    mp_share_unmap(other, size);
    mp_share_close(file);
    CHECK_EQ(mp_share_map(file, size, (void **)&one, &error), MP_ERR_OS);
    CHECK(error != 0);
}

static void one_alone_or_many(void) {
    char path[64];
    int first = make_file(1, path), second = open(path, O_RDWR | O_CLOEXEC), third = open(path, O_RDWR | O_CLOEXEC);
    CHECK_EQ(mark(first, 5, MP_SHARE_MANY), MP_OK);
    CHECK_EQ(mark(second, 5, MP_SHARE_MANY), MP_OK);
    CHECK_EQ(mark(third, 5, MP_SHARE_ALONE), MP_ERR_BUSY);
    CHECK_EQ(mark(third, 4, MP_SHARE_ALONE), MP_OK); /* other parts are their own */
    CHECK_EQ(mark(third, 6, MP_SHARE_ALONE), MP_OK);
    CHECK_EQ(mark(first, 5, MP_SHARE_NONE), MP_OK);
    CHECK_EQ(mark(third, 5, MP_SHARE_ALONE), MP_ERR_BUSY);
    mp_share_close(second);
    CHECK_EQ(mark(third, 5, MP_SHARE_ALONE), MP_OK);
    CHECK_EQ(mark(first, 5, MP_SHARE_MANY), MP_ERR_BUSY);
    CHECK_EQ(mark(third, 5, MP_SHARE_NONE), MP_OK);
    CHECK_EQ(mark(first, 5, MP_SHARE_ALONE), MP_OK);
    mp_share_close(third);
    mp_share_close(first);
    CHECK_EQ(mark(first, 5, MP_SHARE_MANY), MP_ERR_OS);
}

/* The descriptor is closed: the mapping alone keeps the open file, and so the mark. */
static void a_mapping_keeps_the_mark(void) {
    char path[64];
    void *data;
    size_t size = mp_page_size();
    int first = make_file(size, path), second = open(path, O_RDWR | O_CLOEXEC);
    CHECK_EQ(mark(second, 0, MP_SHARE_MANY), MP_OK);
    CHECK_EQ(mp_share_map(second, size, &data, &error), MP_OK);
    mp_share_close(second);
    CHECK_EQ(mark(first, 0, MP_SHARE_ALONE), MP_ERR_BUSY);
    mp_share_unmap(data, size);
    CHECK_EQ(mark(first, 0, MP_SHARE_ALONE), MP_OK);
    mp_share_close(first);
}

static void who_is_killed_has_no_mark(void) {
    char path[64], byte;
    int ends[2], file = make_file(1, path);
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    if (child == 0) {
        int own = open(path, O_RDWR | O_CLOEXEC);
        byte = mark(own, 9, MP_SHARE_MANY) == MP_OK;
        if (write(ends[1], &byte, 1) == 1) (void)pause();
        _exit(1);
    }
    CHECK(child > 0 && read(ends[0], &byte, 1) == 1 && byte == 1);
    CHECK_EQ(mark(file, 9, MP_SHARE_ALONE), MP_ERR_BUSY);
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    CHECK_EQ(mark(file, 9, MP_SHARE_ALONE), MP_OK);
    mp_share_close(file);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);
}

enum { ROUNDS = 20000 };

static void words_count_for_all(void) {
    char path[64];
    uint64_t *words;
    size_t size = mp_page_size();
    int file = make_file(size, path);
    CHECK_EQ(mp_share_map(file, size, (void **)&words, &error), MP_OK);
    mp_word_set(&words[1], 3);
    pid_t child = fork();
    for (int i = 0; i < ROUNDS; i++) mp_word_add(&words[0]);
    for (int i = 0; i < ROUNDS; i++) mp_word_drop(&words[0]);
    for (int i = 0; i < ROUNDS; i++) mp_word_add(&words[2]);
    if (child == 0) _exit(0);
    CHECK(child > 0 && waitpid(child, NULL, 0) == child);
    CHECK_EQ(mp_word_get(&words[0]), 0);
    CHECK_EQ(mp_word_get(&words[2]), 2 * ROUNDS);
    mp_word_drop(&words[0]);
    CHECK_EQ(mp_word_get(&words[0]), 0);
    CHECK_EQ(mp_word_get(&words[1]), 3);
    mp_share_unmap(words, size);
    mp_share_close(file);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    if (mp_share_exists()) {
        TEST(all_see_what_one_writes);
        TEST(one_alone_or_many);
        TEST(a_mapping_keeps_the_mark);
        TEST(who_is_killed_has_no_mark);
        TEST(words_count_for_all);
    }
    return check_end();
}
