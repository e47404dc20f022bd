"""What is lent, account by account: what was taken from the OS, without what lies idle in pools and empty in slabs."""

from collections.abc import Iterator
from typing import Any

from mempool import _core
from mempool._core import Account, root_account

__all__ = ["lent_by_account"]


def _path(account: Account) -> tuple[str, ...]:
    names: list[str] = []
    above: Account | None = account
    while above is not None:
        names.append(above.name)
        above = above.parent
    return tuple(reversed(names))


def _own(root: Any) -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the path of each account and what it holds besides its children."""
    pending: list[tuple[Any, tuple[str, ...]]] = [(root, ())]
    while pending:
        node, above = pending.pop()
        path = (*above, node["name"])
        yield path, node["used"] - sum(child["used"] for child in node["children"])
        pending.extend((child, path) for child in reversed(node["children"]))


def _idle() -> Iterator[tuple[tuple[str, ...], int]]:
    """Yield the account of each pool and slab, and the bytes that it keeps there and lends to nobody."""
    for pool in _core._pools():
        yield _path(pool.account), pool.stats().idle
    for slab in _core._slabs():
        stats = slab.stats()
        yield _path(slab.account), stats.reserved - (stats.live + stats.retired) * stats.item_size


def lent_by_account() -> dict[tuple[str, ...], int]:
    """Return the bytes that each account itself has lent, by its path from the root.

    Accounts of one path are added up. What idles at one moment and is lent at the next may be counted in both while other
    threads work.
    """
    lent: dict[tuple[str, ...], int] = {}
    for path, nbytes in _own(root_account().tree()):
        lent[path] = lent.get(path, 0) + nbytes
    for path, nbytes in _idle():
        if path in lent:
            lent[path] -= nbytes
    return lent
