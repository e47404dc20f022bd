/* os_posix_process.c: what the process and the machine have in memory, and what makes the C library and the OS take some of it back.
 * Linux, macOS and the BSDs.
 *
 * Each call asks anew. A figure that the OS does not give is MP_ERR_OS, never a guess: somebody decides by it what to throw away.
 * Rejected: getrusage for the peak on Linux (a program inherits that of the one that started it), _SC_AVPHYS_PAGES for what is
 * available (it leaves out the cache, which is nearly everything on a machine that reads files). */
#if !defined(_WIN32)

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif
#if defined(__APPLE__)
#include <mach/mach.h>
#include <malloc/malloc.h>
#include <sys/sysctl.h>
#endif

#include "os.h"

#if defined(__linux__)

enum { LINE = 256 };

/* The two figures of a file of lines such as "VmRSS:   1234 kB", in bytes. */
static mp_status read_lines(const char *path, const char *first, size_t *one, const char *second, size_t *two) {
    char line[LINE], format[2][LINE / 4];
    unsigned long long kib;
    int found = 0;
    FILE *file = fopen(path, "re");
    if (file == NULL) return MP_ERR_OS;
    (void)snprintf(format[0], sizeof format[0], "%s: %%llu kB", first);
    (void)snprintf(format[1], sizeof format[1], "%s: %%llu kB", second);
    while (found != 3 && fgets(line, sizeof line, file) != NULL) {
        for (int i = 0; i < 2; i++) {
            if (sscanf(line, format[i], &kib) != 1) continue;
            *(i == 0 ? one : two) = (size_t)kib << 10;
            found |= 1 << i;
        }
    }
    (void)fclose(file);
    return found == 3 ? MP_OK : MP_ERR_OS;
}

mp_status mp__os_process_memory(size_t *rss, size_t *peak) { return read_lines("/proc/self/status", "VmHWM", peak, "VmRSS", rss); }

mp_status mp__os_machine_memory(size_t *total, size_t *available) {
    return read_lines("/proc/meminfo", "MemTotal", total, "MemAvailable", available);
}

#elif defined(__APPLE__)

mp_status mp__os_process_memory(size_t *rss, size_t *peak) {
    mach_task_basic_info_data_t info;
    mach_msg_type_number_t count = MACH_TASK_BASIC_INFO_COUNT;
    if (task_info(mach_task_self(), MACH_TASK_BASIC_INFO, (task_info_t)&info, &count) != KERN_SUCCESS) return MP_ERR_OS;
    *rss = (size_t)info.resident_size;
    *peak = (size_t)info.resident_size_max;
    return MP_OK;
}

mp_status mp__os_machine_memory(size_t *total, size_t *available) {
    uint64_t size = 0;
    size_t length = sizeof size;
    vm_statistics64_data_t state;
    mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
    mach_port_t host = mach_host_self();
    if (sysctlbyname("hw.memsize", &size, &length, NULL, 0) != 0) return MP_ERR_OS;
    kern_return_t answer = host_statistics64(host, HOST_VM_INFO64, (host_info64_t)&state, &count);
    (void)mach_port_deallocate(mach_task_self(), host);
    if (answer != KERN_SUCCESS) return MP_ERR_OS;
    *total = (size_t)size;
    *available = ((size_t)state.free_count + state.inactive_count + state.purgeable_count) * mp__os_page_size();
    return MP_OK;
}

#else

mp_status mp__os_process_memory(size_t *rss, size_t *peak) {
    (void)rss;
    (void)peak;
    return MP_ERR_OS;
}

mp_status mp__os_machine_memory(size_t *total, size_t *available) {
    (void)total;
    (void)available;
    return MP_ERR_OS;
}

#endif

bool mp__os_malloc_trim(void) {
#if defined(__GLIBC__)
    return malloc_trim(0) == 1;
#elif defined(__APPLE__)
    return malloc_zone_pressure_relief(NULL, 0) > 0;
#else
    return false;
#endif
}

bool mp__os_page_out(void *ptr, size_t size) {
#if defined(MADV_PAGEOUT)
    if (madvise(ptr, size, MADV_PAGEOUT) == 0) return true;
#endif
#if defined(MADV_COLD)
    if (madvise(ptr, size, MADV_COLD) == 0) return true;
#endif
    (void)ptr;
    (void)size;
    return false;
}

#endif
