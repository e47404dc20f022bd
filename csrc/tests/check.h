/* check.h: a test program in one header.
 *
 *      static void two_and_two(void) { CHECK_EQ(2 + 2, 4); }
 *
 *      int main(int argc, char **argv) {
 *          check_begin(argc, argv);      // ./program NAME runs that test alone
 *          TEST(two_and_two);
 *          return check_end();
 *      }
 *
 * The first check that fails ends the program: a broken pool is not worth a second look. `check_seed` is named in the message, so that
 * a random test can be run again. Rejected: a framework, because nothing but a C compiler may be needed. */
#ifndef MP_TESTS_CHECK_H
#define MP_TESTS_CHECK_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef unsigned long long check_number;

static struct {
    const char *only;
    unsigned ran;
} check_state;

static uint64_t check_seed; /* 0: this test is not random */

/* Not exit(): other threads may still run, and what they see while the program is torn down is no finding. */
_Noreturn static inline void check_fail(const char *file, int line, const char *what) {
    (void)fflush(stdout);
    (void)fprintf(stderr, "%s:%d: %s", file, line, what);
    if (check_seed != 0) (void)fprintf(stderr, " (seed %" PRIu64 ")", check_seed);
    (void)fputc('\n', stderr);
    (void)fflush(stderr);
    abort(); /* a fuzzer keeps the input then */
}

static inline void check_compare(bool holds, check_number a, check_number b, const char *file, int line, const char *what) {
    char text[512];
    if (holds) return;
    (void)snprintf(text, sizeof text, "%s is false: %llu, %llu", what, a, b);
    check_fail(file, line, text);
}

#define CHECK(condition) ((condition) ? (void)0 : check_fail(__FILE__, __LINE__, #condition " is false"))
#define CHECK_COMPARE(a, op, b) \
    do { \
        check_number check_a = (check_number)(a), check_b = (check_number)(b); \
        check_compare(check_a op check_b, check_a, check_b, __FILE__, __LINE__, #a " " #op " " #b); \
    } while (0)
#define CHECK_EQ(a, b) CHECK_COMPARE(a, ==, b)
#define CHECK_LE(a, b) CHECK_COMPARE(a, <=, b)
#define CHECK_LT(a, b) CHECK_COMPARE(a, <, b)

static inline void check_begin(int argc, char **argv) { check_state.only = argc > 1 ? argv[1] : NULL; }

static inline void check_run(void (*test)(void), const char *name) {
    if (check_state.only != NULL && strcmp(check_state.only, name) != 0) return;
    check_seed = 0;
    (void)printf("   %s\n", name);
    (void)fflush(stdout);
    test();
    check_state.ran++;
}

#define TEST(name) check_run(name, #name)

static inline int check_end(void) {
    if (check_state.ran > 0) return 0;
    (void)fprintf(stderr, "no test named %s\n", check_state.only);
    return 1;
}

static inline uint64_t now_ns(void) {
    struct timespec now;
    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* Waits for a condition, not for a time: the deadline only ends a test that has failed. */
static inline bool eventually(bool (*condition)(void *context), void *context) {
    const struct timespec moment = {.tv_nsec = 200000};
    uint64_t deadline = now_ns() + UINT64_C(60000000000);
    while (!condition(context)) {
        if (now_ns() > deadline) return false;
        (void)nanosleep(&moment, NULL);
    }
    return true;
}

/* ---- random numbers: splitmix64, the same everywhere ---- */

typedef struct dice { uint64_t state; } dice;

static inline uint64_t roll(dice *from) {
    uint64_t z = (from->state += UINT64_C(0x9E3779B97F4A7C15));
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

/* 0 <= result < n; n > 0 */
static inline size_t roll_below(dice *from, size_t n) { return (size_t)(roll(from) % n); }

#endif
