"""What the documentation shows works, what it links to exists, and the reference leaves nothing out.

Run by hand, `python tests/test_docs.py docs/buffers.md` shows which examples of a page fail.
"""

import doctest
import gc
import inspect
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages
from types import ModuleType

import pytest
from _pytest.mark import ParameterSet

import mempool

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINKING = [*PAGES, *ROOT.glob("csrc/*.md"), *ROOT.glob("benchmarks/*.md")]
MODULES = [mempool, *(import_module(found.name) for found in walk_packages(mempool.__path__, "mempool."))]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```[ ]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)

# Pages show the figures of a common machine: POSIX, pages of 4 KiB.
common_machine = pytest.mark.skipif(
    not hasattr(os, "preadv") or mmap.PAGESIZE != 4096, reason="the pages show preadv and figures of 4 KiB pages"
)


def needs_linux(name: str) -> None:
    """Skip what shows shared memory where there is none."""
    if "shared" in name and not hasattr(os, "memfd_create"):
        pytest.skip("shared memory needs Linux")


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


# What these show is read off RSS and malloc, which a sanitizer replaces.
MEASURING = {"docs/cleanup.md", "docs/finding-leaks.md", "mempool.accounting.leaks.detect_leaks"}


def example(name: str, *values: object) -> ParameterSet:
    return pytest.param(*values, id=name, marks=[pytest.mark.nosan] if name in MEASURING else [])


RUNNING = [example(name_of(page), page) for page in PAGES if ">>> " in page.read_text(encoding="utf-8")]


def without_code(text: str) -> str:
    """The prose of a page: examples are full of brackets that are no links, and of comments that are no headings."""
    return FENCE.sub("", text)


# ---- the pages ----


def page_as_doctest(page: Path) -> doctest.DocTest:
    """All `python` blocks of a page as one doctest, each line where it stands in the page."""
    text = page.read_text(encoding="utf-8")
    lines = [""] * text.count("\n")
    for block in FENCE.finditer(text):
        if block[1] == "python":
            first = text.count("\n", 0, block.start(2))
            code = block[2].splitlines()
            lines[first : first + len(code)] = code
    return doctest.DocTestParser().get_doctest("\n".join(lines), {}, page.name, str(page), 0)


def run_page(page: Path) -> int:
    """Run the examples of a page; how many failed."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(page_as_doctest(page))
    return runner.summarize(verbose=False).failed


@common_machine
@pytest.mark.parametrize("page", RUNNING)
def test_examples_of_a_page_run(page: Path, tmp_path: Path) -> None:
    """In an interpreter and a folder of its own: pages fork, warn, and change settings."""
    needs_linux(page.name)
    assert page_as_doctest(page).examples
    command = [sys.executable, "-W", "error", __file__, str(page)]
    environment = {**os.environ, "PYTHONPATH": str(Path(mempool.__file__).resolve().parent.parent)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_are_examples(page: Path) -> None:
    """A block without a prompt would look as if it were tested."""
    blocks = [block[2] for block in FENCE.finditer(page.read_text(encoding="utf-8")) if block[1] == "python"]
    assert [block for block in blocks if ">>> " not in block] == []


# ---- the docstrings ----


def docstrings() -> Iterator[tuple[str, str]]:
    """Every docstring of the package, compiled ones too, which doctest's own finder does not all see."""
    for module in MODULES:
        yield module.__name__, module.__doc__ or ""
        for name, value in vars(module).items():
            if is_own(value, module):
                yield f"{module.__name__}.{name}", value.__doc__ or ""
                yield from docstrings_of_class(value)


def is_own(value: object, module: ModuleType) -> bool:
    described = inspect.isclass(value) or inspect.isroutine(value)
    return described and getattr(value, "__module__", None) == module.__name__


def docstrings_of_class(cls: object) -> Iterator[tuple[str, str]]:
    if not inspect.isclass(cls):
        return
    for name, value in vars(cls).items():
        if inspect.isroutine(value) or inspect.isdatadescriptor(value):
            yield f"{cls.__module__}.{cls.__qualname__}.{name}", value.__doc__ or ""


EXAMPLES = [(name, text) for name, text in docstrings() if ">>>" in text]


@pytest.mark.parametrize(("name", "text"), [example(name, name, text) for name, text in EXAMPLES])
def test_examples_of_a_docstring_run(name: str, text: str) -> None:
    needs_linux(name)
    module = next(module for module in reversed(MODULES) if name.startswith(module.__name__))
    test = doctest.DocTestParser().get_doctest(inspect.cleandoc(text), dict(vars(module)), name, None, None)
    runner = doctest.DocTestRunner()
    shown: list[str] = []
    gc.collect()  # some show what is lent in all, and what other tests left would go back in the middle
    runner.run(test, out=shown.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(shown)


def test_examples_of_compiled_docstrings_are_found() -> None:
    names = {name for name, _ in EXAMPLES}
    assert {
        f"mempool._core.{name}" for name in ("Buffer", "BufferPool", "Account", "SlabAllocator", "MappedArray")
    } <= names


# ---- the reference ----


def public(value: object) -> set[str]:
    return {name for name in dir(value) if not name.startswith("_")}


REFERENCE = ROOT / "docs" / "reference.md"
BATCHES = {"adaptive_batches", "AsyncBatches", "Batches", "BatchSizer", "waited", "aclose"}.union(
    public(mempool.pressure.BatchSizer)
)
HEALTH = {"health", "HealthCheck", "check", "alerts", "recommend", "profile"}.union(
    *(
        public(cls)
        for cls in (mempool.pressure.Alerts, mempool.pressure.Health, mempool.pressure.Issue, mempool.pressure.Settings)
    )
)
CLEANUP = {"cleanup", "process_schedule", "register", "unregister"}.union(
    *(
        public(item) | {item.__name__}
        for item in (
            mempool.pressure.CleanupReport,
            mempool.pressure.CleanupSchedule,
            mempool.pressure.CleanupStep,
            mempool.pressure.ItemStats,
            mempool.pressure.Shrinkable,
            mempool.pressure.Shrinker,
        )
    )
)

KEYS = {"hashkey", "typedkey", "methodkey", "typedmethodkey"}
PRESSURE = {"default_monitor", "Level"}.union(
    *(
        {name for name in public(item) if item.__module__ not in {"mempool.pressure.trend"}} | {item.__name__}
        for item in (
            mempool.pressure.CallbackStats,
            mempool.pressure.Forecast,
            mempool.pressure.MonitorStats,
            mempool.pressure.PressureEvent,
            mempool.pressure.PressureMonitor,
            mempool.pressure.Registration,
            mempool.pressure.Simulation,
            mempool.pressure.SourceStatus,
        )
    )
)
CACHES = {"__missing__", *mempool.cache.Cause.__members__}.union(
    *(
        public(cls) - {*dir(int), *dir(tuple)} | {cls.__name__}
        for cls in (
            mempool.cache.Cache,
            mempool.cache.CacheFull,
            mempool.cache.CacheStats,
            mempool.cache.Cause,
            mempool.cache.Namespace,
            mempool.cache.NamespaceKey,
        )
    )
) - {"add_note", "args", "with_traceback"}
RECLAIMING = {"ReclaimerStats", "gc_pressure", "reclaimers", "register_reclaimer"}
FUNCTIONS = {"detect_leaks", "measure", "take_snapshot", "Pattern"}  # and what has the methods of str
LEAKS = FUNCTIONS | {
    *(
        "Culprit",
        "Figures",
        "GrowthReport",
        "LeakDetector",
        "LeakReport",
        "MemoryDelta",
        "Snapshot",
        "Tracker",
        "TrackerStats",
    ),
}


@pytest.mark.skipif(not REFERENCE.exists(), reason="the documentation is not here")
@pytest.mark.parametrize(
    ("section", "names"),
    [
        ("Top level", set(mempool.__all__)),
        ("BufferPool", public(mempool.BufferPool)),
        ("Buffer", public(mempool.Buffer)),
        ("PoolStats", public(mempool.PoolStats) | public(mempool.SizeClassStats)),
        ("SharedPool", public(mempool.shared.SharedPool)),
        ("SharedBuffer", public(mempool.shared.SharedBuffer)),
        ("SharedStats", public(mempool.shared.SharedStats)),
        ("Account", public(mempool.Account) | {"root_account"}),
        ("MemoryUsage", public(mempool.accounting.MemoryUsage) | {"memory_usage"}),
        ("MemoryGuard", public(mempool.accounting.MemoryGuard) | {"memory_limit"}),
        ("mempool.accounting", RECLAIMING | public(mempool.accounting.Registration)),
        (
            "Leaks and growth",
            LEAKS | set().union(*(public(getattr(mempool.accounting, name)) for name in LEAKS - FUNCTIONS)),
        ),
        ("SlabAllocator", public(mempool.SlabAllocator)),
        ("SlabStats", public(mempool.SlabStats)),
        ("MappedArray", public(mempool.MappedArray)),
        ("RingBuffer", public(mempool.RingBuffer)),
        ("Arena", public(mempool.Arena)),
        ("mempool.io", set(mempool.io.__all__) | public(mempool.io.ChunkIterator)),
        ("BytesStream", public(mempool.io.BytesStream)),
        ("mempool.numpy", set(mempool.numpy.__all__)),
        ("mempool.aio", set(mempool.aio.__all__) | public(mempool.aio.PooledReader)),
        ("Cleanup", CLEANUP),
        ("Errors", set(mempool.errors.__all__) | {"SegmentLost"}),
        ("mempool.pickle", set(mempool.pickle.__all__)),
        ("Batches", BATCHES),
        ("Health", HEALTH),
        ("Caches", CACHES),
        ("Loading", {"get_or_load", "cached", "Cached", *public(mempool.cache.CacheInfo) - {"count", "index"}, *KEYS}),
        ("Memory pressure", PRESSURE),
        ("mempool.pressure.sources", set(mempool.pressure.sources.__all__)),
        ("Settings", set(mempool.settings.__all__) | set(mempool.pressure.Settings.__slots__)),
        ("Units", set(mempool.units.__all__)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reference_names_everything(section: str, names: set[str]) -> None:
    sections = re.split(r"^## ", REFERENCE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    (text,) = [text for text in sections if text.startswith(section + "\n")]
    assert {name for name in names if not re.search(rf"\b{name}\b", text)} == set()


def test_everything_public_is_documented() -> None:
    described = {name: text for name, text in docstrings() if not name.split(".")[-1].startswith("_")}
    classes = (
        mempool.Buffer,
        mempool.BufferPool,
        mempool.Account,
        mempool.SlabAllocator,
        mempool.MappedArray,
        mempool.RingBuffer,
        mempool.Arena,
        mempool.io.BytesStream,
    )
    expected = {f"{cls.__module__}.{cls.__name__}.{name}" for cls in classes for name in public(cls)}
    functions = (
        "acquire",
        "default_pool",
        "root_account",
        "open_array",
        "create_array",
        "anonymous_array",
        "guard_truncation",
    )
    expected |= {f"mempool._core.{name}" for name in functions}
    for name in public(mempool.shared.SharedBuffer):
        assert getattr(mempool.shared.SharedBuffer, name).__doc__, name
    expected |= {
        f"mempool.accounting.guard.{name}" for name in ("memory_limit", "MemoryGuard.check", "MemoryGuard.grown")
    }
    expected |= {f"mempool.accounting.usage.{name}" for name in ("memory_usage", "MemoryUsage", "MemoryUsage.lent")}
    for name in public(mempool.cache.Cache):
        assert getattr(mempool.cache.Cache, name).__doc__, name
    expected |= {f"mempool.shared.pool.SharedPool.{name}" for name in public(mempool.shared.SharedPool)}
    assert {name for name in expected if not described.get(name)} == set()


# ---- links ----


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    titles = HEADING.findall(without_code(page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_links_resolve(page: Path) -> None:
    broken = []
    for target in LINK.findall(without_code(page.read_text(encoding="utf-8"))):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        file = (page.parent / path).resolve() if path else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert broken == []


def test_readme_links_every_page() -> None:
    if not REFERENCE.exists():
        pytest.skip("the documentation is not here")
    linked = set(LINK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    pages = {name_of(page) for page in PAGES if page.parent.name == "docs"} - {"docs/index.md", "docs/changelog.md"}
    assert pages - linked == set()


if __name__ == "__main__":
    raise SystemExit(run_page(Path(sys.argv[1])))
