"""Keys made of the arguments of a call, by the conventions of cachetools."""

from typing import Any

__all__ = ["hashkey", "methodkey", "typedkey", "typedmethodkey"]


class _KeywordsFollow:
    """Stands between positional arguments and keywords, so that `f(("a", 1))` is not `f(a=1)`."""

    __slots__ = ()

    def __reduce__(self) -> str:
        return "_MARK"

    def __repr__(self) -> str:
        return "<keywords follow>"


_MARK = _KeywordsFollow()


def hashkey(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Make a key of all arguments; the order of keywords does not matter.

    >>> hashkey(1, 2, b=3, a=4) == hashkey(1, 2, a=4, b=3)
    True
    >>> hashkey(1) == hashkey(1.0)
    True
    """
    if not kwargs:
        return args
    return (*args, _MARK, *sorted(kwargs.items()))


def methodkey(self: object, /, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Make a key of the arguments but the first: of a method's but `self`.

    All objects share what is cached so, and none is kept alive by it.

    >>> methodkey(object(), 1) == hashkey(1)
    True
    """
    return hashkey(*args, **kwargs)


def typedkey(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Make a key of all arguments and their types: 1, 1.0 and True are three keys.

    >>> typedkey(1) == typedkey(1.0)
    False
    """
    key = (*hashkey(*args, **kwargs), *map(type, args))
    if kwargs:
        key += tuple([type(value) for _, value in sorted(kwargs.items())])
    return key


def typedmethodkey(self: object, /, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Make a key of the arguments but the first, and their types.

    >>> typedmethodkey(object(), 1) == typedkey(1)
    True
    """
    return typedkey(*args, **kwargs)
