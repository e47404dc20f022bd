"""What is lent, account by account: what was taken from the OS, without what lies idle in pools and empty in slabs."""

from collections.abc import Iterator

from mempool import _core
from mempool._core import Account, root_account

__all__ = ["lent_by_account"]

_FILES = ("root", "mapped files")


def _path(account: Account) -> tuple[str, ...]:
    names: list[str] = []
    above: Account | None = account
    while above is not None:
        names.append(above.name)
        above = above.parent
    return tuple(reversed(names))


def _own() -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the path of each account and what it holds besides its children. Chains of accounts may be of any length."""
    top = root_account()
    waiting: list[tuple[tuple[str, ...], Account, int]] = [((top.name,), top, top.used)]
    while waiting:
        path, account, held = waiting.pop()
        below = [((*path, child.name), child, child.used) for child in account.children]
        yield path, held - sum(nbytes for _, _, nbytes in below)
        waiting += reversed(below)


def _idle() -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the account of each pool and slab, and the bytes that it keeps there and lends to nobody."""
    for account, nbytes in _core._idle_of_pools():
        yield _path(account), nbytes
    for slab in _core._slabs():
        yield _path(slab.account), slab.stats().reserved - _core._held(None, slab)


def lent_by_account(*, mapped: bool = True) -> dict[tuple[str, ...], int]:
    """Return the bytes that each account itself has lent, by its path from the root; mapped files too if so told.

    Accounts of one path are added up. What idles at one moment and is lent at the next may be counted in both while other
    threads work.
    """
    lent: dict[tuple[str, ...], int] = {}
    for path, nbytes in _own():
        if mapped or path != _FILES:
            lent[path] = lent.get(path, 0) + nbytes
    for path, nbytes in _idle():
        if path in lent:
            lent[path] -= nbytes
    return lent
