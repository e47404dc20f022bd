"""Imports, includes and calls point down only; each check is shown to fail on a tree that breaks it."""

import ast
import re
from collections.abc import Callable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Lowest first. A module may import from lower layers, and from its own unless that makes a circle.
LAYERS: tuple[set[str], ...] = (
    {"errors", "units"},
    {"settings", "_records", "_npy"},
    {"_libmempool"},
    {"_core"},
    {"io", "aio", "shared", "numpy", "pickle"},
    {"_system"},
    {"_reclaim"},
    {"accounting", "pressure", "cache"},
    {"integrations"},
    {"tools", "__main__"},
    {"__init__"},
)
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
LEAVES = LAYERS[0]

Check = Callable[[Path], list[str]]

MAX_LINES = 600
SOURCES = {".py", ".pyi", ".pyx", ".pxd", ".pxi", ".c", ".h"}
PLATFORM = re.compile(r"\b(_WIN32|_WIN64|__linux__|__APPLE__|__unix__|__FreeBSD__|__CYGWIN__)\b")
COMPILER = re.compile(r"\b(_MSC_VER|__GNUC__|__clang__)\b")

# ---- Python and Cython


def own_name(path: Path, package: Path) -> str:
    """The part of the package that a file belongs to; what lies beside `_core.pyx` as .pxi is included by it."""
    first = path.relative_to(package).parts[0]
    return "_core" if first.endswith(".pxi") else first.split(".")[0]


def imported(path: Path, package: Path, level: int, module: str, names: list[str]) -> Iterator[str]:
    """The parts of the package that one import statement names."""
    parts = module.split(".") if module else []
    if level:
        below = path.relative_to(package).parent.parts
        parts = ["mempool", *below[: len(below) - level + 1], *parts]
    if parts[:1] != ["mempool"]:
        return
    if len(parts) > 1:
        yield parts[1]
        return
    yield from {name if name in RANK else "__init__" for name in names or [""]}


def python_imports(path: Path, package: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from imported(path, package, 0, alias.name, [])
        elif isinstance(node, ast.ImportFrom):
            yield from imported(path, package, node.level, node.module or "", [alias.name for alias in node.names])


def cython_imports(path: Path, package: Path) -> Iterator[str]:
    text = re.sub(r"#.*", "", path.read_text())
    for dots, module, several, one in re.findall(
        r"^\s*from\s+(\.*)([\w.]*)\s+c?import\s+(?:\(([^)]*)\)|(.*))", text, re.MULTILINE
    ):
        names = [name.split()[0] for name in (several or one).split(",") if name.strip()]
        yield from imported(path, package, len(dots), module, names)
    for modules in re.findall(r"^\s*c?import\s+(.+)", text, re.MULTILINE):
        for module in modules.split(","):
            yield from imported(path, package, 0, module.split()[0], [])


def import_faults(root: Path) -> list[str]:
    package = root / "src" / "mempool"
    faults: list[str] = []
    graph: dict[str, set[str]] = {}
    for path in sorted(package.rglob("*")):
        read = {".py": python_imports, ".pyi": python_imports}.get(path.suffix, cython_imports)
        if path.suffix not in SOURCES - {".c", ".h"}:
            continue
        me = own_name(path, package)
        if me not in RANK:
            faults.append(f"{path.name}: {me} has no layer")
            continue
        for other in set(read(path, package)) - {me}:
            graph.setdefault(me, set()).add(other)
            if me in LEAVES or RANK.get(other, len(LAYERS)) > RANK[me]:
                faults.append(f"{path.name}: {me} imports {other}")
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        faults.append(f"circle: {' > '.join(error.args[1])}")
    return faults


# ---- C


STRING_OR_COMMENT = re.compile(r'("(?:\\.|[^"\\\n])*")|/\*.*?\*/|//[^\n]*', re.DOTALL)


def without_comments(text: str) -> str:
    return STRING_OR_COMMENT.sub(lambda match: match[1] or " ", text)


def c_layers(csrc: Path) -> list[str]:
    """The file stems that `csrc/README.md` lists in a fence under "Layers, lowest first"."""
    _, _, rest = (csrc / "README.md").read_text().partition("Layers, lowest first")
    fence = rest.split("```")[1]
    return [line.split()[0].split(".")[0] for line in fence.splitlines()[1:] if line.strip()]


def c_stem(path: Path) -> str:
    return "os" if path.stem.startswith("os_") else path.stem


def include_and_call_faults(root: Path) -> list[str]:
    """Nothing includes a header or calls a function of a higher layer; `internal.h` lists prototypes in this order."""
    csrc = root / "csrc"
    layers = c_layers(csrc)
    rank = {stem: number for number, stem in enumerate(layers)}
    files = [path for path in sorted(csrc.glob("*.[ch]")) if path.name != "internal.h"]
    texts = {path: without_comments(path.read_text()) for path in files}
    faults = [f"{path.name} has no layer" for path in texts if c_stem(path) not in rank]
    owner = {
        name: c_stem(path)
        for path, text in texts.items()
        for name in re.findall(r"^\w[\w \t*]*?\b(mp_\w+)\([^;{}]*\)\s*\{", text, re.MULTILINE)
    }
    for path, text in texts.items():
        mine = rank.get(c_stem(path), -1)
        for stem in re.findall(r'^\s*#\s*include\s+"(?:.*/)?(\w+)\.h"', text, re.MULTILINE):
            if rank.get(stem, -1) > mine:
                faults.append(f"{path.name} includes {stem}.h")
        for name in sorted(set(re.findall(r"\bmp_\w+", text)) & owner.keys()):
            if rank.get(owner[name], -1) > mine:
                faults.append(f"{path.name} uses {name} of {owner[name]}")
    sections = re.findall(r"^/\* -+ (\w+)\.c", (csrc / "internal.h").read_text(), re.MULTILINE)
    if sections != sorted(sections, key=lambda stem: rank.get(stem, -1)):
        faults.append(f"internal.h: {sections} is not the order of README.md")
    return faults


def portability_faults(root: Path) -> list[str]:
    """No Python in the core; platform macros in os files only, compiler macros in port.h too; one public header."""
    csrc = root / "csrc"
    faults = [f"public header {path.name}" for path in csrc.glob("include/**/*") if path.name != "mempool.h"]
    for path in sorted([*csrc.rglob("*.c"), *csrc.rglob("*.h")]):
        core = path.parent == csrc
        for line in without_comments(path.read_text()).splitlines():
            directive = line.lstrip().startswith("#")
            if directive and "Python.h" in line:
                faults.append(f"{path.name}: {line}")
            if core and directive and PLATFORM.search(line) and c_stem(path) != "os":
                faults.append(f"{path.name}: {line}")
            if core and directive and COMPILER.search(line) and c_stem(path) not in {"os", "port"}:
                faults.append(f"{path.name}: {line}")
    return faults


# ---- size


def length_faults(root: Path) -> list[str]:
    faults = []
    for folder in ("src", "csrc", "tests", "benchmarks"):
        for path in sorted((root / folder).rglob("*")):
            if path.suffix in SOURCES and "build" not in path.relative_to(root).parts:
                lines = path.read_text().count("\n")
                if lines > MAX_LINES:
                    faults.append(f"{path.relative_to(root)}: {lines} lines")
    return faults


CHECKS = [import_faults, include_and_call_faults, portability_faults, length_faults]


@pytest.mark.parametrize("check", CHECKS)
def test_the_tree_obeys(check: Check) -> None:
    assert check(ROOT) == []


SOUND = {
    "src/mempool/__init__.py": "from mempool import errors\nfrom ._core import Pool\n",
    "src/mempool/errors.py": "import enum\n",
    "src/mempool/_core.pyx": "from mempool._libmempool cimport (\n    a,\n    b,\n)\nfrom mempool import units as _units\n",
    "src/mempool/buffer.pxi": "import sys\nfrom cpython.object cimport PyObject\n",
    "src/mempool/_libmempool.pxd": "cdef extern from 'mempool.h':\n    pass\n",
    "src/mempool/accounting/__init__.py": "from .. import _core\n",
    "src/mempool/cache/__init__.py": "from ..accounting import x\nfrom . import part\n",
    "src/mempool/cache/part.py": "import collections\n",
    "csrc/README.md": "Layers, lowest first:\n\n```\nport      x\nos        x\naccount   x\npool.c    x\n```\n",
    "csrc/include/mempool.h": "#if defined(_WIN32)\n#endif\n",
    "csrc/port.h": "#if defined(__GNUC__)\n#endif\n",
    "csrc/os_posix.c": '#if !defined(_WIN32)\n#include "port.h"\n#endif\n',
    "csrc/internal.h": "/* ---- account.c: money ---- */\n/* ---- pool.c ---- */\n",
    "csrc/account.c": '#include "internal.h"\nint mp_account_charge(int n) {\n    return n;\n}\n',
    "csrc/pool.c": "/* mp_x() { */\nint mp_pool_new(int a,\n    int b) {\n    return mp_account_charge(a + b);\n}\n",
    "csrc/tests/test_fork.c": "#if defined(__linux__)\n#endif\n",
}


def plant(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize("check", CHECKS)
def test_a_sound_tree_passes(tmp_path: Path, check: Check) -> None:
    assert check(plant(tmp_path, SOUND)) == []


@pytest.mark.parametrize(
    ("check", "name", "text", "fault"),
    [
        (import_faults, "src/mempool/errors.py", "from . import units\n", "errors imports units"),
        (import_faults, "src/mempool/settings.py", "def f():\n    import mempool.cache\n", "settings imports cache"),
        (import_faults, "src/mempool/accounting/x.py", "from ..tools import top\n", "accounting imports tools"),
        (import_faults, "src/mempool/accounting/x.py", "import mempool\n", "accounting imports __init__"),
        (import_faults, "src/mempool/accounting/x.py", "from .. import Pool\n", "accounting imports __init__"),
        (import_faults, "src/mempool/accounting/x.py", "from mempool import cache\n", "circle"),
        (import_faults, "src/mempool/errors.pyi", "from ._core import x\n", "errors imports _core"),
        (import_faults, "src/mempool/buffer.pxi", "    from mempool.accounting import x\n", "_core imports accounting"),
        (import_faults, "src/mempool/buffer.pxi", "cimport mempool.cache as c\n", "_core imports cache"),
        (
            import_faults,
            "src/mempool/buffer.pxi",
            "from . import errors\nfrom . cimport cache as c\n",
            "_core imports cache",
        ),
        (
            import_faults,
            "src/mempool/buffer.pxi",
            "from mempool import (\n    units,\n    io,\n)\n",
            "_core imports io",
        ),
        (import_faults, "src/mempool/novelty.py", "", "novelty has no layer"),
        (include_and_call_faults, "csrc/novelty.c", "", "novelty.c has no layer"),
        (include_and_call_faults, "csrc/port.h", '#include "include/account.h"\n', "port.h includes account.h"),
        (include_and_call_faults, "csrc/port.h", "#define X mp_pool_new(1, 2)\n", "port.h uses mp_pool_new of pool"),
        (include_and_call_faults, "csrc/internal.h", "/* -- pool.c -- */\n/* -- account.c -- */\n", "not the order"),
        (portability_faults, "csrc/pool.c", "#ifdef __linux__\n#endif\n", "pool.c: #ifdef __linux__"),
        (portability_faults, "csrc/pool.c", "  # if defined(__GNUC__)\n#endif\n", "__GNUC__"),
        (portability_faults, "csrc/port.h", "#if defined(_WIN32)\n#endif\n", "_WIN32"),
        (portability_faults, "csrc/tests/test_x.c", "#include <Python.h>\n", "Python.h"),
        (portability_faults, "csrc/include/more.h", "", "public header more.h"),
        (length_faults, "csrc/pool.c", "\n" * 601, "601 lines"),
        (length_faults, "benchmarks/deep/x.py", "\n" * 601, "601 lines"),
    ],
)
def test_a_broken_tree_is_found(tmp_path: Path, check: Check, name: str, text: str, fault: str) -> None:
    faults = check(plant(tmp_path, {**SOUND, name: text}))
    assert any(fault in found for found in faults), faults
