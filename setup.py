"""The two extensions and their three build switches; everything else stands in pyproject.toml.

MEMPOOL_SANITIZE=address,undefined or =thread   instrument the C code
MEMPOOL_COVERAGE=1                              line coverage of C and Cython
MEMPOOL_DEBUG=1                                 the C core checks its own invariants, with symbols
"""

import os
from glob import glob

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

sanitize = os.environ.get("MEMPOOL_SANITIZE", "")
coverage = os.environ.get("MEMPOOL_COVERAGE") == "1"
debug = os.environ.get("MEMPOOL_DEBUG") == "1"

macros: list[tuple[str, str | None]] = [
    ("NPY_NO_DEPRECATED_API", "NPY_2_0_API_VERSION"),
    ("NPY_TARGET_VERSION", "NPY_2_0_API_VERSION"),
]
directives: dict[str, object] = {"language_level": "3"}
if debug:
    macros += [("MP_DEBUG", "1")]
if coverage:
    macros += [("CYTHON_TRACE_NOGIL", "1")]
    directives["linetrace"] = True

if os.name == "nt":
    compile_args = ["/std:c11", "/Od" if debug else "/O2"] + (["/Zi"] if debug else [])
    link_args = ["/DEBUG"] if debug else []
    if sanitize or coverage:
        raise SystemExit("MEMPOOL_SANITIZE and MEMPOOL_COVERAGE need gcc or clang")
else:
    macros += [("_GNU_SOURCE", "1")]
    compile_args = ["-std=c11", "-fvisibility=hidden", "-pthread"]
    compile_args += ["-O1", "-g"] if debug or sanitize or coverage else ["-O2", "-g0"]
    link_args = ["-pthread"]
    if sanitize:
        instrument = [f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
        compile_args += instrument
        link_args += instrument
    if coverage:
        compile_args += ["--coverage"]
        link_args += ["--coverage"]

core = Extension(
    "mempool._core",
    sources=["src/mempool/_core.pyx", *sorted(glob("csrc/*.c"))],
    depends=[
        *glob("src/mempool/*.pxi"),
        *glob("src/mempool/*.pxd"),
        *glob("csrc/**/*.h", recursive=True),
    ],
    include_dirs=["csrc/include", "csrc", numpy.get_include()],
    define_macros=macros,
    undef_macros=["NDEBUG"] if debug else [],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)

# The policies of caches link nothing of csrc/.
policies = Extension(
    "mempool.cache._policies",
    sources=["src/mempool/cache/_policies.pyx"],
    depends=glob("src/mempool/cache/*.pxi"),
    define_macros=[macro for macro in macros if not macro[0].startswith("NPY_")],
    undef_macros=["NDEBUG"] if debug else [],
    extra_compile_args=compile_args,
    extra_link_args=link_args,
)

setup(
    ext_modules=cythonize(
        [core, policies],
        # Cython compares dates, not directives: traced C has a place of its own.
        build_dir="build/cython-traced" if coverage else "build/cython",
        compiler_directives=directives,
    )
)
