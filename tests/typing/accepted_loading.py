"""What a type checker must accept of loads and of `cached`, with the types that it must see. Checked, never run."""

from collections.abc import Coroutine
from functools import partial
from typing import Any, assert_type

from mempool.cache import Cache, CacheInfo, cached, hashkey, methodkey, typedkey

names: Cache[int, str] = Cache(100)


def name_of(number: int) -> str:
    return str(number)


async def fetch(number: int) -> str:
    return str(number)


def plain_loaders() -> None:
    assert_type(names.get_or_load(1, name_of), str)
    assert_type(names.get_or_load(1, str), str)
    assert_type(names.get_or_load(1, lambda key: str(key), ttl="5m", tags=("t",), refresh_ahead=0.8), str)
    assert_type(names.get_or_load(1, partial(name_of), ttl=3, priority=1, version=2), str)


async def awaited_loaders() -> None:
    coroutine: Coroutine[Any, Any, str] = names.get_or_load(1, fetch)
    assert_type(await coroutine, str)
    assert_type(await names.get_or_load(1, fetch, ttl=3.5), str)


@cached(names)
def add(a: int, b: int = 1, *, c: float = 0) -> str:
    return str(a + b + c)


@cached(Cache(max_bytes="1 MiB"), key=typedkey, ttl="5m")
async def add_later(a: int, b: int) -> float:
    return a + b


class Service:
    @cached(Cache(10), key=methodkey)
    def times(self, number: int) -> int:
        return number

    @cached({}, hashkey)
    async def later(self, number: int) -> int:
        return number


async def decorated(service: Service) -> None:
    assert_type(add(1, 2, c=3.5), str)
    assert_type(add.cache_info(), CacheInfo)
    assert_type(add.__wrapped__(1), str)
    add.cache_clear()
    assert_type(await add_later(1, b=2), float)
    assert_type(service.times(3), int)
    assert_type(await service.later(number=3), int)
    assert_type(Service.times(service, 3), int)
