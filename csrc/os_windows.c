/* os_windows.c: Windows. See os.h for what each function promises. */
#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "os.h"

enum { HUGE_PAGE = 2 << 20, ALIGN_TRIES = 16, THREAD_STACK = 256 << 10 };

size_t mp__os_page_size(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
}

size_t mp__os_huge_size(void) { return HUGE_PAGE; }

size_t mp__os_physical_memory(void) {
    MEMORYSTATUSEX state = {.dwLength = sizeof state};
    return GlobalMemoryStatusEx(&state) ? (size_t)state.ullTotalPhys : (size_t)8 << 30;
}

size_t mp__os_address_room(void) { return SIZE_MAX; }

/* Windows cannot cut the ends off a mapping: find a place by reserving too much, let it go, and ask for the aligned part. Another
 * thread may take the place in between, so try again. */
static mp_status map_aligned(size_t size, size_t alignment, DWORD kind, DWORD protection, void **out) {
    size_t span;
    if (!mp__add(size, alignment, &span)) return MP_ERR_NOMEM;
    for (int i = 0; i < ALIGN_TRIES; i++) {
        void *ptr = VirtualAlloc(NULL, size, kind, protection);
        if (ptr == NULL) return MP_ERR_NOMEM;
        if (((uintptr_t)ptr & (alignment - 1)) == 0) {
            *out = ptr;
            return MP_OK;
        }
        (void)VirtualFree(ptr, 0, MEM_RELEASE);
        char *place = VirtualAlloc(NULL, span, MEM_RESERVE, PAGE_NOACCESS);
        if (place == NULL) return MP_ERR_NOMEM;
        char *start = place + ((alignment - ((uintptr_t)place & (alignment - 1))) & (alignment - 1));
        (void)VirtualFree(place, 0, MEM_RELEASE);
        ptr = VirtualAlloc(start, size, kind, protection);
        if (ptr != NULL) {
            *out = ptr;
            return MP_OK;
        }
    }
    return MP_ERR_NOMEM;
}

mp_status mp__os_map(size_t size, size_t alignment, bool huge, void **out) {
    (void)huge; /* large pages need a privilege that programs rarely have */
    return map_aligned(size, alignment, MEM_RESERVE | MEM_COMMIT, PAGE_READWRITE, out);
}

void mp__os_advise_huge(void *ptr, size_t size) {
    (void)ptr;
    (void)size;
}

mp_status mp__os_unmap(void *ptr, size_t size) {
    (void)size;
    return VirtualFree(ptr, 0, MEM_RELEASE) ? MP_OK : MP_ERR_NOMEM;
}

mp_status mp__os_reserve(size_t size, size_t alignment, bool shared, void **out) {
    (void)shared; /* there is no fork */
    return map_aligned(size, alignment, MEM_RESERVE, PAGE_NOACCESS, out);
}

mp_status mp__os_protect_rw(void *ptr, size_t size) { return mp__os_commit(ptr, size); }

mp_status mp__os_decommit(void *ptr, size_t size) { return VirtualFree(ptr, size, MEM_DECOMMIT) ? MP_OK : MP_ERR_NOMEM; }

mp_status mp__os_commit(void *ptr, size_t size) {
    return VirtualAlloc(ptr, size, MEM_COMMIT, PAGE_READWRITE) != NULL ? MP_OK : MP_ERR_NOMEM;
}

void mp__os_prefault(void *ptr, size_t size) {
    volatile char *bytes = ptr;
    size_t page = mp__os_page_size();
    for (size_t at = 0; at < size; at += page) bytes[at] = bytes[at];
}

void *mp__os_alloc_aligned(size_t size, size_t alignment) {
    void *ptr = _aligned_malloc(size, alignment);
    return ptr == NULL ? NULL : memset(ptr, 0, size);
}

void mp__os_free_aligned(void *ptr) { _aligned_free(ptr); }

uint64_t mp__os_now(void) { return (uint64_t)GetTickCount64() * UINT64_C(1000000); }

void mp__os_yield(void) { (void)SwitchToThread(); }

_Noreturn void mp__os_abort(const char *message) {
    (void)fprintf(stderr, "mempool: memory is corrupt: %s\n", message);
    abort();
}

void mp__mutex_init(mp__mutex *mutex) { InitializeSRWLock((PSRWLOCK)&mutex->srw); }
void mp__mutex_destroy(mp__mutex *mutex) { (void)mutex; }
void mp__mutex_lock(mp__mutex *mutex) { AcquireSRWLockExclusive((PSRWLOCK)&mutex->srw); }
void mp__mutex_unlock(mp__mutex *mutex) { ReleaseSRWLockExclusive((PSRWLOCK)&mutex->srw); }
void mp__cond_init(mp__cond *cond) { InitializeConditionVariable((PCONDITION_VARIABLE)&cond->cv); }
void mp__cond_signal(mp__cond *cond) { WakeConditionVariable((PCONDITION_VARIABLE)&cond->cv); }

void mp__cond_wait_until(mp__cond *cond, mp__mutex *mutex, uint64_t deadline) {
    DWORD patience = INFINITE;
    if (deadline != MP_NEVER) {
        uint64_t now = mp__os_now();
        uint64_t left = deadline > now ? (deadline - now) / UINT64_C(1000000) : 0;
        patience = left < INFINITE - 1 ? (DWORD)left : INFINITE - 1;
    }
    (void)SleepConditionVariableSRW((PCONDITION_VARIABLE)&cond->cv, (PSRWLOCK)&mutex->srw, patience, 0);
}

static DWORD WINAPI thread_main(LPVOID run) {
    void (*start)(void) = (void (*)(void))(uintptr_t)run;
    start();
    return 0;
}

mp_status mp__thread_start(mp__thread *thread, void (*run)(void)) {
    thread->handle = CreateThread(NULL, THREAD_STACK, thread_main, (LPVOID)(uintptr_t)run, 0, NULL);
    return thread->handle != NULL ? MP_OK : MP_ERR_NOMEM;
}

void mp__thread_join(mp__thread *thread) {
    (void)WaitForSingleObject(thread->handle, INFINITE);
    (void)CloseHandle(thread->handle);
}

mp_status mp__os_at_fork(void (*prepare)(void), void (*parent)(void), void (*child)(void)) {
    (void)prepare;
    (void)parent;
    (void)child;
    return MP_OK;
}

#endif
