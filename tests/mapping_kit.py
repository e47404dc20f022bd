"""What the tests of mapped arrays share: books and descriptors of theirs alone, whatever else the process holds."""

import gc
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mempool.accounting import root_account

_ACCOUNTS = {"mapped files", "anonymous arrays"}


def charged() -> int:
    """Bytes of all mapped arrays; idle memory of some pool may leave the root account at any moment."""
    return sum(child.used for child in root_account().children if child.name in _ACCOUNTS)


def descriptors(folder: Path) -> Counter[str]:
    """What is open here of files in the folder, of devices and of memory without a name."""
    found: Counter[str] = Counter()
    for number in os.listdir("/proc/self/fd"):
        try:
            name = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # that of the list itself
            continue
        if name.startswith((f"{folder}/", "/dev/", "/memfd:")):
            found[name.removesuffix(" (deleted)")] += 1
    return found


@contextmanager
def no_descriptor_stays(folder: Path) -> Iterator[None]:
    gc.collect()  # what other tests left
    before = descriptors(folder)
    yield
    gc.collect()
    assert descriptors(folder) == before
