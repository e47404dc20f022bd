"""Processes killed at any moment and disks that are full: what was acknowledged is there, what was refused changed nothing."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mempool

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL and limits of POSIX")

WRITER = """
import os, random, sys
import numpy as np
import mempool
path, seed = sys.argv[1], int(sys.argv[2])
draw = random.Random(seed)
array = mempool.open_array(path, "r+")
while True:
    step = draw.random()
    if step < 0.1:
        array.close()
        array = mempool.open_array(path, "r+")
    rows, count = len(array), draw.choice([1, 2, 40, 700])
    array.append(np.arange(rows * 2, (rows + count) * 2).reshape(-1, 2))
    if step > 0.3:
        array.flush()
        os.write(1, rows.to_bytes(8, "little") + (rows + count).to_bytes(8, "little"))
"""

CREATOR = """
import os, sys, itertools
import mempool
folder, seed = sys.argv[1:]
for number in itertools.count():
    mempool.create_array(os.path.join(folder, f"{seed}.{number}"), (1000 + number, 3), "f8").close()
    mempool.create_array(os.path.join(folder, "again"), (number, 2), "f8", overwrite=True).close()
    os.write(1, number.to_bytes(8, "little"))
"""


def killed(code: str, draw: random.Random, *args: object) -> bytes:
    """Run it, kill it after some acknowledgements and a little more; what it had said."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, args)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process:
        said = process.stdout.read(16 * draw.randrange(1, 12))
        for _ in range(draw.randrange(20_000)):
            pass
        process.send_signal(signal.SIGKILL)
        said += process.stdout.read()
    assert process.returncode == -signal.SIGKILL
    return said


@pytest.mark.slow
def test_killed_while_it_appends(tmp_path: Path) -> None:
    """Each round goes on where the one before was killed."""
    path, draw = tmp_path / "log.npy", random.Random(1)
    mempool.create_array(path, (0, 2), "<i8").close()
    for seed in range(40):
        said = killed(WRITER, draw, path, seed)
        promised = int.from_bytes(said[-(len(said) % 16) - 8 :][:8], "little") if len(said) >= 16 else 0
        wanted = np.load(path)
        assert len(wanted) >= promised > 0
        assert np.array_equal(wanted.reshape(-1), np.arange(wanted.size))
        with mempool.open_array(path) as array:
            assert np.array_equal(array.array, wanted)


@pytest.mark.slow
def test_killed_while_it_creates(tmp_path: Path) -> None:
    """A name is absent or stands for a whole file."""
    draw = random.Random(2)
    for seed in range(12):
        said = killed(CREATOR, draw, tmp_path, seed)
        assert {f"{seed}.{number}" for number in range(len(said) // 8)} <= set(os.listdir(tmp_path))
        for name in os.listdir(tmp_path):
            if name.endswith(".tmp"):
                assert name.startswith(".")
            else:
                shape = (
                    np.load(tmp_path / name, mmap_mode="r").shape if name != "again" else np.load(tmp_path / name).shape
                )
                assert name == "again" or shape == (1000 + int(name.split(".")[1]), 3)
            os.unlink(tmp_path / name)


@pytest.mark.parametrize("moment", ["before", "flushed", "reopened"])
def test_ends_without_closing(run_python: Callable[..., Any], tmp_path: Path, moment: str) -> None:
    path = tmp_path / "a.npy"
    run_python(
        """
        import mempool, os, sys
        array = mempool.create_array(sys.argv[1], (0, 2), "i4")
        array.append([[1, 2], [3, 4]])
        if sys.argv[2] != "before":
            array.flush()
        if sys.argv[2] == "reopened":
            array.append([[5, 6]])
        os._exit(0)
        """,
        path,
        moment,
    )
    rows = [] if moment == "before" else [[1, 2], [3, 4]]
    with mempool.open_array(path, "r+") as array:
        assert array.array.tolist() == rows
        array.append([[7, 8]])
    assert np.load(path).tolist() == [*rows, [7, 8]]


FULL = """
import errno, os, resource, sys
import numpy as np
import mempool
from mempool.accounting import root_account

path = sys.argv[1]
folder = os.path.dirname(path)
LIMIT = 100_000

def full(on):
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT if on else resource.RLIM_INFINITY, resource.RLIM_INFINITY))

def content():
    return {name: open(os.path.join(folder, name), "rb").read() for name in sorted(os.listdir(folder))}

def refused(function):
    before, used, files = content(), root_account().used, len(os.listdir("/proc/self/fd"))
    full(True)
    try:
        function()
    except OSError as error:
        assert error.errno == errno.EFBIG, error
        assert error.filename in (path, None) or os.fspath(path) in error.filename, error
    else:
        raise AssertionError("it was not refused")
    finally:
        full(False)
    assert content() == before
    assert (root_account().used, len(os.listdir("/proc/self/fd"))) == (used, files)
"""

FULL_CASES = {
    "append": """
        with mempool.create_array(path, (0, 5), "i4") as array:
            array.append(np.arange(5000, dtype="i4").reshape(-1, 5))
            array.flush()
            for rows in (90_000, 4000, 4000):
                refused(lambda: array.append(np.ones((rows, 5), "i4")))
                assert array.shape == (1000, 5) and not array.truncated
            array.append(np.ones((10, 5), "i4"))
        assert np.load(path).shape == (1010, 5)
        assert np.load(path)[:1000].tolist() == np.arange(5000).reshape(-1, 5).tolist()
        """,
    "resize": """
        with mempool.create_array(path, (0, 5), "i4") as array:
            array.append(np.arange(5000, dtype="i4").reshape(-1, 5))
            array.flush()
            refused(lambda: array.resize(50_000))
            assert array.array.tolist() == np.arange(5000).reshape(-1, 5).tolist()
            array.resize(2000)
        assert np.load(path).shape == (2000, 5)
        """,
    "resize over a tail": """
        np.save(path, np.arange(100))
        with open(path, "ab") as file:
            file.write(b"tail" * 1000)
        with mempool.open_array(path, "r+") as array:
            refused(lambda: array.resize(50_000))
            array.resize(101)
        assert np.load(path).tolist() == [*range(100), 0]
        """,
    "create_array": """
        refused(lambda: mempool.create_array(path, 50_000, "i4"))
        np.save(path, np.arange(5))
        refused(lambda: mempool.create_array(path, 50_000, "i4", overwrite=True))
        assert os.listdir(folder) == [os.path.basename(path)]
        mempool.create_array(path, 50_000, "i4", overwrite=True).close()
        """,
    "w+": """
        refused(lambda: mempool.open_array(path, "w+", dtype="i4", shape=50_000))
        np.save(path, np.arange(5))
        refused(lambda: mempool.open_array(path, "w+", dtype="i4", shape=50_000))
        mempool.open_array(path, "w+", dtype="i4", shape=50_000).close()
        """,
}


@pytest.mark.parametrize("case", FULL_CASES.values(), ids=FULL_CASES.keys())
def test_full_disk(run_python: Callable[..., Any], tmp_path: Path, case: str) -> None:
    import textwrap

    run_python(FULL + textwrap.dedent(case), tmp_path / "a.npy")


UNMAPPABLE = {
    "w+": 'mempool.open_array(path, "w+", dtype="f8", shape=1 << 20)',
    "w+ made": 'mempool.open_array(path + "2", "w+", dtype="f8", shape=1 << 20)',
    "create_array": 'mempool.create_array(path + "2", 1 << 20, "f8")',
    "create_array over": 'mempool.create_array(path, 1 << 20, "f8", overwrite=True)',
    "open_array": 'mempool.open_array(large, "r+")',
}


@pytest.mark.parametrize("limit", ["account", "addresses"])
@pytest.mark.parametrize("call", UNMAPPABLE.values(), ids=UNMAPPABLE.keys())
@pytest.mark.nosan
def test_what_cannot_be_mapped_is_not_made(
    run_python: Callable[..., Any], tmp_path: Path, call: str, limit: str
) -> None:
    """A failed call changes nothing: neither the file that is there, nor one that was not."""
    code = """
        import os, resource, sys
        import numpy as np
        import mempool
        from mempool.accounting import root_account
        path, large = sys.argv[1], sys.argv[1] + ".large.npy"
        np.save(path, np.arange(1000.0))
        np.save(large, np.arange(1 << 20))
        folder = os.path.dirname(path)
        content = lambda: {name: open(os.path.join(folder, name), "rb").read() for name in sorted(os.listdir(folder))}
        before, files = content(), len(os.listdir("/proc/self/fd"))
        if sys.argv[2] == "account":
            root_account().limit = 1 << 20
        else:
            pages = int(open("/proc/self/statm").read().split()[0])
            resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (4 << 20), resource.RLIM_INFINITY))
        try:
            CALL
        except MemoryError:
            pass
        else:
            raise AssertionError("it was not refused")
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert root_account().used == 0
        assert len(os.listdir("/proc/self/fd")) == files
        changed = [name for name, value in content().items() if value != before.get(name)]
        assert not changed, changed
        """
    run_python(code.replace("CALL", call), tmp_path / "a.npy", limit)


@pytest.mark.nosan
def test_fewer_addresses_than_wished_for(run_python: Callable[..., Any], tmp_path: Path) -> None:
    """Room to grow is halved until the OS has it; growth beyond is refused, and costs nothing."""
    run_python(
        """
        import resource, sys
        import numpy as np
        import mempool
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (256 << 20), resource.RLIM_INFINITY))
        with mempool.create_array(sys.argv[1], 10, "u1") as array:
            assert 1 << 20 < array.max_rows < 256 << 20
            most = array.max_rows
            try:
                array.resize(most + 1)
            except ValueError as error:
                assert str(most) in str(error)
            array.resize(most)
            array[-1] = 7
        with mempool.open_array(sys.argv[1]) as array:
            assert (len(array), array[-1]) == (most, 7)
        """,
        tmp_path / "a.npy",
    )
