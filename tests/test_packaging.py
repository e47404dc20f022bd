"""What is installed is what the repository says."""

import ast
import importlib.metadata
import importlib.resources
import re
import sysconfig
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

import mempool
import mempool._core
import mempool.cache._policies

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version() -> None:
    assert importlib.metadata.version("mempool") == mempool.__version__
    assert "version" in PROJECT["dynamic"]


def test_changelog_knows_the_version() -> None:
    assert f"## {mempool.__version__} (" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize(
    "name",
    ["py.typed", "_core.pyi", "_libmempool.pxd", "accounting/__init__.py", "cache/__init__.py", "cache/_policies.pyi"],
)
def test_types_and_declarations_are_installed(name: str) -> None:
    assert importlib.resources.files("mempool").joinpath(name).is_file()


@pytest.mark.parametrize("extension", [mempool._core, mempool.cache._policies])
def test_extensions_are_of_this_interpreter(extension: ModuleType) -> None:
    assert str(extension.__file__).endswith(str(sysconfig.get_config_var("EXT_SUFFIX")))


def test_the_policies_of_caches_link_nothing_of_the_core() -> None:
    """Neither by its build, nor by what it declares, nor by any function that it has or lacks."""
    (call,) = [
        node
        for node in ast.walk(ast.parse((ROOT / "setup.py").read_text()))
        if isinstance(node, ast.Call) and node.args and ast.unparse(node.args[0]) == "'mempool.cache._policies'"
    ]
    options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    assert not {"include_dirs", "libraries", "extra_objects"} & options.keys()
    assert not [value for value in options.values() if "csrc" in value]
    sources = [path.read_text() for path in (ROOT / "src/mempool/cache").glob("_*.p[yx][xi]")]
    assert sources
    assert not [text for text in sources if re.search(r"_libmempool|mempool\.h|\bmp_\w+\(", text)]
    functions = set(re.findall(rb"\b(mp_\w+)\(", (ROOT / "csrc/include/mempool.h").read_bytes()))
    names = set(re.findall(rb"mp_\w+", Path(str(mempool.cache._policies.__file__)).read_bytes()))
    assert len(functions) > 20
    assert not functions & names


def test_oldest_interpreter_is_said_once_and_the_same() -> None:
    versions = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert PROJECT["requires-python"] == f">={versions[0]}"


def test_runtime_needs_numpy_and_psutil_only() -> None:
    assert sorted(name.split(">")[0] for name in PROJECT["dependencies"]) == ["numpy", "psutil"]
    installed = importlib.metadata.requires("mempool") or []
    assert sorted(name.split(">")[0] for name in installed if "extra" not in name) == ["numpy", "psutil"]


@pytest.mark.parametrize("extra", ["lint", "bench", "docs", "wheel"])
def test_tools_and_rivals_are_pinned(extra: str) -> None:
    assert all("==" in requirement for requirement in PROJECT["optional-dependencies"][extra])
