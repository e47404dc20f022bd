"""What a segment looks like: blocks of one size, then one page of 64-bit words that all processes read and write.

    [ block 0 | block 1 | ... | block n-1 ][ header page ]
    words    0 magic  1-2 nonce  3 blocks  4 bytes of a block  5 pid of the owner  6 its descriptor
    from 8   four words a block: generation, messages in flight, when the last was sent, how many were sent

The generation is one lease's name for the block: it changes before the block is lent again, so a message of an earlier lease is
recognised. Messages are counted because a block that is on its way is held by nobody.
"""

__all__: list[str] = []

PAGE = 4096
HEADER = PAGE
MAGIC = int.from_bytes(b"mpshared", "little")

MAGIC_WORD, NONCE_WORD, COUNT_WORD, CAPACITY_WORD, PID_WORD, FD_WORD = 0, 1, 3, 4, 5, 6
_RECORDS, _WORDS = 8, 4
GENERATION, IN_FLIGHT, SENT_AT, SENDS = range(_WORDS)

# Blocks up to here are cut from a segment of 256 KiB: a descriptor for each would soon be too many.
SMALL = 32 << 10
_CUT = 256 << 10


def word(index: int, field: int) -> int:
    """Return the number of a block's word."""
    return _RECORDS + index * _WORDS + field


def block_size(nbytes: int) -> int:
    """Return the bytes of a block for so many: whole pages, and above 32 KiB at most an eighth more than asked."""
    pages = -(-max(nbytes, 1) // PAGE) * PAGE
    step = max(PAGE, 1 << max(0, (pages - 1).bit_length() - 4))
    return -(-pages // step) * step


def blocks_per_segment(capacity: int) -> int:
    """Return how many blocks of this size share a segment."""
    return _CUT // capacity if capacity <= SMALL else 1
