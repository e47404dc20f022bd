"""What is no array: hostile headers, wrong arguments, strange files. Refused in words, at once, and nothing changes."""

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mempool
from mapping_kit import charged

MAGIC = b"\x93NUMPY"
MODES = ["r", "r+", "c"]


@pytest.fixture(autouse=True, scope="module")
def no_garbage_of_others() -> None:
    gc.collect()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    np.save(tmp_path / "a.npy", np.arange(12, dtype="<i4").reshape(4, 3))
    return tmp_path / "a.npy"


def header(text: str, version: int = 1, length: int | None = None) -> bytes:
    content = text.encode("utf8" if version == 3 else "latin1") + b"\n"
    return MAGIC + bytes([version, 0]) + (length or len(content)).to_bytes(2 if version == 1 else 4, "little") + content


def entry(descr: str = "'<i4'", order: str = "False", shape: str = "(3,)") -> str:
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}"


def deep(count: int, opening: str = "[", closing: str = "]") -> str:
    return opening * count + closing * count


HEADERS = {
    "code": entry("__import__('os').abort()"),
    "code in shape": entry(shape="(__import__('os').abort(),)"),
    "lambda": entry("(lambda: 1)()"),
    "arithmetic": entry(shape="(1+2,)"),
    "power": entry(shape="(9**9**9,)"),
    "repetition": entry("'a'*10**9"),
    "f-string": entry("f'{1}'"),
    "adjacent strings": entry("'<i' '4'"),
    "comment": entry() + " # more",
    "second statement": entry() + "; 5",
    "ellipsis": entry(shape="(...,)"),
    "set": "{'descr', 'shape'}",
    "list": "['descr', '<i4']",
    "no dict": "5",
    "nothing": "",
    "no end": entry()[:-3],
    "missing key": "{'descr': '<i4', 'shape': (3,)}",
    "other key": "{'descr': '<i4', 'fortran_order': False, 'shape': (3,), 'more': 1}",
    "twice": "{'descr': '<i4', 'descr': '<i8', 'fortran_order': False, 'shape': (3,)}",
    "negative": entry(shape="(-3,)"),
    "float": entry(shape="(3.0,)"),
    "exponent": entry(shape="(1e1,)"),
    "hexadecimal": entry(shape="(0x3,)"),
    "underscore": entry(shape="(1_0,)"),
    "leading zero": entry(shape="(03,)"),
    "text": entry(shape="('3',)"),
    "True": entry(shape="(True,)"),
    "no tuple": entry(shape="(3)"),
    "list of extents": entry(shape="[3]"),
    "nested shape": entry(shape="((3,),)"),
    "2**64": entry(shape="(18446744073709551616,)"),
    "2**63": entry(shape="(9223372036854775808,)"),
    "2**63 of nothing": entry(shape="(9223372036854775808, 0)"),
    "huge": entry(shape="(1000000000000000,)"),
    "overflow": entry(shape="(4294967296, 4294967296)"),
    "overflow of bytes": entry(shape="(4611686018427387904,)"),
    "overflow to a little": entry(shape="(4611686018427387905, 4)"),
    "many digits": entry(shape=f"({'9' * 60_000},)"),
    "too many axes": entry(shape=f"({'1,' * 65})"),
    "order text": entry(order="'C'"),
    "order number": entry(order="0"),
    "objects": entry("'|O'"),
    "objects, short": entry("'O'"),
    "objects in a record": entry("[('a', '<i4'), ('b', '|O')]"),
    "objects in a sub-array": entry("('|O', (2,))"),
    "no dtype": entry("'nonsense'"),
    "unknown letter": entry("'<q99'"),
    "empty dtype": entry("''"),
    "no bytes": entry("'|V0'"),
    "no bytes of text": entry("'<U0'"),
    "number as dtype": entry("5"),
    "None as dtype": entry("None"),
    "empty list": entry("[]"),
    "list of lists": entry("[[], []]"),
    "list of names": entry("['a', 'b']"),
    "short field": entry("[('a',)]"),
    "same names": entry("[('a', '<i4'), ('a', '<i4')]"),
    "number as a name": entry("[(5, '<i4')]"),
    "bytes as dtype": entry("b'<i4'"),
    "huge sub-array": entry("[('a', '<i4', (2147483647, 2147483647))]"),
    "huge item": entry("'|V9999999999'"),
    "bad escape": entry("'\\\\xZZ'"),
    "deep": entry(deep(33)),
    "very deep": entry(deep(20_000)),
    "deep tuples": entry(deep(20_000, "(", ",)")),
    "deep shape": entry(shape=deep(20_000, "(", ",)")),
    "open for ever": "{'descr': " + "[" * 60_000,
    "string for ever": "{'descr': '" + "x" * 60_000,
    "NUL": entry("'<i4\0'"),
    "newline": entry("'<i\n4'"),
}


def refused(path: Path, *modes: str, error: Any = mempool.MappingError, **given: Any) -> None:
    """As said, and nothing changes: not the file, not the books."""
    before, used = path.read_bytes(), charged()
    for mode in modes or MODES:
        with pytest.raises(error) as caught:
            mempool.open_array(path, mode, **given)  # type: ignore[arg-type]
        assert "a.npy" in str(caught.value)
        assert len(str(caught.value)) < 2000
    assert path.read_bytes() == before
    assert charged() == used


@pytest.mark.parametrize("version", [1, 2, 3])
@pytest.mark.parametrize("text", HEADERS.values(), ids=HEADERS.keys())
def test_hostile_headers(path: Path, text: str, version: int) -> None:
    path.write_bytes(header(text, version) + bytes(64))
    refused(path)


def test_truncated_at_each_byte(path: Path) -> None:
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        with pytest.raises(mempool.MappingError, match=r"a\.npy"):
            mempool.open_array(path)
    for size in range(128, len(content)):
        path.write_bytes(content[:size])
        refused(path, "r+", "c")


def test_each_byte_changed(path: Path) -> None:
    """Another array, or an error that was meant."""
    content = path.read_bytes()
    for at in range(80):
        for byte in (0, 32, 39, 48, 57, 76, 255, content[at] ^ 1):
            path.write_bytes(content[:at] + bytes([byte]) + content[at + 1 :])
            try:
                with mempool.open_array(path) as array:
                    assert array.nbytes <= 48
                    array.array.tobytes()
            except mempool.MappingError:
                pass


@pytest.mark.parametrize("version", [b"\0\0", b"\4\0", b"\1\1", b"\2\1", b"\xff\xff"])
def test_unknown_versions(path: Path, version: bytes) -> None:
    path.write_bytes(MAGIC + version + path.read_bytes()[8:])
    refused(path)


@pytest.mark.parametrize("length", [1, 0xFFFF, 1 << 24, (1 << 24) + 1, 0xFFFFFFFF])
def test_lengths_that_lie(path: Path, length: int) -> None:
    for version in (1, 2, 3):
        if length <= 0xFFFF or version > 1:
            path.write_bytes(header(entry(), version, length) + bytes(64))
            refused(path)


BOMBS = {
    "fields": ("[" + "('a','<f8')," * 800_000 + "]", 10),
    "brackets": ("[" + "[]," * 3_000_000 + "]", 10),
    "numbers": ("[" + "1," * 4_500_000 + "]", 10),
    "commas": ("'" + "i4," * 3_000_000 + "i4'", 10),
}


@pytest.mark.nosan
@pytest.mark.parametrize("name", BOMBS)
def test_bombs(run_python: Callable[..., Any], path: Path, name: str) -> None:
    """A header of 10 MB takes a few seconds at most, and a fair multiple of its size."""
    path.write_bytes(header(entry(BOMBS[name][0]), 2) + bytes(64))
    run_python(
        """
        import resource, sys
        import mempool, numpy
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (400 << 20), resource.RLIM_INFINITY))
        resource.setrlimit(resource.RLIMIT_CPU, (8, 8))
        try:
            mempool.open_array(sys.argv[1])
        except mempool.MappingError:
            pass
        """,
        path,
    )


def test_wide_tables_are_read(path: Path) -> None:
    """NumPy refuses them by their length; here is a real one of 5000 columns."""
    dtype = np.dtype([(f"column {i}", "<f8") for i in range(5000)])
    mempool.create_array(path, 10, dtype, overwrite=True).close()
    with mempool.open_array(path) as array:
        assert array.dtype == dtype


# ---- files


def test_shorter_than_its_header_says(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)
    refused(path)
    path.write_bytes(header(entry(shape="(1000,)")) + bytes(3999))
    refused(path)


def test_shorter_than_asked_for(path: Path) -> None:
    path.write_bytes(bytes(100))
    for given in (
        {"shape": 101},
        {"shape": 100, "offset": 1},
        {"shape": (10, 11)},
        {"offset": 101},
        {"shape": 0, "offset": 101},
    ):
        refused(path, dtype="u1", **given)
    refused(path, error=ValueError, dtype="<i4", offset=1)
    refused(path, error=ValueError, dtype="V3")


def test_no_header(path: Path) -> None:
    for content in (b"", b"\x93", b"\x93NUMPX\1\0", b"PK\3\4" + bytes(100), b"x" * 5000):
        path.write_bytes(content)
        refused(path)


@pytest.mark.parametrize("mode", [*MODES, "w+"])
def test_no_regular_files(tmp_path: Path, mode: Any) -> None:
    given: dict[str, Any] = {"dtype": "u1", "shape": 10}
    with pytest.raises(IsADirectoryError, match=tmp_path.name):
        mempool.open_array(tmp_path, mode, **given)
    if mode != "w+":
        with pytest.raises(FileNotFoundError, match="none"):
            mempool.open_array(tmp_path / "none", mode, **given)
    with pytest.raises(FileNotFoundError, match="none"):
        mempool.open_array(tmp_path / "none" / "a", mode, **given)
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        for device in (tmp_path / "fifo", "/dev/null", "/dev/zero"):
            with pytest.raises((mempool.MappingError, OSError), match=Path(device).name):
                mempool.open_array(device, mode, **given)
        assert sorted(os.listdir(tmp_path)) == ["fifo"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="must be root to become somebody else")
def test_permissions(run_python: Callable[..., Any], path: Path) -> None:
    folder = path.parent
    os.chmod(folder, 0o755)
    (folder / "secret.npy").write_bytes(path.read_bytes())
    os.chmod(folder / "secret.npy", 0)
    os.chmod(path, 0o444)
    for parent in list(folder.parents)[:-1]:
        if not parent.stat().st_mode & 0o001:
            pytest.skip("others cannot come so far")
    run_python(
        """
        import os, sys
        import mempool
        folder = sys.argv[1]
        os.seteuid(65534)
        secret = folder + "/secret.npy"
        calls = [lambda mode=mode: mempool.open_array(secret, mode, dtype="u1", shape=5) for mode in ("r", "r+", "w+", "c")]
        calls += [lambda: mempool.open_array(folder + "/a.npy", "r+")]
        calls += [lambda: mempool.create_array(folder + "/new.npy", 5, "u1")]
        calls += [lambda: mempool.create_array(folder + "/a.npy", 5, "u1", overwrite=True)]
        calls += [lambda: mempool.open_array(folder + "/new.npy", "w+", dtype="u1", shape=5)]
        for call in calls:
            try:
                call()
            except PermissionError as error:
                assert error.filename.startswith(folder) and ".tmp" not in str(error), error
            else:
                raise AssertionError("it was let in")
        assert mempool.open_array(folder + "/a.npy", "c").shape == (4, 3)
        """,
        folder,
    )
    assert sorted(os.listdir(folder)) == ["a.npy", "secret.npy"]


# ---- arguments


class Evil:
    def __repr__(self) -> str:
        return "Evil()"

    def __index__(self) -> int:
        raise ZeroDivisionError

    def __fspath__(self) -> str:
        raise ZeroDivisionError


ARGUMENTS: list[tuple[dict[str, Any], Any]] = [
    ({"shape": -1}, ValueError),
    ({"shape": (2, -1)}, ValueError),
    ({"shape": (1 << 32, 1 << 32)}, ValueError),
    ({"shape": 1 << 70}, ValueError),
    ({"shape": (1 << 62, 4, 0)}, ValueError),
    ({"shape": (1,) * 65}, ValueError),
    ({"shape": 2.5}, TypeError),
    ({"shape": "ab"}, TypeError),
    ({"shape": (1, None)}, TypeError),
    ({"shape": Evil()}, ZeroDivisionError),
    ({"dtype": "nonsense"}, TypeError),
    ({"dtype": object}, ValueError),
    ({"dtype": [("a", "O")]}, ValueError),
    ({"dtype": "V0"}, ValueError),
    ({"dtype": "U"}, ValueError),
    ({"dtype": 5}, TypeError),
    ({"order": "A"}, ValueError),
    ({"order": "c"}, ValueError),
    ({"order": None}, ValueError),
    ({"order": 0}, ValueError),
]
OPEN_ONLY: list[tuple[dict[str, Any], Any]] = [
    ({"offset": -1}, ValueError),
    ({"offset": 1 << 70}, ValueError),
    ({"offset": 1.0}, TypeError),
    ({"offset": "1"}, TypeError),
    ({"offset": None}, TypeError),
    ({"offset": Evil()}, ZeroDivisionError),
    ({"dtype": ("<i4", (2,)), "shape": None}, ValueError),
]


@pytest.mark.parametrize(("given", "error"), ARGUMENTS + OPEN_ONLY, ids=repr)
@pytest.mark.parametrize("mode", [*MODES, "w+"])
def test_arguments_of_open(path: Path, mode: Any, given: dict[str, Any], error: Any) -> None:
    before = path.read_bytes()
    with pytest.raises(error):
        mempool.open_array(path, mode, **{"dtype": "u1", "shape": 4} | given)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("given", "error"), ARGUMENTS, ids=repr)
def test_arguments_of_create(path: Path, given: dict[str, Any], error: Any) -> None:
    before, call = path.read_bytes(), {"dtype": "u1", "shape": 4} | given
    with pytest.raises(error):
        mempool.create_array(path, **call, overwrite=True)
    with pytest.raises(error):
        mempool.create_array(path.with_name("b"), **call)
    call.pop("order", None)
    if "order" not in given:
        with pytest.raises(error):
            mempool.anonymous_array(**call)
    assert (path.read_bytes(), os.listdir(path.parent)) == (before, ["a.npy"])


@pytest.mark.parametrize("max_rows", [-1, 3, 1 << 70, 2.0, "5", Evil()])
def test_max_rows_that_are_refused(max_rows: Any) -> None:
    used = charged()
    with pytest.raises((ValueError, TypeError, ZeroDivisionError)):
        mempool.anonymous_array((4, 3), "u1", max_rows=max_rows)
    with pytest.raises(ValueError, match="dimension"):
        mempool.anonymous_array((), "u1", max_rows=5)
    assert charged() == used


@pytest.mark.parametrize("shared", ["no", 1, None, []])
def test_shared_is_true_or_false(shared: Any) -> None:
    """As every other flag here."""
    with pytest.raises(TypeError, match="shared"):
        mempool.anonymous_array(4, "u1", shared=shared)


@pytest.mark.parametrize("mode", ["", "w", "a", "rb", "r ", "R", "readonly", b"r", None, 0, ["r"]])
def test_modes_that_are_none(path: Path, mode: Any) -> None:
    with pytest.raises(ValueError, match=r"mode must be one of r, c, r\+, w\+"):
        mempool.open_array(path, mode)


@pytest.mark.parametrize("wrong", [3, None, 1.5, ["a"], Evil()])
def test_paths_that_are_none(wrong: Any) -> None:
    for call in (lambda: mempool.open_array(wrong), lambda: mempool.create_array(wrong, 3, "u1")):
        with pytest.raises((TypeError, ZeroDivisionError)):
            call()


def test_paths_that_cannot_be(tmp_path: Path) -> None:
    for call in (mempool.open_array, lambda path: mempool.create_array(path, 3, "u1")):
        with pytest.raises(ValueError, match="null"):
            call(f"{tmp_path}/a\0b")
        with pytest.raises(OSError, match="x" * 300):
            call(tmp_path / ("x" * 300))
        with pytest.raises(OSError):  # noqa: PT011
            call("")
    assert os.listdir(tmp_path) == []


def test_what_must_be_said(path: Path) -> None:
    for given in ({}, {"dtype": "u1"}, {"shape": 3}):
        with pytest.raises(ValueError, match="needs dtype and shape"):
            mempool.open_array(path, "w+", **given)  # type: ignore[arg-type]
    for shape, dtype in ((None, "u1"), (3, None)):
        with pytest.raises(TypeError, match="must be given"):
            mempool.create_array(path, shape, dtype, overwrite=True)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="must be given"):
            mempool.anonymous_array(shape, dtype)  # type: ignore[arg-type]


@pytest.mark.skipif(sys.platform == "win32", reason="has no such tool")
def test_errors_are_of_their_kinds(path: Path) -> None:
    assert issubclass(mempool.MappingError, mempool.MempoolError)
    assert issubclass(mempool.MappingError, OSError)
    subprocess.run(["truncate", "-s", "100", str(path)], check=True)
    with pytest.raises(OSError, match=r"a\.npy") as caught:
        mempool.open_array(path)
    assert type(caught.value) is mempool.MappingError
