"""NumPy's own tests, where they make, grow, move and share arrays, under `install`."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest

import mempool

CHOSEN = (
    "Resize or TestIO or Concat or Creat or Zero or Take or Stack or Block or record or Fromiter or FromBuffer or Sort or Pickl"
    " or policy or context or locality or owner"
)
LONG = "huge_list or nonzero_all"
FILES = ("test_mem_policy", "test_multiarray", "test_item_selection", "test_shape_base", "test_records")

# What NumPy's tests compile they compile with a build system of their own; a compiler is enough.
PLUGIN = """
import os
import subprocess
import sys
import sysconfig

import numpy.testing._private.extbuild as extbuild

import mempool
import mempool.numpy

pool = mempool.BufferPool(name="numpy's tests")
mempool.numpy.install(pool)


def compile_module(name, build_dir, include_dirs, source, libraries=None, library_dirs=None):
    include = [sysconfig.get_path("include"), *map(str, include_dirs)]
    code, module = os.path.join(build_dir, name + ".c"), os.path.join(build_dir, name + ".so")
    with open(code, "w") as file:
        file.write(source)
    command = [*os.environ["COMPILER"].split(), "-shared", "-fPIC", *(f"-I{path}" for path in include), code, "-o", module]
    subprocess.run(command, check=True)
    return module


extbuild.compile_extension_module = compile_module


def pytest_sessionfinish(session, exitstatus):
    stats = pool.stats()
    print("\\ninstalled:", mempool.numpy.installed() is pool, "used:", stats.acquires > 100, "failed:", session.testsfailed)
"""


@pytest.mark.slow
@pytest.mark.nosan
def test_a_part_of_numpys_own_tests(tmp_path: Path) -> None:
    pytest.importorskip("hypothesis")
    folder = Path(np.__file__).parent / "_core" / "tests"
    if not folder.is_dir():
        pytest.skip("NumPy came without its tests")
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()
    leave_out = LONG if shutil.which(compiler[0]) else f"{LONG} or policy or locality or owner"
    (tmp_path / "installed_plugin.py").write_text(PLUGIN)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    paths = [tmp_path, Path(mempool.__file__).parent.parent, os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "installed_plugin"),
            *("-c", "pytest.ini", "--rootdir=.", "-k", f"({CHOSEN}) and not ({leave_out})"),
            *(str(folder / f"{name}.py") for name in FILES),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths)), "COMPILER": " ".join(compiler)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "installed: True used: True failed: 0" in done.stdout
