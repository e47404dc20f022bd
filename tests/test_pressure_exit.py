"""The end of an interpreter whose monitor runs, and the one monitor of a process."""

import os
from typing import Any

import pytest

# ---- exit ----


@pytest.mark.parametrize("how", ["", "raise SystemExit(0)", "import os; os._exit(0)"])
def test_exit_with_a_monitor_that_runs(run_python: Any, how: str) -> None:
    done = run_python(
        f"""
        from mempool.pressure import default_monitor, Level
        monitor = default_monitor()
        monitor.interval = 0.001
        monitor.on(Level.ELEVATED, print)
        monitor.start()
        monitor.poll()
        {how}
        """,
        options=("-X", "dev"),
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_exit_while_a_callback_blocks(run_python: Any) -> None:
    done = run_python(
        """
        import threading
        from mempool.pressure import PressureMonitor, Level
        inside = threading.Event()
        monitor = PressureMonitor(sources=[lambda: (100, 100)], interval=0.001)
        monitor.on(Level.HIGH, lambda _: (inside.set(), threading.Event().wait()))
        monitor.start()
        inside.wait()
        """
    )
    assert (done.stdout, done.stderr) == ("", "")


def test_exit_within_a_loop(run_python: Any) -> None:
    done = run_python(
        """
        import asyncio
        from mempool.pressure import PressureMonitor
        async def main():
            asyncio.get_running_loop().slow_callback_duration = 3600  # a slow machine is no news
            async with PressureMonitor(interval=0.001):
                await asyncio.sleep(0.01)
                raise SystemExit(3)
        asyncio.run(main())
        """,
        check=False,
        options=("-X", "dev"),
    )
    assert (done.returncode, done.stderr) == (3, "")


# ---- the default ----


def test_there_is_one_default_monitor(run_python: Any) -> None:
    """Which threads ask for at once, when there is none yet."""
    run_python(
        """
        import sys
        from mempool.pressure import default_monitor
        sys.path.insert(0, sys.argv[1])
        from support import together

        found = together([default_monitor] * 8)
        assert len(set(map(id, found))) == 1
        assert not found[0].running
        assert len(found[0].stats().callbacks) == 1
        """,
        os.path.dirname(__file__),
    )


def test_the_default_monitor_makes_room_in_all_pools(run_python: Any) -> None:
    done = run_python(
        """
        import mempool
        from mempool.pressure import Level, default_monitor
        pool = mempool.BufferPool(idle_timeout=None)
        pool.acquire("8 MiB").release()
        with default_monitor().simulate(Level.ELEVATED):
            print(pool.stats().idle, default_monitor().stats().freed >= 8 << 20)
        """
    )
    assert done.stdout.split() == ["0", "True"]
