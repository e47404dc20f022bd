"""What is installed is what the repository says."""

import importlib.metadata
import importlib.resources
import sysconfig
import tomllib
from pathlib import Path

import pytest

import mempool
import mempool._core

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_one_version() -> None:
    assert importlib.metadata.version("mempool") == mempool.__version__
    assert "version" in PROJECT["dynamic"]


def test_changelog_knows_the_version() -> None:
    assert f"## {mempool.__version__} (" in (ROOT / "CHANGELOG.md").read_text()


@pytest.mark.parametrize("name", ["py.typed", "_core.pyi", "_libmempool.pxd", "accounting/__init__.py"])
def test_types_and_declarations_are_installed(name: str) -> None:
    assert importlib.resources.files("mempool").joinpath(name).is_file()


def test_the_extension_is_of_this_interpreter() -> None:
    assert str(mempool._core.__file__).endswith(str(sysconfig.get_config_var("EXT_SUFFIX")))


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
