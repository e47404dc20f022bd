/* sizeclass.c: the sizes in which memory is lent.
 *
 *        1 ..  2 KiB   steps of 64 bytes          waste <= 6.2 % from 1 KiB up
 *     2 KiB .. 4 KiB   steps of 128 bytes         <= 6.2 %
 *     4 KiB .. 64 KiB  whole pages of 4 KiB       <= 12.5 % from 32 KiB up
 *    64 KiB .. 128 TiB 16 steps in each doubling  <= 6.2 %
 *
 * Sixteen steps rather than the usual eight, so that an idle block of the next class may serve too and still wastes no more than
 * 12.5 % of the request: then a program that asks for many sizes needs fewer idle blocks.
 *
 * A pool's alignment and pages larger than 4 KiB round the sizes up further; two classes may then have one size, which does no
 * harm. */
#include "sizeclass.h"

#include "internal.h"

static size_t nominal_size(unsigned index) {
    if (index < MP__TINY_CLASSES) return ((size_t)index + 1) << 6;
    if (index < MP__PAGED_AT) return 2048 + (((size_t)index - MP__TINY_CLASSES + 1) << 7);
    if (index < MP__GEOMETRIC_AT) return ((size_t)index - MP__PAGED_AT + 2) << 12;
    unsigned e = 16 + (index - MP__GEOMETRIC_AT) / 16;
    size_t step = ((size_t)index - MP__GEOMETRIC_AT) % 16;
    return (16 + step + 1) << (e - 4);
}

size_t mp__class_stride(unsigned index, size_t page, size_t alignment) {
    size_t size = nominal_size(index);
    size_t grain = size >= 4096 && alignment < page ? page : alignment;
    return (size + grain - 1) & ~(grain - 1); /* cannot overflow: sizes end at 2^48 */
}

size_t mp_pool_block_size(const mp_pool *pool, size_t nbytes) {
    if (nbytes > MP__MAX_SIZE) return 0;
    return mp__class_stride(mp__class_for(pool, nbytes), mp__os_page_size(), pool->config.alignment);
}
