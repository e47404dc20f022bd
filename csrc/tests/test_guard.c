/* The guard: touching what a file lost gives zeros and a mark; all other faults go where they went before. */
#if !defined(_GNU_SOURCE)
#define _GNU_SOURCE
#endif
#include "mapped.h"

#include <setjmp.h>
#if defined(__linux__)
#include <sched.h>
#include <sys/mount.h>
#endif

static int error;

static void guard(void) { CHECK_EQ(mp_guard_truncation(&error), MP_OK); }

/* 100 000 numbers, of which the file still has 1000; `behind` is left open. */
static mp_mapping *lose(mp_access access, int *behind) {
    int file = fresh_file(NULL);
    *behind = dup(file);
    put_marks(file, 100, 0, 100000);
    mp_mapping_config config = raw_file(file, 100, 100000);
    config.access = access;
    config.max_rows = 1 << 20;
    mp_mapping *mapping = open_mapping(&config);
    (void)view(mapping);
    CHECK_EQ(ftruncate(*behind, 100 + 8000), 0);
    return mapping;
}

/* A page that faults when it is touched, and is nobody's; in the place of what is mapped at `at` unless that is NULL. */
static char *trap_at(void *at) {
    int file = fresh_file(NULL);
    char *trap = mmap(at, mp_page_size(), PROT_READ | PROT_WRITE, MAP_SHARED | (at != NULL ? MAP_FIXED : 0), file, 0);
    CHECK(trap != MAP_FAILED && close(file) == 0);
    return trap;
}

/* ---- what it is for ---- */

static void set_default(void) {
    struct sigaction plainly = {.sa_handler = SIG_DFL};
    CHECK_EQ(sigaction(SIGBUS, &plainly, NULL), 0); /* sanitizers have handlers of their own */
}

static void without_it_a_touch_is_fatal(void) {
    pid_t child = fork_child();
    if (child == 0) {
        int behind;
        set_default();
        mp_mapping *mapping = lose(MP_ACCESS_READ, &behind);
        (void)peek((char *)look(mapping).data + 80000);
        _exit(0);
    }
    expect_death(child, SIGBUS);
}

static void in_guarded_mappings(void) {
    guard();
    for (unsigned access = MP_ACCESS_READ; access <= MP_ACCESS_COPY; access++) {
        int behind;
        mp_mapping *mapping = lose((mp_access)access, &behind);
        char *data = look(mapping).data;
        CHECK(!look(mapping).lost);
        errno = 77;
        CHECK(is_filled(data + 400000, 0, 1000)); /* first in the middle, then before and behind */
        CHECK_EQ(errno, 77);
        CHECK(look(mapping).lost);
        CHECK(is_marked(data, 0, 1000) && is_filled(data + 8000, 0, 792000));
        if (access != MP_ACCESS_READ) memset(data + 8000, 1, 792000);
        CHECK_EQ(ftruncate(behind, 1000000), 0);
        CHECK_EQ(mp_mapping_check(mapping), MP_ERR_LOST); /* the mark stays, though the file is long enough again */
        mp_mapping_unview(mapping);
        mp_mapping_destroy(mapping);
        CHECK_EQ(close(behind), 0);
    }
}

static void with_it_lost_pages_read_zeros(void) { run_apart(in_guarded_mappings); }

/* One fault lays zero pages over all that is lost: what is then written there stays. */
static void one_fault_is_enough(void) {
    int behind;
    guard();
    mp_mapping *mapping = lose(MP_ACCESS_WRITE, &behind);
    char *data = look(mapping).data;
    data[400000] = 5;
    for (size_t at = 9000; at < 799999; at += 5000) data[at] = 6;
    for (size_t at = 9000; at < 799999; at += 5000) CHECK_EQ(data[at], 6);
    CHECK_EQ(data[400000], 5);
    CHECK_EQ(mp_mapping_check(mapping), MP_ERR_LOST);
    mp_mapping_unview(mapping);
    mp_mapping_destroy(mapping);
}

static void a_fault_lays_pages_once(void) { run_apart(one_fault_is_enough); }

static void of_a_grown_file(void) {
    guard();
    mp_mapping_config config = raw_file(fresh_file(NULL), 100, 0);
    config.max_rows = 1 << 20;
    int behind = dup(config.file);
    CHECK_EQ(ftruncate(behind, 100), 0);
    mp_mapping *mapping = open_mapping(&config);
    char *data = view(mapping);
    append_marks(mapping, 0, 10000, 1);
    resize(mapping, 50000);
    resize(mapping, 20000);
    CHECK_EQ(ftruncate(behind, 100), 0);
    CHECK(is_filled(data + 4096, 0, 400000 - 4096) && look(mapping).lost);
    mp_mapping_unview(mapping);
    mp_mapping_destroy(mapping);
    CHECK_EQ(close(behind), 0);
}

static void rows_that_came_later_are_guarded_too(void) { run_apart(of_a_grown_file); }

static void after_close(void) {
    int behind;
    guard();
    mp_mapping *mapping = lose(MP_ACCESS_WRITE, &behind);
    char *data = look(mapping).data;
    close_mapping(mapping);
    CHECK(is_marked(data, 0, 1000) && !look(mapping).lost);
    CHECK(is_filled(data + 8000, 0, 792000) && look(mapping).lost);
    mp_mapping_unview(mapping);
    CHECK(look(mapping).lost);
    mp_mapping_destroy(mapping);
}

static void views_of_closed_mappings_are_guarded_too(void) { run_apart(after_close); }

static void with_a_stranger_in_its_place(void) {
    int behind;
    guard();
    mp_mapping *mapping = lose(MP_ACCESS_WRITE, &behind);
    char *data = look(mapping).data;
    int number = behind - 1, stranger = fresh_file(NULL); /* the mapping's descriptor now is of another, empty file */
    CHECK_EQ(file_size(number), file_size(behind));
    CHECK_EQ(dup2(stranger, number), number);
    CHECK_EQ(ftruncate(behind, 100 + 800000), 0);
    put_marks(behind, 100, 0, 100000);
    CHECK_EQ(ftruncate(behind, 100 + 400000), 0);
    (void)peek(data + 500000);
    CHECK(is_marked(data, 0, 50000)); /* its length was not taken for ours */
    mp_mapping_unview(mapping);
}

static void a_descriptor_that_changed_is_noticed(void) { run_apart(with_a_stranger_in_its_place); }

static void many(void) {
    enum { MANY = 200 };
    mp_mapping *mappings[MANY];
    guard();
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < MANY; i++) {
            int behind;
            mappings[i] = lose(MP_ACCESS_COPY, &behind);
            CHECK_EQ(close(behind), 0);
            if (i % 3 == round) close_mapping(mappings[i]);
        }
        for (unsigned i = MANY; i-- > 0;) {
            CHECK(is_filled((char *)look(mappings[i]).data + 700000, 0, 10));
            for (unsigned j = 0; j < MANY; j += 37) CHECK_EQ(look(mappings[j]).lost, j >= i);
        }
        for (unsigned i = 0; i < MANY; i++) {
            mp_mapping_unview(mappings[i]);
            mp_mapping_destroy(mappings[i]);
        }
    }
}

static void each_mapping_is_told_apart(void) { run_apart(many); }

static void touch_all(void *context, unsigned number) {
    const char *data = look(context).data;
    for (size_t at = number * 64; at < 800000; at += 256) CHECK_EQ(peek(data + at), 0);
}

static void among_threads(void) {
    guard();
    for (unsigned round = 0; round < 20; round++) {
        int behind;
        mp_mapping *mapping = lose(MP_ACCESS_WRITE, &behind);
        CHECK_EQ(ftruncate(behind, 0), 0);
        crew_run(4, touch_all, mapping);
        CHECK(look(mapping).lost);
        mp_mapping_unview(mapping);
        mp_mapping_destroy(mapping);
        CHECK_EQ(close(behind), 0);
    }
}

static void threads_may_fault_at_once(void) { run_apart(among_threads); }

#if defined(__linux__)
static void on_a_full_disk(void) {
    char place[160];
    (void)snprintf(place, sizeof place, "%s/disk", folder);
    CHECK_EQ(mkdir(place, 0700), 0);
    bool mounted = unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
                   mount("tmpfs", place, "tmpfs", 0, "size=64k") == 0;
    if (!mounted) {
        (void)printf("      (only root can have a small disk)\n");
        CHECK_EQ(rmdir(place), 0);
        return;
    }
    guard();
    int file = fresh_file("disk/file");
    CHECK_EQ(ftruncate(file, 1 << 20), 0);
    mp_mapping_config config = raw_file(file, 0, 1 << 17);
    config.max_rows = 1 << 18;
    mp_mapping *mapping = open_mapping(&config);
    char *data = view(mapping), row[8] = {0};
    for (size_t at = 0; at < 1 << 20; at += 4096) data[at] = 7;
    CHECK(look(mapping).lost);
    CHECK(data[0] == 7 && data[4096] == 7 && is_filled(data + 1, 0, 4095));
    mp_mapping_unview(mapping);
    mp_mapping_destroy(mapping);
    file = fresh_file("disk/file");
    config = raw_file(file, 0, 0);
    config.max_rows = 1 << 18;
    mapping = open_mapping(&config);
    mp_status status = MP_OK;
    while (status == MP_OK) status = mp_mapping_append(mapping, row, 1, NULL, &error);
    CHECK(status == MP_ERR_OS && error == ENOSPC);
    size_t rows = look(mapping).rows;
    CHECK(file_size(file) == rows * 8 && rows >= 7000 && mp_mapping_check(mapping) == MP_OK);
    mp_mapping_destroy(mapping);
    CHECK_EQ(umount2(place, MNT_DETACH), 0);
    CHECK_EQ(rmdir(place), 0);
}

static void a_page_that_the_disk_has_no_room_for(void) { run_apart(on_a_full_disk); }
#endif

/* ---- what it leaves alone ---- */

static void overrun(void) {
    mp_mapping_config config = raw_file(fresh_file(NULL), 0, 100);
    put_marks(config.file, 0, 0, 100);
    config.max_rows = 100000;
    set_default();
    guard();
    mp_mapping *mapping = open_mapping(&config);
    (void)peek(view(mapping) + 10 * mp_page_size()); /* addresses that the mapping has, but no row */
}

static void by_kill(void) {
    set_default();
    guard();
    (void)raise(SIGBUS);
}

static void by_a_fault(void) {
    set_default();
    guard();
    (void)peek(trap_at(NULL));
}

static void by_a_fault_that_is_ignored(void) {
    CHECK(signal(SIGBUS, SIG_IGN) != SIG_ERR);
    guard();
    (void)raise(SIGBUS); /* nothing happens */
    (void)peek(trap_at(NULL));
}

static void by_a_fault_after_unview(void) {
    int behind;
    set_default();
    guard();
    mp_mapping *mapping = lose(MP_ACCESS_WRITE, &behind);
    char *page = (char *)((uintptr_t)look(mapping).data & ~(uintptr_t)(mp_page_size() - 1));
    close_mapping(mapping);
    mp_mapping_unview(mapping);
    (void)peek(trap_at(page)); /* somebody else is now where ours was */
}

static void who_would_have_died_dies(void) {
    void (*const ways[])(void) = {overrun, by_kill, by_a_fault, by_a_fault_that_is_ignored, by_a_fault_after_unview};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        pid_t child = fork_child();
        if (child == 0) {
            ways[i]();
            _exit(0);
        }
        expect_death(child, SIGBUS);
    }
}

static struct {
    sigjmp_buf back;
    volatile sig_atomic_t calls;
    int number, code;
    void *address;
    bool blocked_usr1, blocked_bus;
} seen;

static void note(int number) {
    sigset_t mask;
    seen.number = number;
    seen.calls = seen.calls + 1;
    (void)pthread_sigmask(SIG_BLOCK, NULL, &mask);
    seen.blocked_usr1 = sigismember(&mask, SIGUSR1) == 1;
    seen.blocked_bus = sigismember(&mask, SIGBUS) == 1;
}

static void note_and_jump(int number, siginfo_t *info, void *context) {
    note(number);
    CHECK(context != NULL);
    seen.code = info->si_code;
    seen.address = info->si_addr;
    siglongjmp(seen.back, 1);
}

static void install(void (*plainly)(int), void (*fully)(int, siginfo_t *, void *), int flags, bool mask_usr1) {
    struct sigaction action = {.sa_flags = flags};
    (void)sigemptyset(&action.sa_mask);
    if (mask_usr1) (void)sigaddset(&action.sa_mask, SIGUSR1);
    if (fully != NULL) action.sa_sigaction = fully;
    else action.sa_handler = plainly;
    CHECK_EQ(sigaction(SIGBUS, &action, NULL), 0);
}

static void with_a_handler_before(void) {
    install(NULL, note_and_jump, SA_SIGINFO, true);
    guard();
    guard();
    char *trap = trap_at(NULL);
    for (int i = 1; i <= 3; i++) {
        if (sigsetjmp(seen.back, 1) == 0) {
            (void)peek(trap + 5);
            CHECK(false);
        }
        CHECK(seen.calls == i && seen.number == SIGBUS && seen.code == BUS_ADRERR && seen.address == trap + 5);
        CHECK(seen.blocked_usr1 && seen.blocked_bus);
    }
    in_guarded_mappings();
    CHECK_EQ(seen.calls, 3);
}

static void with_a_plain_handler_before(void) {
    sigset_t mask;
    install(note, NULL, SA_NODEFER, false);
    guard();
    errno = 78;
    CHECK_EQ(raise(SIGBUS), 0);
    CHECK(seen.calls == 1 && !seen.blocked_usr1 && !seen.blocked_bus);
    install(note, NULL, 0, true); /* the same, put back: we may go before it again */
    guard();
    CHECK_EQ(raise(SIGBUS), 0);
    CHECK(seen.calls == 2 && seen.blocked_usr1 && seen.blocked_bus);
    (void)pthread_sigmask(SIG_BLOCK, NULL, &mask);
    CHECK(!sigismember(&mask, SIGUSR1) && !sigismember(&mask, SIGBUS));
    in_guarded_mappings();
    CHECK_EQ(seen.calls, 2);
}

static struct sigaction older;

static void note_and_ask_older(int number, siginfo_t *info, void *context) {
    note(number);
    if (seen.calls > 10) _exit(9);
    older.sa_sigaction(number, info, context);
}

static void with_a_handler_after(void) {
    install(note, NULL, 0, false);
    guard();
    CHECK_EQ(sigaction(SIGBUS, NULL, &older), 0);
    install(NULL, note_and_ask_older, SA_SIGINFO, false);
    guard(); /* it knows us: we do not go before it, or each would call the other for ever */
    CHECK_EQ(raise(SIGBUS), 0);
    CHECK_EQ(seen.calls, 2);
    seen.calls = 0;
    in_guarded_mappings();
    CHECK_LT(0, seen.calls);
    set_default();
    guard(); /* whoever came after us is gone, and we with it: once more */
    seen.calls = 0;
    in_guarded_mappings();
    CHECK_EQ(seen.calls, 0);
}

static void once_only(void) {
    install(note, NULL, (int)SA_RESETHAND, false);
    guard();
    CHECK_EQ(raise(SIGBUS), 0);
    CHECK_EQ(seen.calls, 1);
    in_guarded_mappings();
    (void)raise(SIGBUS);
}

static void handlers_are_called_as_before(void) {
    run_apart(with_a_handler_before);
    run_apart(with_a_plain_handler_before);
    run_apart(with_a_handler_after);
    pid_t child = fork_child();
    if (child == 0) {
        once_only();
        _exit(0);
    }
    expect_death(child, SIGBUS);
}

int main(int argc, char **argv) {
    check_begin(argc, argv);
    folder_open();
    TEST(without_it_a_touch_is_fatal);
    TEST(with_it_lost_pages_read_zeros);
    TEST(a_fault_lays_pages_once);
    TEST(rows_that_came_later_are_guarded_too);
    TEST(views_of_closed_mappings_are_guarded_too);
    TEST(a_descriptor_that_changed_is_noticed);
    TEST(each_mapping_is_told_apart);
    TEST(threads_may_fault_at_once);
#if defined(__linux__)
    TEST(a_page_that_the_disk_has_no_room_for);
#endif
    TEST(who_would_have_died_dies);
    TEST(handlers_are_called_as_before);
    folder_close();
    return check_end();
}
