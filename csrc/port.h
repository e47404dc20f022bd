/* port.h: the compiler. Attributes, checked arithmetic, bit tricks. Nothing here knows an operating system.
 *
 * Atomics are C11's own <stdatomic.h>; the rejected alternative, a wrapper per compiler, is code that nobody tests. */
#ifndef MP_PORT_H
#define MP_PORT_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h> /* also says which C library this is */

#if defined(__GNUC__)
#define MP_LIKELY(x) __builtin_expect(!!(x), 1)
#define MP_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define MP_NOINLINE __attribute__((noinline))
#else
#define MP_LIKELY(x) (x)
#define MP_UNLIKELY(x) (x)
#define MP_NOINLINE
#endif

/* A thread-local word without a function call. glibc keeps room for a few such words in libraries that are loaded late; other C
 * libraries do not promise that. */
#if defined(__GLIBC__) && defined(__GNUC__)
#define MP_TLS_FAST __attribute__((tls_model("initial-exec")))
#else
#define MP_TLS_FAST
#endif

#define MP_CACHE_LINE 64

/* *out = a + b; false (and *out unspecified) on overflow. */
static inline bool mp__add(size_t a, size_t b, size_t *out) {
    *out = a + b;
    return *out >= a;
}

/* *out = a * b; false on overflow. */
static inline bool mp__mul(size_t a, size_t b, size_t *out) {
#if defined(__GNUC__)
    return !__builtin_mul_overflow(a, b, out);
#else
    *out = a * b;
    return a == 0 || b <= SIZE_MAX / a;
#endif
}

/* Round up to a multiple of a power of two; false on overflow. */
static inline bool mp__align_up(size_t n, size_t alignment, size_t *out) {
    if (!mp__add(n, alignment - 1, out)) return false;
    *out &= ~(alignment - 1);
    return true;
}

static inline bool mp__is_power_of_two(size_t n) { return n != 0 && (n & (n - 1)) == 0; }

/* Position of the highest set bit. n > 0. */
static inline unsigned mp__log2(uint64_t n) {
#if defined(__GNUC__)
    return 63U - (unsigned)__builtin_clzll(n);
#else
    unsigned e = 0;
    while (n >>= 1) e++;
    return e;
#endif
}

/* Position of the lowest set bit. n > 0. */
static inline unsigned mp__lowest(uint64_t n) {
#if defined(__GNUC__)
    return (unsigned)__builtin_ctzll(n);
#else
    return mp__log2(n & (0 - n));
#endif
}

static inline void mp__pause(void) {
#if defined(__GNUC__) && (defined(__x86_64__) || defined(__i386__))
    __builtin_ia32_pause();
#elif defined(__GNUC__) && defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#endif
