/* os_posix_file.c: files and shared mappings on Linux, macOS and the BSDs. See os.h for what each function promises.
 *
 *      SIGBUS ──> on_bus ── a page was missing? ask the handler ── true ──> return: the access is made again
 *                             │
 *                             └── no, not ours, or sent by kill ──> whoever had the signal before, as the kernel would have called him
 *
 * The handler uses nothing but atomics and plain system calls (fstat, mmap, sigaction), and keeps errno. `before` is written only
 * while our handler is not the one installed.
 *
 * Rejected: signalfd or a thread that waits for the signal (a fault is for the thread that made it, at once); SIGSEGV as well (a page
 * of a file that is missing is always SIGBUS, and SIGSEGV belongs to crash reporters). */
#if !defined(_WIN32)

#define _FILE_OFFSET_BITS 64 /* C libraries of 32 bits need it said */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "os.h"

#if !defined(MAP_ANONYMOUS)
#define MAP_ANONYMOUS MAP_ANON
#endif
#if !defined(MAP_NORESERVE)
#define MAP_NORESERVE 0
#endif
#if defined(__linux__) && !defined(MADV_POPULATE_READ)
#define MADV_POPULATE_READ 22 /* Linux 5.14; older C libraries do not name it */
#endif

_Static_assert(sizeof(off_t) >= 8, "offsets in files need 64 bits");

enum { RESIDENT_PIECE = 1024 /* pages */ };

static mp_status failed(int *error) {
    *error = errno;
    return MP_ERR_OS;
}

/* ---- files ---- */

size_t mp__os_file_granularity(void) { return mp__os_page_size(); }

mp_status mp__os_file_stat(int file, mp__file_stat *out, int *error) {
    struct stat found;
    if (fstat(file, &found) != 0) return failed(error);
    if (!S_ISREG(found.st_mode)) return MP_ERR_INVALID;
    out->size = (uint64_t)found.st_size;
    out->device = (uint64_t)found.st_dev;
    out->node = (uint64_t)found.st_ino;
    return MP_OK;
}

mp_status mp__os_file_read(int file, uint64_t at, void *data, size_t *size, int *error) {
    size_t done = 0;
    while (done < *size) {
        ssize_t got = pread(file, (char *)data + done, *size - done, (off_t)(at + done));
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return failed(error);
        if (got == 0) break;
        done += (size_t)got;
    }
    *size = done;
    return MP_OK;
}

mp_status mp__os_file_write(int file, uint64_t at, const void *data, size_t size, int *error) {
    const char *bytes = data;
    for (size_t done = 0; done < size;) {
        size_t piece = size - done < ((size_t)1 << 30) ? size - done : (size_t)1 << 30; /* macOS refuses 2 GiB and more */
        ssize_t wrote = pwrite(file, bytes + done, piece, (off_t)(at + done));
        if (wrote > 0) {
            done += (size_t)wrote;
        } else if (wrote == 0 || errno != EINTR) {
            if (wrote == 0) errno = ENOSPC;
            return failed(error);
        }
    }
    return MP_OK;
}

/* One decision about where on the disk instead of one a page. */
void mp__os_file_set_aside(int file, uint64_t at, size_t size) {
#if defined(__linux__) && defined(FALLOC_FL_KEEP_SIZE)
    (void)fallocate(file, FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)size); /* not every file system can */
#else
    (void)file;
    (void)at;
    (void)size;
#endif
}

bool mp__os_file_make_hole(int file, uint64_t at, uint64_t size) {
#if defined(__linux__) && defined(FALLOC_FL_PUNCH_HOLE)
    return fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)at, (off_t)size) == 0;
#else
    (void)file;
    (void)at;
    (void)size;
    return false;
#endif
}

mp_status mp__os_file_set_size(int file, uint64_t size, int *error) {
    while (ftruncate(file, (off_t)size) != 0) {
        if (errno != EINTR) return failed(error);
    }
    return MP_OK;
}

static int sync_once(int file) {
#if defined(__APPLE__)
    if (fcntl(file, F_FULLFSYNC) == 0) return 0; /* fsync leaves it in the drive's cache; not every file system has better */
    return fsync(file);
#elif defined(__linux__)
    return fdatasync(file);
#else
    return fsync(file);
#endif
}

mp_status mp__os_file_sync(int file, int *error) {
    while (sync_once(file) != 0) {
        if (errno != EINTR) return failed(error);
    }
    return MP_OK;
}

/* The descriptor is gone whatever close says; after EINTR another thread may already have its number. */
mp_status mp__os_file_close(int file, int *error) { return close(file) == 0 || errno == EINTR ? MP_OK : failed(error); }

#if defined(F_OFD_SETLK)
bool mp__os_file_can_mark(void) { return true; }

/* A lock of one byte, which need not be in the file. */
mp_status mp__os_file_mark(int file, uint64_t part, mp_share_as as, int *error) {
    static const short kinds[] = {F_UNLCK, F_RDLCK, F_WRLCK};
    struct flock lock = {.l_type = kinds[as], .l_whence = SEEK_SET, .l_start = (off_t)part, .l_len = 1};
    if (fcntl(file, F_OFD_SETLK, &lock) == 0) return MP_OK;
    return errno == EAGAIN || errno == EACCES ? MP_ERR_BUSY : failed(error);
}
#else
bool mp__os_file_can_mark(void) { return false; }

mp_status mp__os_file_mark(int file, uint64_t part, mp_share_as as, int *error) {
    (void)file;
    (void)part;
    (void)as;
    *error = ENOSYS;
    return MP_ERR_OS;
}
#endif

/* ---- mappings ---- */

static mp_status map_file(int file, uint64_t offset, size_t size, mp_access access, void *at, void **out, int *error) {
    int protection = access == MP_ACCESS_READ ? PROT_READ : PROT_READ | PROT_WRITE;
    int flags = access == MP_ACCESS_COPY ? MAP_PRIVATE | MAP_NORESERVE : MAP_SHARED;
    void *ptr = mmap(at, size, protection, flags | (at != NULL ? MAP_FIXED : 0), file, (off_t)offset);
    if (ptr == MAP_FAILED) {
        (void)failed(error);
        return *error == ENOMEM ? MP_ERR_NOMEM : MP_ERR_OS;
    }
    *out = ptr;
    return MP_OK;
}

mp_status mp__os_file_map(int file, uint64_t offset, size_t size, mp_access access, void **out, int *error) {
    return map_file(file, offset, size, access, NULL, out, error);
}

mp_status mp__os_file_map_over(int file, uint64_t offset, size_t size, void *ptr, int *error) {
    void *same;
    return map_file(file, offset, size, MP_ACCESS_WRITE, ptr, &same, error);
}

mp_status mp__os_file_unmap(void *ptr, size_t size) { return mp__os_unmap(ptr, size); }

/* Linux writes the range through to the disk. Elsewhere it may stay in the drive's cache, so the file is synced too. */
mp_status mp__os_file_flush(int file, void *ptr, size_t size, bool wait, int *error) {
    if (msync(ptr, size, wait ? MS_SYNC : MS_ASYNC) != 0) return failed(error);
#if defined(__linux__)
    (void)file;
    return MP_OK;
#else
    return wait ? mp__os_file_sync(file, error) : MP_OK;
#endif
}

mp_status mp__os_blank(void *ptr, size_t size, bool writable, int *error) {
    int protection = writable ? PROT_READ | PROT_WRITE : PROT_READ;
    void *same = mmap(ptr, size, protection, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (same != MAP_FAILED) return MP_OK;
    (void)failed(error);
    return *error == ENOMEM ? MP_ERR_NOMEM : MP_ERR_OS;
}

void mp__os_zero(void *ptr, size_t size, bool shared) {
#if defined(__linux__)
    int advice = shared ? MADV_REMOVE : MADV_DONTNEED;
    if (madvise(ptr, size, advice) == 0) return;
    if (munlock(ptr, size) == 0 && madvise(ptr, size, advice) == 0) return; /* refused while it is locked in memory */
#else
    (void)shared;
#endif
    memset(ptr, 0, size);
}

/* ---- advice ---- */

static int advice_number(mp_advice advice) {
    switch (advice) {
    case MP_ADVICE_NORMAL: return MADV_NORMAL;
    case MP_ADVICE_SEQUENTIAL: return MADV_SEQUENTIAL;
    case MP_ADVICE_RANDOM: return MADV_RANDOM;
    case MP_ADVICE_WILLNEED: return MADV_WILLNEED;
    case MP_ADVICE_DONTNEED: return MADV_DONTNEED;
#if defined(MADV_HUGEPAGE)
    case MP_ADVICE_HUGEPAGE: return MADV_HUGEPAGE;
    case MP_ADVICE_NOHUGEPAGE: return MADV_NOHUGEPAGE;
#endif
    default: return -1;
    }
}

mp_status mp__os_advise(void *ptr, size_t size, mp_advice advice, int *error) {
    int number = advice_number(advice);
    if (number < 0) {
        *error = ENOTSUP;
        return MP_ERR_OS;
    }
    return madvise(ptr, size, number) == 0 ? MP_OK : failed(error);
}

mp_status mp__os_prefetch(void *ptr, size_t size, int *error) {
    return madvise(ptr, size, MADV_WILLNEED) == 0 ? MP_OK : failed(error);
}

void mp__os_populate(void *ptr, size_t size) {
#if defined(MADV_POPULATE_READ)
    if (madvise(ptr, size, MADV_POPULATE_READ) == 0) return;
#endif
    (void)madvise(ptr, size, MADV_WILLNEED);
}

mp_status mp__os_resident(void *ptr, size_t size, size_t *pages, int *error) {
    unsigned char in[RESIDENT_PIECE];
    size_t page = mp__os_page_size(), found = 0, piece;
    for (size_t at = 0; at < size; at += piece) {
        piece = size - at < RESIDENT_PIECE * page ? size - at : RESIDENT_PIECE * page;
        if (mincore((char *)ptr + at, piece, (void *)in) != 0) return failed(error);
        for (size_t i = 0; i < piece / page; i++) found += in[i] & 1;
    }
    *pages = found;
    return MP_OK;
}

mp_status mp__os_lock_pages(void *ptr, size_t size, bool lock, int *error) {
    return (lock ? mlock(ptr, size) : munlock(ptr, size)) == 0 ? MP_OK : failed(error);
}

/* ---- faults ---- */

static bool (*ask)(void *address);
static struct sigaction before;
static atomic_int installing;

static void die_of(int number, bool again) {
    struct sigaction fatal = {.sa_handler = SIG_DFL};
    (void)sigemptyset(&fatal.sa_mask);
    (void)sigaction(number, &fatal, NULL);
    if (again) (void)raise(number); /* waits until the handler returns */
}

/* As the kernel would have called it: with its mask, and once only if it asked for that. */
static void call_before(int number, siginfo_t *info, void *context) {
    struct sigaction other = before;
    sigset_t mask;
    if (other.sa_flags & (int)SA_RESETHAND) before.sa_handler = SIG_DFL;
    (void)pthread_sigmask(SIG_BLOCK, &other.sa_mask, &mask);
    if (other.sa_flags & SA_NODEFER) {
        sigset_t own;
        (void)sigemptyset(&own);
        (void)sigaddset(&own, number);
        (void)pthread_sigmask(SIG_UNBLOCK, &own, NULL);
    }
    if (other.sa_flags & SA_SIGINFO) other.sa_sigaction(number, info, context);
    else other.sa_handler(number);
    (void)pthread_sigmask(SIG_SETMASK, &mask, NULL);
}

/* Somebody sent it, or it tells of a page that nobody has touched yet: the access will not be made again. */
static bool is_sent(const siginfo_t *info) {
#if defined(BUS_MCEERR_AO)
    if (info->si_code == BUS_MCEERR_AO) return true;
#endif
    return info->si_code <= 0;
}

static void chain(int number, siginfo_t *info, void *context) {
    bool ignored = !(before.sa_flags & SA_SIGINFO) && before.sa_handler == SIG_IGN;
    bool fatal = !(before.sa_flags & SA_SIGINFO) && before.sa_handler == SIG_DFL;
    if (!ignored && !fatal) call_before(number, info, context);
    else if (fatal || !is_sent(info)) die_of(number, is_sent(info)); /* a fault cannot be ignored */
}

static void on_bus(int number, siginfo_t *info, void *context) {
    int saved = errno;
    bool missing = !is_sent(info) && info->si_code != BUS_ADRALN;
    if (!missing || !ask(info->si_addr)) chain(number, info, context);
    errno = saved;
}

static bool is_plain(const struct sigaction *action, void (*handler)(int)) {
    return !(action->sa_flags & SA_SIGINFO) && action->sa_handler == handler;
}

/* Whether we may put ourselves in front of what is installed now. Who came after us may call us in turn, and must not be called back;
 * it asks us anyway then. Who stood there before us, and was put back, does not know of us. */
static bool may_precede(const struct sigaction *now) {
    if (ask == NULL || is_plain(now, SIG_DFL) || is_plain(now, SIG_IGN)) return true;
    if ((now->sa_flags & SA_SIGINFO) != (before.sa_flags & SA_SIGINFO)) return false;
    return now->sa_flags & SA_SIGINFO ? now->sa_sigaction == before.sa_sigaction : now->sa_handler == before.sa_handler;
}

static mp_status install(bool (*handler)(void *address), int *error) {
    struct sigaction now, ours = {.sa_sigaction = on_bus};
    if (sigaction(SIGBUS, NULL, &now) != 0) return failed(error);
    if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_bus) return MP_OK;
    if (!may_precede(&now)) return MP_OK;
    before = now;
    ask = handler;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | (now.sa_flags & SA_RESTART);
    (void)sigemptyset(&ours.sa_mask);
    return sigaction(SIGBUS, &ours, NULL) == 0 ? MP_OK : failed(error);
}

mp_status mp__os_guard_faults(bool (*handler)(void *address), int *error) {
    while (atomic_exchange(&installing, 1)) mp__os_yield();
    mp_status status = install(handler, error);
    atomic_store(&installing, 0);
    return status;
}

#endif
