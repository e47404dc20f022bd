/* file.c: a file as it is found, before anything of it is mapped. The rejected alternative, to read the header through the mapping, dies
 * of a file that becomes shorter meanwhile. */
#include "os.h"

mp_status mp_file_size(int file, uint64_t *size, int *error) {
    mp__file_stat found;
    mp_status status = mp__os_file_stat(file, &found, error);
    if (status == MP_OK) *size = found.size;
    return status;
}

mp_status mp_file_read(int file, uint64_t at, void *data, size_t *size, int *error) {
    return mp__os_file_read(file, at, data, size, error);
}
