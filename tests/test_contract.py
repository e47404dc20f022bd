"""The surface of pools and accounts: names, signatures, what bad input raises, and that it changes nothing."""

import enum
import inspect
import math
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import mempool
from mempool import Account, Buffer, BufferPool, accounting
from support import MIB, books, nothing_changes

TOP = {"BufferPool", "Buffer", "default_pool", "acquire", "Account", "configure", "TRACEMALLOC_DOMAIN", "__version__"}
TOP |= {"MempoolError", "PoolExhausted", "AccountLimitExceeded", "StaleHandle", "MappingError", "PoolStats"}
TOP |= {"memory_usage", "MemoryLimitExceeded"}

SIGNATURES = {
    BufferPool.acquire: "(nbytes, *, zero=False, timeout=0)",
    BufferPool.acquire_async: "(nbytes, *, zero=False, timeout=None)",
    BufferPool.reserve: "(nbytes, count=1)",
    BufferPool.trim: "(target=0)",
    BufferPool.stats: "()",
    BufferPool.close: "()",
    Buffer.array: "(dtype='u1', shape=None, *, offset=0, order='C')",
    Buffer.resize: "(nbytes)",
    Buffer.readonly: "()",
    Buffer.tobytes: "()",
    Buffer.release: "()",
    Buffer.__dlpack__: "(*, stream=None, max_version=None, dl_device=None, copy=None)",
    Buffer.__dlpack_device__: "()",
    Account.charge: "(nbytes)",
    Account.discharge: "(nbytes)",
    Account.charged: "(nbytes)",
    Account.track: "(obj, nbytes)",
    Account.tree: "()",
    accounting.root_account: "()",
    accounting.memory_usage: "(*, uss=False)",
    accounting.memory_limit: "(size, *, what='rss', account=None)",
    mempool.default_pool: "()",
    mempool.acquire: "(nbytes, *, zero=False, timeout=0)",
    mempool.configure: "(**settings)",
    BufferPool: "(limit=None, *, max_idle=None, idle_timeout=10.0, alignment=64, huge_pages=None, zero_on_release=False, "
    "leak_detection=None, account=None, name=None)",
    Account: "(name, *, limit=None, parent=None)",
}


def bare_signature(function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    shown = [
        parameter.replace(annotation=parameter.empty, kind=parameter.kind)
        for parameter in signature.parameters.values()
        if parameter.name != "self"
    ]
    return str(signature.replace(parameters=shown, return_annotation=signature.empty))


@pytest.mark.parametrize("function", SIGNATURES, ids=lambda function: function.__qualname__)
def test_signatures(function: Callable[..., Any]) -> None:
    assert bare_signature(function) == SIGNATURES[function]


def test_names_at_the_top() -> None:
    assert set(mempool.__all__) >= TOP
    assert all(hasattr(mempool, name) for name in mempool.__all__)
    assert set(dir(mempool)) >= TOP | {"accounting", "errors"}
    with pytest.raises(AttributeError, match="nonsense"):
        _ = mempool.nonsense  # type: ignore[attr-defined]


def test_submodules_load_when_touched(run_python: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    code = """
        import sys, mempool
        assert not {"numpy", "psutil", "asyncio", "mempool.accounting"} & set(sys.modules)
        assert mempool.accounting.root_account().name == "root"
        assert mempool.units.parse_size("1KiB") == 1024
    """
    run_python(code)


@pytest.mark.parametrize("thing", [BufferPool, Buffer, Account], ids=lambda thing: thing.__name__)
def test_everything_public_is_documented(thing: type) -> None:
    for name, member in vars(thing).items():
        if not name.startswith("_"):
            assert inspect.getdoc(member), name


def test_the_pool_knows_itself() -> None:
    pool = BufferPool(limit="1MiB", name="mine")
    assert (pool.name, pool.account.name, pool.limit, pool.closed) == ("mine", "mine", MIB, False)
    assert pool.account.parent is accounting.root_account()
    assert BufferPool().name != BufferPool().name
    for word in ("'mine'", str(MIB)):
        assert word in repr(pool)
    pool.close()
    assert "closed" in repr(pool)


@pytest.mark.parametrize("name", ["name", "account", "closed"])
def test_what_the_pool_says_of_itself_is_read_only(name: str) -> None:
    with pytest.raises(AttributeError):
        setattr(BufferPool(), name, None)


# ---- bad input: (value, exception, what the message must name)

Bad = tuple[object, type[Exception], str]

NEVER_A_SIZE: list[Bad] = [
    (-1, ValueError, "-1"),
    (-(2**80), ValueError, str(-(2**80))),
    (1.5, TypeError, "1.5"),
    (math.nan, TypeError, "nan"),
    (math.inf, TypeError, "inf"),
    (True, TypeError, "True"),
    ([1], TypeError, "[1]"),
    (b"1", TypeError, "b'1'"),
    ("", ValueError, "''"),
    ("-1KiB", ValueError, "'-1KiB'"),
    ("nan", ValueError, "'nan'"),
    ("64 furlongs", ValueError, "'64 furlongs'"),
    ("1K", ValueError, "'1K'"),
    (2**63, OverflowError, str(2**63)),
    (10**30, OverflowError, str(10**30)),
    ("9999999PiB", OverflowError, str(9999999 << 50)),
]
BAD_SIZES: list[Bad] = [*NEVER_A_SIZE, (None, TypeError, "None")]
BAD_LIMITS: list[Bad] = [*NEVER_A_SIZE, (0, ValueError, "0"), ("0KiB", ValueError, "'0KiB'")]
BAD_DURATIONS: list[Bad] = [
    (-1, ValueError, "-1"),
    (-0.5, ValueError, "-0.5"),
    (math.nan, ValueError, "nan"),
    (True, TypeError, "True"),
    ([1], TypeError, "[1]"),
    ("", ValueError, "''"),
    ("-1s", ValueError, "'-1s'"),
    ("1 parsec", ValueError, "'1 parsec'"),
]
BAD_ALIGNMENTS: list[Bad] = [
    (0, ValueError, "0"),
    (-8, ValueError, "-8"),
    (3, ValueError, "3"),
    (96, ValueError, "96"),
    (1 << 22, ValueError, str(1 << 22)),
    (1 << 80, ValueError, str(1 << 80)),
    (64.0, TypeError, "64.0"),
    (True, TypeError, "True"),
    (None, TypeError, "None"),
    ("64", TypeError, "'64'"),
]
BAD_COUNTS: list[Bad] = [
    (-1, ValueError, "-1"),
    (2**70, OverflowError, str(2**70)),
    (1.0, TypeError, "1.0"),
    (True, TypeError, "True"),
    (None, TypeError, "None"),
    ("1", TypeError, "'1'"),
]
BAD_SWITCHES: list[Bad] = [(1, TypeError, "1"), ("yes", TypeError, "'yes'"), (0.0, TypeError, "0.0")]
BAD_NAMES: list[Bad] = [(5, TypeError, "5"), (b"x", TypeError, "b'x'")]
BAD_ACCOUNTS: list[Bad] = [(5, TypeError, "5"), ("io", TypeError, "'io'")]
BAD_LEAK_MODES: list[Bad] = [("loud", ValueError, "'loud'"), ("", ValueError, "''"), (3, TypeError, "3")]


class Subjects:
    """A pool with a live lease, an idle block and an account: everything that bad input could hurt."""

    def __init__(self) -> None:
        self.parent = Account("parent", limit="8MiB")
        self.pool = BufferPool(limit="4MiB", idle_timeout=None, account=self.parent, leak_detection="off")
        self.pool.acquire("64KiB").release()
        self.buffer = self.pool.acquire(1000)
        self.buffer[:] = bytes(range(250)) * 4
        self.account = Account("child", parent=self.parent)
        self.account.charge(500)


Call = Callable[[Subjects, Any], object]

CALLS: dict[str, tuple[Call, list[Bad]]] = {
    "acquire": (lambda s, value: s.pool.acquire(value), BAD_SIZES),
    "acquire waiting": (lambda s, value: s.pool.acquire(value, timeout=None), BAD_SIZES),
    "acquire_async": (lambda s, value: s.pool.acquire_async(value), BAD_SIZES),
    "mempool.acquire": (lambda s, value: mempool.acquire(value), BAD_SIZES),
    "reserve": (lambda s, value: s.pool.reserve(value), BAD_SIZES),
    "reserve count": (lambda s, value: s.pool.reserve(64, value), BAD_COUNTS),
    "trim": (lambda s, value: s.pool.trim(value), BAD_SIZES),
    "resize": (lambda s, value: s.buffer.resize(value), BAD_SIZES),
    "timeout": (lambda s, value: s.pool.acquire(64, timeout=value), BAD_DURATIONS),
    "timeout async": (lambda s, value: s.pool.acquire_async(64, timeout=value), BAD_DURATIONS),
    "pool.limit": (lambda s, value: setattr(s.pool, "limit", value), BAD_LIMITS),
    "pool.leak_detection": (lambda s, value: setattr(s.pool, "leak_detection", value), BAD_LEAK_MODES),
    "BufferPool limit": (lambda s, value: BufferPool(value, account=s.parent), BAD_LIMITS),
    "BufferPool max_idle": (lambda s, value: BufferPool(max_idle=value, account=s.parent), NEVER_A_SIZE),
    "BufferPool idle_timeout": (lambda s, value: BufferPool(idle_timeout=value, account=s.parent), BAD_DURATIONS),
    "BufferPool alignment": (lambda s, value: BufferPool(alignment=value, account=s.parent), BAD_ALIGNMENTS),
    "BufferPool huge_pages": (lambda s, value: BufferPool(huge_pages=value, account=s.parent), BAD_SWITCHES),
    "BufferPool zero_on_release": (lambda s, value: BufferPool(zero_on_release=value, account=s.parent), BAD_SWITCHES),
    "BufferPool leak_detection": (lambda s, value: BufferPool(leak_detection=value, account=s.parent), BAD_LEAK_MODES),
    "BufferPool account": (lambda s, value: BufferPool(account=value), BAD_ACCOUNTS),
    "BufferPool name": (lambda s, value: BufferPool(name=value, account=s.parent), BAD_NAMES),
    "charge": (lambda s, value: s.account.charge(value), BAD_SIZES),
    "discharge": (lambda s, value: s.account.discharge(value), BAD_SIZES),
    "charged": (lambda s, value: s.account.charged(value), BAD_SIZES),
    "track": (lambda s, value: s.account.track(s, value), BAD_SIZES),
    "account.limit": (lambda s, value: setattr(s.account, "limit", value), BAD_LIMITS),
    "Account limit": (lambda s, value: Account("x", limit=value, parent=s.parent), BAD_LIMITS),
    "Account name": (lambda s, value: Account(value, parent=s.parent), [*BAD_NAMES, (None, TypeError, "None")]),
    "Account parent": (lambda s, value: Account("x", parent=value), BAD_ACCOUNTS),
}
ROWS = [pytest.param(name, *bad, id=f"{name}: {bad[2]}") for name, (_, table) in CALLS.items() for bad in table]


@pytest.mark.parametrize(("call", "value", "error", "named"), ROWS)
def test_bad_input(call: str, value: object, error: type[Exception], named: str) -> None:
    subjects = Subjects()
    content = subjects.buffer.tobytes()
    with nothing_changes(subjects.pool, subjects.parent, subjects.account), pytest.raises(error) as caught:
        CALLS[call][0](subjects, value)
    assert type(caught.value) is error
    assert named in str(caught.value)
    assert subjects.buffer.tobytes() == content
    assert subjects.pool.limit == 4 * MIB


HUGE = 10**5000  # more digits than Python prints
HUGE_ROWS: dict[str, tuple[Call, type[Exception]]] = {
    "pool.acquire(huge)": (lambda s, huge: s.pool.acquire(huge), OverflowError),
    "pool.acquire(huge, timeout=None)": (lambda s, huge: s.pool.acquire(huge, timeout=None), OverflowError),
    "pool.acquire_async(huge)": (lambda s, huge: s.pool.acquire_async(huge), OverflowError),
    "buffer.resize(huge)": (lambda s, huge: s.buffer.resize(huge), OverflowError),
    "pool.reserve(huge)": (lambda s, huge: s.pool.reserve(huge), OverflowError),
    "pool.reserve(64, huge)": (lambda s, huge: s.pool.reserve(64, huge), OverflowError),
    "pool.trim(huge)": (lambda s, huge: s.pool.trim(huge), OverflowError),
    "pool.limit = huge": (lambda s, huge: setattr(s.pool, "limit", huge), OverflowError),
    "BufferPool(limit=huge)": (lambda s, huge: BufferPool(limit=huge, account=s.parent), OverflowError),
    "BufferPool(max_idle=huge)": (lambda s, huge: BufferPool(max_idle=huge, account=s.parent), OverflowError),
    "mempool.configure(limit=huge)": (lambda s, huge: mempool.configure(limit=huge), OverflowError),
    "account.charge(huge)": (lambda s, huge: s.account.charge(huge), OverflowError),
    "account.charged(huge)": (lambda s, huge: s.account.charged(huge), OverflowError),
    "account.discharge(huge)": (lambda s, huge: s.account.discharge(huge), OverflowError),
    "account.track(huge)": (lambda s, huge: s.account.track(s, huge), OverflowError),
    "account.limit = huge": (lambda s, huge: setattr(s.account, "limit", huge), OverflowError),
    "Account('x', limit=huge)": (lambda s, huge: Account("x", limit=huge, parent=s.parent), OverflowError),
    "units.parse_size(-huge)": (lambda s, huge: mempool.units.parse_size(-huge), ValueError),
    "pool.acquire(-huge)": (lambda s, huge: s.pool.acquire(-huge), ValueError),
    "pool.reserve(-huge)": (lambda s, huge: s.pool.reserve(-huge), ValueError),
    "pool.reserve(64, -huge)": (lambda s, huge: s.pool.reserve(64, -huge), ValueError),
    "pool.trim(-huge)": (lambda s, huge: s.pool.trim(-huge), ValueError),
    "account.charge(-huge)": (lambda s, huge: s.account.charge(-huge), ValueError),
    "mempool.configure(limit=-huge)": (lambda s, huge: mempool.configure(limit=-huge), ValueError),
    "pool.acquire(1, timeout=huge)": (lambda s, huge: s.pool.acquire(1, timeout=huge), ValueError),
    "pool.acquire(1, timeout=-huge)": (lambda s, huge: s.pool.acquire(1, timeout=-huge), ValueError),
    "BufferPool(idle_timeout=huge)": (lambda s, huge: BufferPool(idle_timeout=huge, account=s.parent), ValueError),
    "BufferPool(alignment=huge)": (lambda s, huge: BufferPool(alignment=huge, account=s.parent), ValueError),
    "BufferPool(alignment=-huge)": (lambda s, huge: BufferPool(alignment=-huge, account=s.parent), ValueError),
    "buffer[huge]": (lambda s, huge: s.buffer[huge], IndexError),
    "buffer[-huge]": (lambda s, huge: s.buffer[-huge], IndexError),
    "buffer[huge] = 1": (lambda s, huge: s.buffer.__setitem__(huge, 1), IndexError),
    "buffer[0] = huge": (lambda s, huge: s.buffer.__setitem__(0, huge), ValueError),
    "buffer.array(offset=huge)": (lambda s, huge: s.buffer.array(offset=huge), ValueError),
    "buffer.array(offset=-huge)": (lambda s, huge: s.buffer.array(offset=-huge), ValueError),
    "buffer.array(shape=huge)": (lambda s, huge: s.buffer.array(shape=huge), ValueError),
    "buffer.array(shape=(1, huge))": (lambda s, huge: s.buffer.array(shape=(1, huge)), ValueError),
    "buffer.array(shape=-huge)": (lambda s, huge: s.buffer.array(shape=-huge), ValueError),
}


@pytest.mark.parametrize(("call", "error"), HUGE_ROWS.values(), ids=HUGE_ROWS.keys())
def test_numbers_too_long_to_print(call: Call, error: type[Exception]) -> None:
    """They are refused for what they are, not for the length of a message."""
    subjects = Subjects()
    with nothing_changes(subjects.pool, subjects.parent, subjects.account), pytest.raises(error) as caught:
        call(subjects, HUGE)
    assert type(caught.value) is error
    assert "Exceeds the limit" not in str(caught.value)
    subjects.buffer.resize(10)


class Text(str):
    __slots__ = ()


class Letter(enum.StrEnum):
    X = "x"


class Number:
    def __init__(self, value: int) -> None:
        self.value = value

    def __index__(self) -> int:
        return self.value


@pytest.mark.parametrize("name", [Text("x"), Letter.X], ids=["subclass", "StrEnum"])
def test_names_may_be_of_a_subclass_of_str(name: str) -> None:
    account = Account(name)
    pool = BufferPool(name=name, account=account)
    assert [account.name, pool.name, pool.account.name] == ["x"] * 3
    assert "'x'" in repr(pool)
    assert pool.account.tree()["name"] == account.tree()["name"] == "x"
    with pytest.raises(mempool.MempoolError) as caught:
        BufferPool(64, name=name).acquire(100)
    assert "'x'" in str(caught.value)


def test_sizes_and_counts_are_whatever_has_an_index() -> None:
    pool = BufferPool(Number(MIB), alignment=Number(128), max_idle=Number(MIB))
    pool.reserve(Number(4096), Number(3))
    assert (pool.limit, pool.stats().idle) == (MIB, 3 * 4096)
    buffer = pool.acquire(Number(100))
    buffer.resize(Number(50))
    buffer[Number(3)] = Number(7)
    assert (len(buffer), buffer[3], buffer[Number(3)]) == (50, 7, 7)
    buffer.release()
    assert pool.trim(Number(4096)) > 0


@pytest.mark.parametrize("nbytes", [2**47 + 1, 2**62, "7000PiB"])
@pytest.mark.parametrize("limit", [None, "4MiB"])
@pytest.mark.parametrize("timeout", [0, None])
def test_what_no_machine_has(nbytes: int | str, limit: str | None, timeout: int | None) -> None:
    pool = BufferPool(limit)
    with nothing_changes(pool), pytest.raises(MemoryError, match=str(mempool.units.parse_size(nbytes))):
        pool.acquire(nbytes, timeout=timeout)
    with nothing_changes(pool), pytest.raises(MemoryError):
        pool.reserve(nbytes)


@pytest.mark.parametrize("call", ["acquire", "reserve"])
def test_a_refused_request_leaves_no_size_class(call: str) -> None:
    pool = BufferPool("64KiB")
    with nothing_changes(pool), pytest.raises(mempool.PoolExhausted):
        getattr(pool, call)("1MiB")
    assert pool.stats().size_classes == ()


@pytest.mark.parametrize("arguments", [(), (1, True), (1, 2, 3)])
def test_switches_are_named(arguments: tuple[Any, ...]) -> None:
    pool = BufferPool()
    with pytest.raises(TypeError):
        pool.acquire(*arguments)
    with pytest.raises(TypeError):
        BufferPool(1, *arguments, 3)


@pytest.mark.parametrize("alignment", [1, 2, 16, 64, 128, 4096, 1 << 16, 1 << 21])
def test_alignment(alignment: int) -> None:
    pool = BufferPool(alignment=alignment)
    buffers = [pool.acquire(nbytes) for nbytes in (1, 65, 1000, 4096, 5000, 70000)]
    assert [buffer.address % alignment for buffer in buffers] == [0] * len(buffers)


@pytest.mark.parametrize("huge_pages", [None, True, False])
def test_huge_pages_change_no_content(huge_pages: bool | None) -> None:
    pool = BufferPool(huge_pages=huge_pages)
    for nbytes in (100, 5000, 3 * MIB):
        with pool.acquire(nbytes, zero=True) as buffer:
            assert buffer.tobytes() == bytes(nbytes)
            buffer[:] = b"\xff" * nbytes


# ---- promise 5: what size classes waste

SIZES = sorted(
    {1 << power for power in range(23)}
    | {(1 << power) + more for power in range(6, 23) for more in (-1, 1, 63, 64, 65, 4095, 4097)}
    | {round(1.21**power) for power in range(80)}
    | set(range(1024, 4097, 61))
    | {32769, 36865, 40961, 65537, 69633}
)


@pytest.mark.parametrize("warm", [False, True], ids=["new", "from idle memory of other classes"])
def test_size_classes_waste_little(warm: bool) -> None:
    pool = BufferPool()
    if warm:
        for nbytes in SIZES:
            pool.acquire(nbytes).release()
    for nbytes in SIZES:
        with pool.acquire(nbytes) as buffer:
            capacity, address = buffer.capacity, buffer.address
        assert capacity >= nbytes
        assert address % 64 == 0
        if 1024 <= nbytes <= 4096 or nbytes > 32768:
            assert capacity - nbytes <= nbytes / 8, nbytes
        if nbytes >= 4096:
            assert (capacity % 4096, address % 4096) == (0, 0), nbytes
        if nbytes >= 2 * MIB:
            assert address % (2 * MIB) == 0, nbytes


def test_capacity_is_what_stats_call_in_use() -> None:
    pool = BufferPool()
    buffers = [pool.acquire(nbytes) for nbytes in SIZES[::7]]
    stats = pool.stats()
    assert stats.in_use == sum(buffer.capacity for buffer in buffers)
    assert stats.requested == sum(SIZES[::7])


# ---- the pool after its end, before its beginning, and twice


def test_a_closed_pool_lends_nothing_and_still_answers() -> None:
    pool = BufferPool(name="gone")
    buffer = pool.acquire(5000)
    pool.close()
    pool.close()
    for call in (pool.acquire, pool.reserve, pool.acquire_async):
        for nbytes in (0, 5000, "9999PB"):
            with nothing_changes(pool), pytest.raises((ValueError, OverflowError), match=r"gone|addressed"):
                call(nbytes)
    with pytest.raises(ValueError, match="gone"), pool:
        pass
    assert pool.trim() == 0
    buffer[:5] = b"still"
    assert (bytes(buffer[:5]), pool.stats().live, pool.closed) == (b"still", 1, True)
    buffer.release()
    assert pool.stats().reserved == 0


def test_with_closes() -> None:
    with BufferPool() as pool:
        pool.acquire(5000).release()
        assert pool.stats().idle > 0
    assert pool.closed
    assert pool.stats().idle == 0


def test_a_pool_that_was_never_initialised() -> None:
    pool = BufferPool.__new__(BufferPool)
    calls: list[Callable[[], object]] = [
        lambda: pool.acquire(1),
        lambda: pool.acquire(1, timeout=None),
        lambda: pool.acquire_async(1),
        lambda: pool.reserve(1),
        lambda: pool.reserve(1, 0),
        pool.trim,
        pool.stats,
        pool.close,
        pool.__enter__,
        lambda: pool.limit,
        lambda: setattr(pool, "limit", 5),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="never initialised"):
            call()
    assert "not initialised" in repr(pool)
    pool.__init__(limit=64)  # type: ignore[misc]
    assert len(pool.acquire(1)) == 1


def test_an_account_that_was_never_initialised() -> None:
    account = Account.__new__(Account)
    calls: list[Callable[[], object]] = [
        lambda: account.charge(1),
        lambda: account.discharge(0),
        lambda: account.charged(1).__enter__(),
        lambda: account.track(BufferPool(), 1),
        lambda: account.used,
        lambda: account.peak,
        lambda: account.limit,
        lambda: setattr(account, "limit", 1),
        lambda: account.children,
        account.tree,
        lambda: Account("child", parent=account),
        lambda: BufferPool(account=account),
    ]
    for call in calls:
        with pytest.raises(ValueError, match="never initialised"):
            call()
    assert "not initialised" in repr(account)


def test_nothing_is_initialised_twice() -> None:
    pool, account = BufferPool("1MiB", name="once"), Account("once", limit=100)
    buffer = pool.acquire(100)
    before = books(pool, account)
    with pytest.raises(RuntimeError, match="once"):
        pool.__init__(limit=5, name="twice")  # type: ignore[misc]
    with pytest.raises(RuntimeError, match="once"):
        account.__init__("twice")  # type: ignore[misc]
    with pytest.raises(TypeError):
        buffer.__init__()  # type: ignore[misc]
    assert books(pool, account) == before
    assert len(buffer) == 100


@pytest.mark.parametrize("argument", ["limit", "max_idle", "idle_timeout", "alignment"])
def test_a_pool_is_initialised_once_even_by_its_arguments(argument: str) -> None:
    class Number:
        def __index__(self) -> int:
            pool.__init__(limit="64KiB", name="inner", account=parent)  # type: ignore[misc]
            leases.append(pool.acquire(4096))
            return 64

    parent, leases = Account("parent"), list[Buffer]()
    pool = BufferPool.__new__(BufferPool)
    with pytest.raises(RuntimeError, match="inner"):
        pool.__init__(**{argument: Number()}, name="outer", account=parent)  # type: ignore[misc]
    assert (pool.name, pool.limit, pool.account.name) == ("inner", 64 * 1024, "inner")
    assert parent.children == (pool.account,)
    (lease,) = leases
    assert (lease.pool, pool.stats().live, parent.used) == (pool, 1, 4096)
    lease.release()
    pool.trim()
    assert (pool.stats().acquires, pool.stats().reserved, parent.used) == (1, 0, 0)


def test_an_account_is_initialised_once_even_by_its_limit() -> None:
    class Number:
        def __index__(self) -> int:
            account.__init__("inner", limit=200, parent=parent)  # type: ignore[misc]
            account.charge(100)
            return 50

    parent = Account("parent")
    account = Account.__new__(Account)
    with pytest.raises(RuntimeError, match="inner"):
        account.__init__("outer", limit=Number(), parent=parent)  # type: ignore[misc]
    assert (account.name, account.limit, account.used, parent.used) == ("inner", 200, 100, 100)
    assert parent.children == (account,)
    account.discharge(100)
    assert (account.used, parent.used) == (0, 0)


def test_a_failed_initialisation_may_be_repeated() -> None:
    pool = BufferPool.__new__(BufferPool)
    with pytest.raises(ValueError, match="-1"):
        pool.__init__(limit=-1)  # type: ignore[misc]
    pool.__init__()  # type: ignore[misc]
    pool.acquire(10).release()


def test_pools_can_be_subclassed() -> None:
    class Mine(BufferPool):
        pass

    with Mine("1MiB").acquire(10) as buffer:
        assert type(buffer.pool) is Mine
