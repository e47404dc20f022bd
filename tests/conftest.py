"""What every test may use."""

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# How long an example takes, or to draw it, says nothing about right or wrong, and under a sanitizer it takes long.
settings.register_profile("mempool", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("mempool")

# A wheel is tested without the benchmarks beside it.
collect_ignore = [] if (Path(__file__).parent.parent / "benchmarks").is_dir() else ["test_benchmark_traces.py"]

# A shell lets what it starts in the background ignore Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Collections need not look at thousands of collected tests: many tests collect many times."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """A cleanup that a test left in the background would take from the caches and pools of the next one."""
    for thread in threading.enumerate():
        if thread.name == "mempool cleanup":
            thread.join(60)


@pytest.fixture(scope="session")
def run_python() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run a snippet in a fresh process: `run_python(code, *args, env=None, options=(), check=True, timeout=120)`.

    `env` is laid over the current environment (a value of None removes), `options` go to the interpreter (`-X dev`),
    anything else to `subprocess.run`. With `check`, a failing snippet fails the test and shows what it printed.
    """

    def run(
        code: str,
        *args: object,
        env: Mapping[str, str | None] | None = None,
        options: Sequence[str] = (),
        check: bool = True,
        timeout: float = 120,
        **kwargs: Any,
    ) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in {**os.environ, **(env or {})}.items() if value is not None}
        command = [sys.executable, *options, "-c", textwrap.dedent(code), *map(str, args)]
        kwargs = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL} | kwargs
        done = subprocess.run(command, env=environment, timeout=timeout, **kwargs)
        if check and done.returncode != 0:
            pytest.fail(f"exit code {done.returncode}\n--- stdout\n{done.stdout}\n--- stderr\n{done.stderr}")
        return done

    return run
