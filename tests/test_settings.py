"""Settings: keyword arguments, then `configure`, then the environment."""

import subprocess
from collections.abc import Callable
from typing import Any

import pytest

import mempool

Run = Callable[..., subprocess.CompletedProcess[str]]
CLEAN: dict[str, str | None] = {"MEMPOOL_LIMIT": None, "MEMPOOL_LEAK_DETECTION": None, "PYTHONDEVMODE": None}


def test_the_default_pool(run_python: Run) -> None:
    code = """
        import mempool
        pool = mempool.default_pool()
        assert pool is mempool.default_pool()
        assert (pool.name, pool.limit, pool.leak_detection) == ("default", None, "off")
        with mempool.acquire("64KiB", zero=True, timeout=None) as buffer:
            assert buffer.pool is pool and not any(buffer)
    """
    run_python(code, env=CLEAN)


def test_the_environment(run_python: Run) -> None:
    code = """
        import mempool
        pool = mempool.default_pool()
        assert (pool.limit, pool.leak_detection) == (65536, "full")
        assert mempool.BufferPool().leak_detection == "full"
        assert mempool.BufferPool().limit is None
    """
    run_python(code, env={**CLEAN, "MEMPOOL_LIMIT": "64 KiB", "MEMPOOL_LEAK_DETECTION": "full"})


def test_configure_comes_before_the_environment(run_python: Run) -> None:
    code = """
        import mempool
        mempool.configure(limit="1MiB", leak_detection="sampled")
        pool = mempool.default_pool()
        assert (pool.limit, pool.leak_detection) == (1 << 20, "sampled")
        assert mempool.BufferPool().leak_detection == "sampled"
        mempool.configure(limit=None)
        assert (pool.limit, pool.leak_detection) == (None, "sampled")
    """
    run_python(code, env={**CLEAN, "MEMPOOL_LIMIT": "64KiB", "MEMPOOL_LEAK_DETECTION": "full"})


def test_no_limit_can_be_configured_before_the_pool_is_made(run_python: Run) -> None:
    code = """
        import mempool
        mempool.configure(limit=None)
        assert mempool.default_pool().limit is None
    """
    run_python(code, env={**CLEAN, "MEMPOOL_LIMIT": "64KiB"})


def test_arguments_come_before_configure(run_python: Run) -> None:
    code = """
        import mempool
        mempool.configure(leak_detection="full")
        assert mempool.BufferPool(leak_detection="off").leak_detection == "off"
        assert mempool.BufferPool(leak_detection=None).leak_detection == "full"
        pool = mempool.BufferPool(leak_detection="off")
        mempool.configure(leak_detection="sampled")
        assert pool.leak_detection == "off"
        pool.leak_detection = None
        assert pool.leak_detection == "sampled"
    """
    run_python(code, env=CLEAN)


def test_dev_mode_is_the_last_word(run_python: Run) -> None:
    code = """
        import mempool
        assert mempool.BufferPool().leak_detection == "full"
        assert mempool.BufferPool(leak_detection="off").leak_detection == "off"
        mempool.configure(leak_detection="sampled")
        assert mempool.BufferPool().leak_detection == "sampled"
    """
    run_python(code, env=CLEAN, options=["-X", "dev"])


def test_the_default_pool_follows_at_once(run_python: Run) -> None:
    code = """
        import mempool
        buffer = mempool.acquire("1MiB")
        pool = mempool.default_pool()
        mempool.configure(limit="2MiB")
        assert pool.limit == 2 << 20
        try:
            mempool.configure(leak_detection="full", limit="512KiB")
        except ValueError as error:
            assert str(512 << 10) in str(error) and str(1 << 20) in str(error), error
        else:
            raise SystemExit("a limit below what is lent")
        assert (pool.limit, pool.leak_detection) == (2 << 20, "off")
        assert mempool.BufferPool().leak_detection == "off"
        buffer.release()
        mempool.configure(leak_detection="full", limit="512KiB")
        assert (pool.limit, pool.leak_detection) == (512 << 10, "full")
    """
    run_python(code, env=CLEAN)


@pytest.mark.parametrize("first", ["mempool.default_pool()", "mempool.acquire(64).pool"])
def test_configure_while_the_default_pool_is_made(run_python: Run, first: str) -> None:
    """What another thread configures between a look at the settings and the pool's being there is not missed."""
    code = f"""
        import sys, mempool
        configured = []

        def trace(frame, event, _):
            if frame.f_code.co_name != "lookup" or event == "call":
                return trace
            if event == "return" and frame.f_locals["name"] == settings[len(configured)]:
                sys.settrace(None)
                configured.append(event)
                mempool.configure(limit="1MiB", leak_detection="full")
                sys.settrace(trace if len(configured) < len(settings) else None)
            return trace

        settings = [{{setting!r}}]
        sys.settrace(trace)
        pool = {first}
        sys.settrace(None)
        assert configured, "nothing looked the setting up"
        assert pool is mempool.default_pool()
        assert (pool.limit, pool.leak_detection) == (1 << 20, "full"), (pool.limit, pool.leak_detection)
    """
    run_python(code.format(setting="limit"), env=CLEAN)
    run_python(code.format(setting="leak_detection"), env=CLEAN)


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("MEMPOOL_LIMIT", "much", "ValueError"),
        ("MEMPOOL_LIMIT", "-1", "ValueError"),
        ("MEMPOOL_LIMIT", "0", "ValueError"),
        ("MEMPOOL_LIMIT", "1K", "ValueError"),
        ("MEMPOOL_LIMIT", str(2**63), "OverflowError"),
        ("MEMPOOL_LEAK_DETECTION", "loud", "ValueError"),
        ("MEMPOOL_LEAK_DETECTION", "FULL ", "ValueError"),
    ],
)
def test_nonsense_in_the_environment_is_named(run_python: Run, variable: str, value: str, error: str) -> None:
    done = run_python("import mempool; mempool.default_pool()", env={**CLEAN, variable: value}, check=False)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith(error)
    assert value in last
    assert variable in last or error == "OverflowError"


@pytest.mark.parametrize("variable", ["MEMPOOL_LIMIT", "MEMPOOL_LEAK_DETECTION"])
def test_an_empty_variable_is_none(run_python: Run, variable: str) -> None:
    code = """
        import mempool
        assert (mempool.default_pool().limit, mempool.BufferPool().leak_detection) == (None, "off")
    """
    run_python(code, env={**CLEAN, variable: ""})


@pytest.mark.parametrize(
    ("settings", "error", "named"),
    [
        ({"nonsense": 1}, TypeError, "nonsense"),
        ({"limit": 5, "nonsense": 1}, TypeError, "nonsense"),
        ({"limit": -5}, ValueError, "-5"),
        ({"limit": 0}, ValueError, "0"),
        ({"limit": "much"}, ValueError, "'much'"),
        ({"limit": 1.5}, TypeError, "1.5"),
        ({"limit": True}, TypeError, "True"),
        ({"limit": 2**63}, OverflowError, str(2**63)),
        ({"leak_detection": "loud"}, ValueError, "'loud'"),
        ({"leak_detection": 3}, TypeError, "3"),
        ({"leak_detection": "full", "limit": -5}, ValueError, "-5"),
    ],
)
def test_bad_settings_change_nothing(settings: dict[str, Any], error: type[Exception], named: str) -> None:
    pool = mempool.default_pool()
    before = (pool.limit, pool.leak_detection, mempool.BufferPool().leak_detection)
    with pytest.raises(error) as caught:
        mempool.configure(**settings)
    assert type(caught.value) is error
    assert named in str(caught.value)
    assert (pool.limit, pool.leak_detection, mempool.BufferPool().leak_detection) == before


def test_a_limit_beyond_all_addresses_is_refused_before_the_pool_is_made(run_python: Run) -> None:
    code = """
        import mempool
        try:
            mempool.configure(limit=2**63)
        except OverflowError:
            pass
        else:
            raise SystemExit("accepted")
        assert mempool.default_pool().limit is None
    """
    run_python(code, env=CLEAN)


def test_settings_are_named() -> None:
    with pytest.raises(TypeError):
        mempool.configure("1MiB")  # type: ignore[call-arg]
    mempool.configure()
