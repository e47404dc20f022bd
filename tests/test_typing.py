"""The types that checkers see are those of the code that runs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import mempool
import mempool._core

TESTS = Path(__file__).parent
PACKAGE = Path(mempool.__file__).parent

# What the stub leaves out, or the runtime does not show: the buffer protocol before 3.12, what Cython adds, the base classes that a
# stream is registered with, the name that somebody may give it, and the policies of caches, which nobody makes by hand.
DIFFERENT = r"""
mempool\._core\.(Buffer|SlabAllocator|MappedArray|_Shared\w+)\.__(release_)?buffer__
mempool\._core\.(Buffer|_AsyncLease|MappedArray)\.__init__
mempool\._core\.(LEAK_MODES|__test__)
mempool\._core\.BytesStream\.name
mempool\._core\.BytesStream
mempool\.cache\._policies\.(Contents|Lookup|Order|Policy|Walk|Lru|Fifo|Random|Lfu|Sieve|S3Fifo|Soonest|TinyLfu|__test__)
mempool\.cache\._policies\.Table\.__class_getitem__
mempool\.cache\._policies\.SketchProbe(\.__init__)?
"""


def run_tool(module: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "MYPYPATH": str(PACKAGE.parent),
        "PYTHONPATH": paths,
        "MYPY_CACHE_DIR": str(cwd / "cache"),
    }
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=1200)


@pytest.mark.slow
@pytest.mark.nosan
def test_examples(tmp_path: Path) -> None:
    """`accepted.py` has no error, `refused.py` only those that it expects."""
    pytest.importorskip("mypy")
    done = run_tool(
        "mypy", "--strict", "--enable-error-code=ignore-without-code", "--config-file=", TESTS / "typing", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.nosan
def test_a_checker_can_fail(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "wrong.py").write_text("import mempool\nmempool.acquire(1.5)\n")
    done = run_tool("mypy", "--strict", "--config-file=", tmp_path / "wrong.py", cwd=tmp_path)
    assert "arg-type" in done.stdout


@pytest.mark.slow
@pytest.mark.nosan
@pytest.mark.parametrize("module", ["mempool._core", "mempool.cache._policies"])
def test_the_stub_is_the_runtime(tmp_path: Path, module: str) -> None:
    pytest.importorskip("mypy.stubtest")
    (tmp_path / "allowed").write_text(DIFFERENT)
    done = run_tool(
        "mypy.stubtest", module, "--concise", "--allowlist=allowed", "--ignore-unused-allowlist", cwd=tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
