/* os_windows_file.c: files and shared mappings on Windows. See os.h for what each function promises.
 *
 *      descriptor ──> handle ──> section (as long as the file) ──> view; the section's handle goes at once, the view keeps it
 *
 * A view cannot reach beyond the end of its file, so that nothing is reserved and files do not grow in place. A file that is mapped
 * cannot be truncated, by us or by others, so that nothing has to be guarded. Zero pages cannot be laid over a part of a view; over the
 * whole they can, with a moment in between when the addresses are free.
 *
 * Rejected: placeholders (VirtualAlloc2, Windows 10 1803): they would make reservations possible, and nobody here can test them. */
#if defined(_WIN32)

#define WIN32_LEAN_AND_MEAN
#include <windows.h>

#include <errno.h>
#include <io.h>
#include <string.h>
#include <sys/stat.h>

#include "os.h"

enum { PIECE = 1 << 30 };

static mp_status failed(int *error) {
    switch (GetLastError()) {
    case ERROR_NOT_ENOUGH_MEMORY:
    case ERROR_COMMITMENT_LIMIT:
    case ERROR_OUTOFMEMORY: *error = ENOMEM; return MP_ERR_NOMEM;
    case ERROR_DISK_FULL:
    case ERROR_HANDLE_DISK_FULL: *error = ENOSPC; break;
    case ERROR_ACCESS_DENIED:
    case ERROR_LOCK_VIOLATION: *error = EACCES; break;
    case ERROR_USER_MAPPED_FILE: *error = EBUSY; break;
    case ERROR_INVALID_HANDLE: *error = EBADF; break;
    case ERROR_WORKING_SET_QUOTA: *error = EAGAIN; break;
    default: *error = EIO; break;
    }
    return MP_ERR_OS;
}

static mp_status unsupported(int *error) {
    *error = ENOTSUP;
    return MP_ERR_OS;
}

static HANDLE handle_of(int file) { return (HANDLE)_get_osfhandle(file); }

/* ---- files ---- */

size_t mp__os_file_granularity(void) {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwAllocationGranularity;
}

mp_status mp__os_file_stat(int file, mp__file_stat *out, int *error) {
    LARGE_INTEGER size;
    if (GetFileType(handle_of(file)) != FILE_TYPE_DISK) return MP_ERR_INVALID;
    if (!GetFileSizeEx(handle_of(file), &size)) return failed(error);
    *out = (mp__file_stat){.size = (uint64_t)size.QuadPart};
    return MP_OK;
}

mp_status mp__os_file_read(int file, uint64_t at, void *data, size_t *size, int *error) {
    size_t done = 0;
    while (done < *size) {
        uint64_t place = at + done;
        OVERLAPPED where = {.Offset = (DWORD)place, .OffsetHigh = (DWORD)(place >> 32)};
        DWORD piece = *size - done < PIECE ? (DWORD)(*size - done) : PIECE, got = 0;
        if (!ReadFile(handle_of(file), (char *)data + done, piece, &got, &where) && GetLastError() != ERROR_HANDLE_EOF) {
            return failed(error);
        }
        if (got == 0) break;
        done += got;
    }
    *size = done;
    return MP_OK;
}

mp_status mp__os_file_write(int file, uint64_t at, const void *data, size_t size, int *error) {
    const char *bytes = data;
    for (size_t done = 0; done < size;) {
        uint64_t place = at + done;
        OVERLAPPED where = {.Offset = (DWORD)place, .OffsetHigh = (DWORD)(place >> 32)};
        DWORD piece = size - done < PIECE ? (DWORD)(size - done) : PIECE, wrote = 0;
        if (!WriteFile(handle_of(file), bytes + done, piece, &wrote, &where) || wrote == 0) return failed(error);
        done += wrote;
    }
    return MP_OK;
}

void mp__os_file_set_aside(int file, uint64_t at, size_t size) {
    (void)file;
    (void)at;
    (void)size;
}

bool mp__os_file_make_hole(int file, uint64_t at, uint64_t size) {
    (void)file;
    (void)at;
    (void)size;
    return false;
}

mp_status mp__os_file_set_size(int file, uint64_t size, int *error) {
    FILE_END_OF_FILE_INFO end = {.EndOfFile = {.QuadPart = (LONGLONG)size}};
    return SetFileInformationByHandle(handle_of(file), FileEndOfFileInfo, &end, sizeof end) ? MP_OK : failed(error);
}

mp_status mp__os_file_sync(int file, int *error) { return FlushFileBuffers(handle_of(file)) ? MP_OK : failed(error); }

mp_status mp__os_file_close(int file, int *error) {
    if (_close(file) == 0) return MP_OK;
    *error = errno;
    return MP_ERR_OS;
}

bool mp__os_file_can_mark(void) { return false; }

mp_status mp__os_file_mark(int file, uint64_t part, mp_share_as as, int *error) {
    (void)file;
    (void)part;
    (void)as;
    *error = ENOSYS;
    return MP_ERR_OS;
}

/* ---- mappings ---- */

/* A view of the rest of the file, where whole pages were asked for. 0: it does not reach so far. */
static size_t view_length(uint64_t end_of_file, uint64_t offset, size_t size) {
    if (offset >= end_of_file) return 0;
    uint64_t rest = end_of_file - offset;
    if (rest >= size) return size;
    return size - rest < mp__os_page_size() ? (size_t)rest : 0;
}

mp_status mp__os_file_map(int file, uint64_t offset, size_t size, mp_access access, void **out, int *error) {
    static const DWORD protections[] = {PAGE_READONLY, PAGE_READWRITE, PAGE_WRITECOPY};
    static const DWORD rights[] = {FILE_MAP_READ, FILE_MAP_WRITE, FILE_MAP_COPY};
    mp__file_stat found;
    mp_status status = mp__os_file_stat(file, &found, error);
    if (status != MP_OK) return status;
    size_t length = view_length(found.size, offset, size);
    if (length == 0) {
        *error = ENOMEM;
        return MP_ERR_NOMEM;
    }
    HANDLE section = CreateFileMappingW(handle_of(file), NULL, protections[access], 0, 0, NULL);
    if (section == NULL) return failed(error);
    void *ptr = MapViewOfFile(section, rights[access], (DWORD)(offset >> 32), (DWORD)offset, length);
    status = ptr != NULL ? MP_OK : failed(error);
    (void)CloseHandle(section);
    if (status == MP_OK) *out = ptr;
    return status;
}

mp_status mp__os_file_map_over(int file, uint64_t offset, size_t size, void *ptr, int *error) {
    (void)file;
    (void)offset;
    (void)size;
    (void)ptr;
    return unsupported(error);
}

mp_status mp__os_file_unmap(void *ptr, size_t size) {
    (void)size;
    return UnmapViewOfFile(ptr) || VirtualFree(ptr, 0, MEM_RELEASE) ? MP_OK : MP_ERR_NOMEM;
}

mp_status mp__os_file_flush(int file, void *ptr, size_t size, bool wait, int *error) {
    if (!FlushViewOfFile(ptr, size)) return failed(error);
    return wait ? mp__os_file_sync(file, error) : MP_OK;
}

mp_status mp__os_blank(void *ptr, size_t size, bool writable, int *error) {
    MEMORY_BASIC_INFORMATION info;
    DWORD before, protection = writable ? PAGE_READWRITE : PAGE_READONLY;
    if (VirtualQuery(ptr, &info, sizeof info) == 0) return failed(error);
    if (info.Type == MEM_PRIVATE) {
        mp__os_zero(ptr, size, false);
        return VirtualProtect(ptr, size, protection, &before) ? MP_OK : failed(error);
    }
    if (info.AllocationBase != ptr) return unsupported(error);
    if (!UnmapViewOfFile(ptr)) return unsupported(error);
    return VirtualAlloc(ptr, size, MEM_RESERVE | MEM_COMMIT, protection) != NULL ? MP_OK : failed(error);
}

void mp__os_zero(void *ptr, size_t size, bool shared) {
    (void)shared; /* there is no fork */
    memset(ptr, 0, size);
}

/* ---- advice ---- */

mp_status mp__os_advise(void *ptr, size_t size, mp_advice advice, int *error) {
    if (advice == MP_ADVICE_NORMAL) return MP_OK;
    return advice == MP_ADVICE_WILLNEED ? mp__os_prefetch(ptr, size, error) : unsupported(error);
}

/* PrefetchVirtualMemory is not in every Windows that this is built for. */
mp_status mp__os_prefetch(void *ptr, size_t size, int *error) {
    (void)error;
    mp__os_populate(ptr, size);
    return MP_OK;
}

void mp__os_populate(void *ptr, size_t size) {
    const volatile char *bytes = ptr;
    size_t page = mp__os_page_size();
    for (size_t at = 0; at < size; at += page) (void)bytes[at];
}

mp_status mp__os_resident(void *ptr, size_t size, size_t *pages, int *error) {
    (void)ptr;
    (void)size;
    (void)pages;
    return unsupported(error);
}

mp_status mp__os_lock_pages(void *ptr, size_t size, bool lock, int *error) {
    return (lock ? VirtualLock(ptr, size) : VirtualUnlock(ptr, size)) ? MP_OK : failed(error);
}

/* ---- faults ---- */

mp_status mp__os_guard_faults(bool (*handler)(void *address), int *error) {
    (void)handler;
    return unsupported(error);
}

#endif
