/* os_windows_process.c: what the process and the machine have in memory, on Windows. See os_posix_process.c. */
#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#define PSAPI_VERSION 2 /* K32GetProcessMemoryInfo, which kernel32 itself has */
#include <malloc.h>
#include <psapi.h>

#include "os.h"

mp_status mp__os_process_memory(size_t *rss, size_t *peak) {
    PROCESS_MEMORY_COUNTERS counters = {.cb = sizeof counters};
    if (!GetProcessMemoryInfo(GetCurrentProcess(), &counters, sizeof counters)) return MP_ERR_OS;
    *rss = counters.WorkingSetSize;
    *peak = counters.PeakWorkingSetSize;
    return MP_OK;
}

mp_status mp__os_machine_memory(size_t *total, size_t *available) {
    MEMORYSTATUSEX state = {.dwLength = sizeof state};
    if (!GlobalMemoryStatusEx(&state)) return MP_ERR_OS;
    *total = (size_t)state.ullTotalPhys;
    *available = (size_t)state.ullAvailPhys;
    return MP_OK;
}

bool mp__os_malloc_trim(void) { return _heapmin() == 0; }

bool mp__os_page_out(void *ptr, size_t size) {
    (void)VirtualUnlock(ptr, size); /* of pages that are not locked: they leave the working set, and the call says it failed */
    return GetLastError() == ERROR_NOT_LOCKED;
}

#endif
