"""Tags: which entries have one, so that all of them can be taken back at once."""

import math
from collections.abc import Hashable, Iterable
from typing import Any, cast
from weakref import ref

from mempool._core import Account
from mempool.cache._policies import MISSING, UNIT, Note, Table, Tagged
from mempool.cache.arguments import UNBOUNDED
from mempool.cache.records import Cause

__all__ = ["Tags", "as_tags"]


class Tags:
    """The notes of the entries that have tags, by tag.

    The index is a table itself: its steps are atomic, and no lock is held while a tag is hashed or compared.
    """

    __slots__ = ("_index", "_reference")

    def __init__(self, account: Account | None = None) -> None:
        self._index: Table[Hashable, Tagged] = Table()
        self._index._begin("none", UNBOUNDED, UNBOUNDED, UNIT, math.inf, None, None, account, None)
        self._reference = ref(self._index)

    def note(self, key: Any, version: Any, tags: tuple[Hashable, ...]) -> Note:
        """Return a note that is in the index: `gone` must follow, by the table or by whoever could not put it there."""
        note = Note(key, version)
        try:
            for tag in dict.fromkeys(tags):
                self._join(tag, note)
        except BaseException:
            note.gone()
            raise
        return note

    def having(self, tag: Hashable) -> list[Note]:
        """Return the notes of the entries that have a tag, and of those that are just being put."""
        tagged = self._index._find(tag)
        return [] if tagged is MISSING else cast(Tagged, tagged).all()

    def __len__(self) -> int:
        return len(self._index)

    @property
    def own_bytes(self) -> int:
        """Native memory of the index, for which the account is charged; none when no entry has a tag."""
        return self._index._counts()[-1]

    def _join(self, tag: Hashable, note: Note) -> None:
        while True:
            tagged = self._index._find(tag)
            if tagged is MISSING:
                tagged = Tagged(tag, self._reference)
                tagged.add(note)  # before it is in the index: one without notes would never leave that
                if self._index._insert(tag, tagged, None, 0, None, False):
                    return
            elif tagged.add(note):
                return
            else:
                self._index._remove(tag, tagged, Cause.DELETED)


def as_tags(tags: Iterable[Hashable]) -> tuple[Hashable, ...]:
    """Return tags as a tuple; a single text is one tag.

    Raises
    ------
    TypeError
        For what is no collection of hashable values.
    """
    if isinstance(tags, (str, bytes)):
        return (tags,)
    try:
        found = tuple(tags)
    except TypeError:
        raise TypeError(f"tags must be a collection of tags, not {tags!r}") from None
    for tag in found:
        _check(tag)
    return found


def _check(tag: Hashable) -> None:
    try:
        hash(tag)
    except TypeError:
        raise TypeError(f"a tag must be hashable, not {tag!r}") from None
