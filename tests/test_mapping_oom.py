"""Python runs out of memory at each allocation of a call on a mapped array in turn: an error at most, nothing half done."""

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

testcapi = pytest.importorskip("_testcapi")
if not hasattr(testcapi, "set_nomemory"):
    pytest.skip("this interpreter cannot fail allocations", allow_module_level=True)

PRELUDE = """
import _testcapi, gc, os, sys, warnings
import numpy as np
import mempool
from mempool.accounting import root_account

folder = sys.argv[1]
path, new, log = (os.path.join(folder, name) for name in ("a.npy", "new.npy", "log.npy"))
mempool.create_array(log, (0, 3), "i4").close()
kept = mempool.open_array(log, "r+")
memory = mempool.anonymous_array((0, 3), "i4", max_rows=99)
RECORD = np.dtype([("a", "u1"), ("b", ">i2", 3)])  # NumPy itself crashes if it makes one without memory
gc.disable()
sys.unraisablehook = lambda unraisable: None
warnings.simplefilter("ignore")

def attempt(function, nth):
    _testcapi.set_nomemory(nth, nth + 1)
    try:
        function()
    except Exception as error:
        return False
    finally:
        _testcapi.remove_mem_hooks()
    return True

def descriptors():
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0

def reset():
    if os.path.exists(new):
        os.unlink(new)
    kept.resize(0)
    memory.resize(0)

def each_allocation(function, most=700):
    reset()
    function()
    reset()
    gc.collect()
    used, files, names = root_account().used, descriptors(), sorted(os.listdir(folder))
    nth, clean = 1, 0
    while clean < 5:
        done = attempt(function, nth)
        for array in (kept, memory):
            assert len(array) in (0, 1, 2) and not array.closed and not array.truncated, (nth, array)
            assert (array.array == 7).all(), nth
        reset()
        gc.collect()
        assert root_account().used == used, (nth, root_account().tree())
        assert descriptors() == files, nth
        left = sorted(name for name in os.listdir(folder) if not name.endswith(".tmp"))  # to take it away needs memory, too
        assert left == names, (nth, left)
        clean = clean + 1 if done else 0
        nth += 1
        assert nth < most, "it never ran through"
    with mempool.open_array(path) as array:
        assert array.array.tolist() == [[1, 2, 3], [4, 5, 6]]
"""

CALLS = {
    "open": "mempool.open_array(path)",
    "open and close": "mempool.open_array(path, 'r+').close()",
    "raw": "mempool.open_array(path, 'c', dtype='u1', shape=(3, 4), offset=5, order='F').close(revoke=True)",
    "records": "mempool.open_array(path, dtype=RECORD, offset=1, shape=4)",
    "refused": """
        for given in ({'dtype': 'f8'}, {'shape': 5}, {'order': 'Q'}, {'offset': 99999}):
            try: mempool.open_array(path, **given)
            except (ValueError, OSError): pass
        """,
    "w+": "mempool.open_array(new, 'w+', dtype='u1', shape=500)",
    "create": "mempool.create_array(new, (5, 3), 'f8')",
    "create F": "mempool.create_array(new, (5, 3), '>f8', order='F', overwrite=True)",
    "anonymous": "mempool.anonymous_array((5, 3), 'f8', max_rows=7, shared=True)",
    "views": "a = mempool.open_array(path, 'c'); keep = [a.array, memoryview(a), a[0], a[1:], np.asarray(a)]; a[0] = 5; a.close()",
    "properties": "a = mempool.open_array(path); a.shape, a.strides, a.nbytes, repr(a), len(a), a.max_rows, a.closed",
    "append": "kept.append([7, 7, 7]); kept.append(np.full((1, 3), 7.0).astype('>i4'))",
    "append to memory": "memory.append([7, 7, 7]); memory.append([[7, 7, 7]])",
    "append refused": """
        for rows in ([1], [[1, 2, 3, 4]], 'abc'):
            try: memory.append(rows)
            except (ValueError, TypeError): pass
        """,
    "resize": "kept.append([7, 7, 7]); kept.resize(1); kept.resize(0); kept.flush()",
    "blocks": "a = mempool.open_array(path); list(a.iter_blocks(1)); a.close()",
    "advice": "a = mempool.open_array(path); a.advise('random'); a.prefetch(0, 1); a.resident(); a.flush(); a.lock(); a.unlock()",
    "guard": "mempool.guard_truncation()",
    "closed": """
        a = mempool.open_array(path); a.close()
        try: a.array
        except ValueError: pass
        """,
}


@pytest.mark.parametrize("name", CALLS)
def test_each_allocation_fails_once(run_python: Callable[..., Any], tmp_path: Path, name: str) -> None:
    np.save(tmp_path / "a.npy", np.array([[1, 2, 3], [4, 5, 6]]))
    body = textwrap.indent(textwrap.dedent(CALLS[name]), "    ")
    run_python(f"{PRELUDE}\ndef call():\n{body}\neach_allocation(call, 6000)\n", tmp_path, timeout=120)
