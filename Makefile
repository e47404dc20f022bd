# `make help` lists the targets. Each makes what it needs, in a virtual environment of its own: .venv.
#
#   PYTHON=python3.13        the interpreter that the environment is made from
#   VENV=.venv-3.13          another place for it, to keep several side by side
#   PYTEST_ARGS="-k fork"    more arguments for pytest;  BENCH_ARGS  for the benchmark

PYTHON ?= python3
VENV ?= .venv
PYTEST_ARGS ?=
BENCH_ARGS ?=
SANITIZE_CC ?= gcc

# The tests in a process for each core, four at most.
pytest := -m pytest -q -n auto --maxprocesses 4 --dist worksteal

python := $(VENV)/bin/python
pip := $(python) -m pip --disable-pip-version-check --quiet
tag := $(patsubst .%,%,$(notdir $(VENV)))

compiled := setup.py pyproject.toml $(wildcard src/mempool/*.pyx src/mempool/*.pxi src/mempool/*.pxd) \
            $(wildcard src/mempool/cache/*.pyx src/mempool/cache/*.pxi) \
            $(wildcard csrc/*.c csrc/*.h csrc/include/*.h)
pythons := src tests $(wildcard benchmarks examples) docs setup.py
c_files := $(wildcard csrc/*.[ch] csrc/*/*.[ch])

.PHONY: help bench test lint format docs wheel sanitize sanitize-c sanitize-python fuzz clean
.DELETE_ON_ERROR:
.SECONDARY:

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##/\1:/p' $(MAKEFILE_LIST) | awk -F ': +' '{printf "  make %-16s %s\n", $$1, $$2}'

bench: $(VENV)/.with-bench $(VENV)/.built  ## move real files through the pool; tables, JSON and plots in benchmarks/out
	$(python) -m benchmarks $(BENCH_ARGS)

test: $(VENV)/.with-test $(VENV)/.built  ## the C tests, then the Python tests
	$(MAKE) -C csrc test
	$(python) $(pytest) $(PYTEST_ARGS)

lint: $(VENV)/.with-lint  ## formats, types, warnings of every compiler here, wheel configuration
	$(VENV)/bin/ruff check $(pythons)
	$(VENV)/bin/ruff format --check $(pythons)
	$(VENV)/bin/mypy src $(wildcard tests/typing)
	PATH="$(abspath $(VENV)/bin):$$PATH" cython-lint src/mempool
	$(VENV)/bin/clang-format --dry-run -Werror $(c_files)
	$(MAKE) -C csrc strict
	@$(check_free_threaded)
	@$(check_wheel_platforms)

format: $(VENV)/.with-lint  ## rewrite Python and C in the project's format
	$(VENV)/bin/ruff check --fix $(pythons)
	$(VENV)/bin/ruff format $(pythons)
	$(VENV)/bin/clang-format -i $(c_files)

docs: $(VENV)/.with-docs $(VENV)/.built  ## the documentation, in docs/_build/html
	$(python) -m sphinx -q -W --keep-going -b html docs docs/_build/html

wheel: $(VENV)/.with-wheel  ## sdist, wheel from it, and the sdist's tests on that wheel; in dist/
	rm -rf dist build/sdist build/wheel-venv
	$(python) -m build
	mkdir -p build/sdist
	tar -xzf dist/*.tar.gz -C build/sdist --strip-components=1
	$(PYTHON) -m venv build/wheel-venv
	build/wheel-venv/bin/python -m pip --disable-pip-version-check --quiet install "$$(echo dist/*.whl)[test]"
	$(MAKE) -C build/sdist/csrc test
	cd build/sdist && ../wheel-venv/bin/python $(pytest) $(PYTEST_ARGS)

sanitize: sanitize-c sanitize-python  ## ASan and UBSan on the C and Python tests, TSan on the C stress tests

sanitize-c:
	$(MAKE) -C csrc asan CC=$(SANITIZE_CC)
	$(MAKE) -C csrc tsan CC=$(SANITIZE_CC)

# The interpreter is not instrumented, so the runtime is preloaded, with libstdc++ for it to find the C++ throw of Arrow and pandas.
# Leaks are the C tests' business: at exit CPython and NumPy leave too much behind to tell.
sanitize-python: $(VENV)/.with-test $(VENV)/.built build/$(tag)-asan/.built
	PYTHONPATH=$(CURDIR)/build/$(tag)-asan/lib PYTHONMALLOC=malloc \
	ASAN_OPTIONS=detect_leaks=0:allocator_may_return_null=1 UBSAN_OPTIONS=print_stacktrace=1 \
	LD_PRELOAD="$$($(SANITIZE_CC) -print-file-name=libasan.so) $$($(SANITIZE_CC) -print-file-name=libstdc++.so)" \
	$(python) $(pytest) -m "not nosan" $(PYTEST_ARGS)

fuzz:  ## the fuzzers of the C core (clang), FUZZ_SECONDS each
	$(MAKE) -C csrc fuzz

clean:  ## remove everything that make made
	$(MAKE) -C csrc clean
	rm -rf .venv* build dist docs/_build benchmarks/out src/*.egg-info src/mempool/*.so src/mempool/cache/*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis

# What builds and runs mempool.
$(VENV)/.made: pyproject.toml
	@$(PYTHON) -c "$$CHECK_PYTHON"
	$(PYTHON) -m venv $(VENV)
	$(python) -c "$$REQUIREMENTS" > $(VENV)/requirements.txt
	$(pip) install -r $(VENV)/requirements.txt
	@touch $@

# One extra of pyproject.toml.
$(VENV)/.with-%: $(VENV)/.made
	$(python) -c "$$REQUIREMENTS" $* > $(VENV)/requirements-$*.txt
	$(pip) install -r $(VENV)/requirements-$*.txt
	@touch $@

# In place, so that a changed Python file needs no build.
$(VENV)/.built: $(VENV)/.made $(compiled)
	$(pip) install --no-deps --no-build-isolation --editable .
	@touch $@

# A tree of its own: never mixed up with the build in place.
build/$(tag)-asan/.built: $(VENV)/.made $(compiled) $(wildcard src/mempool/*.py src/mempool/*/*.py)
	CC=$(SANITIZE_CC) MEMPOOL_SANITIZE=address,undefined MEMPOOL_DEBUG=1 \
	$(python) setup.py --quiet build --build-base $(@D) --build-lib $(@D)/lib
	@touch $@

define CHECK_PYTHON
import os, sys, sysconfig
if sys.version_info < (3, 11):
    sys.exit(f"mempool needs CPython 3.11 or newer, {sys.executable} is {sys.version.split()[0]}: make PYTHON=python3.x ...")
if not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    sys.exit(f"{sys.executable} has no Python.h: install its headers (python3-dev or python3-devel)")
endef
export CHECK_PYTHON

define REQUIREMENTS
import sys, tomllib
with open("pyproject.toml", "rb") as file:
    config = tomllib.load(file)
project = config["project"]
extras = [name for extra in sys.argv[1:] for name in project["optional-dependencies"][extra]]
print("\n".join(extras or config["build-system"]["requires"] + project["dependencies"]))
endef
export REQUIREMENTS

# The generated C as a free-threaded interpreter compiles it: the headers of an ordinary 3.13 or newer serve.
define check_free_threaded
interpreter=$$(.ci/pythons 13 | head -n 1); \
if [ -z "$$interpreter" ]; then echo "free-threaded: no CPython 3.13 or newer here"; exit 0; fi; \
set -e; mkdir -p build/lint; \
for source in _core cache/_policies; do \
    $(python) -m cython -3 src/mempool/$$source.pyx -o build/lint/$$(basename $$source).c; \
    $(CC) -std=c11 -fsyntax-only -DPy_GIL_DISABLED=1 -D_GNU_SOURCE -Icsrc/include -Icsrc \
        -I$$($$interpreter -c "import sysconfig; print(sysconfig.get_path('include'))") \
        -I$$($(python) -c "import numpy; print(numpy.get_include())") build/lint/$$(basename $$source).c; \
done; \
echo "free-threaded: compiles against $$interpreter"
endef

define check_wheel_platforms
for platform in linux macos windows; do \
    $(VENV)/bin/cibuildwheel --platform $$platform --print-build-identifiers > /dev/null || exit 1; \
    echo "wheels: $$platform"; \
done
endef
