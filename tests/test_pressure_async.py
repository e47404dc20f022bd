"""Coroutine functions as callbacks: on which loop they run, and what becomes of them when it is closed or forked."""

import asyncio
import functools
import os
import threading
from typing import Any

import pytest

from mempool.pressure import PressureEvent, Registration
from monitor_kit import HIGH, NORMAL, Bench, logged, records
from support import DEADLINE, until


@pytest.fixture
def bench() -> Bench:
    return Bench(min_dwell=0)


def rise(bench: Bench) -> None:
    bench.at(0)
    bench.at(1000)


async def counted(registration: Registration, calls: int) -> None:
    """Wait until the callback was called so often."""
    async with asyncio.timeout(DEADLINE):
        while registration.calls < calls or registration._errand is not None:
            await asyncio.sleep(0)


async def settled() -> None:
    """Let the loop do all that it was told to."""
    for _ in range(5):
        await asyncio.sleep(0)


def test_async_callbacks_run_on_the_loop_they_were_registered_on(bench: Bench) -> None:
    threads: list[int] = []

    async def main() -> None:
        async def free(event: PressureEvent) -> int:
            await asyncio.sleep(0)
            threads.append(threading.get_ident())
            return 7

        registration = bench.monitor.on(HIGH, free)
        await asyncio.to_thread(bench.at, 1000)
        while not registration.freed:
            await asyncio.sleep(0)
        assert (registration.calls, registration.freed, bench.monitor.stats().freed) == (1, 7, 7)

    asyncio.run(main())
    assert threads == [threading.get_ident()]


def test_async_callbacks_are_told_apart(bench: Bench) -> None:
    class Owner:
        async def method(self, _: PressureEvent) -> int:
            return 1

        async def __call__(self, _: PressureEvent) -> int:
            return 1

    async def plain(extra: int, _: PressureEvent) -> int:
        return extra

    async def main() -> None:
        owner = Owner()
        registrations = [
            bench.monitor.on(HIGH, function) for function in (owner.method, owner, functools.partial(plain, 1))
        ]
        bench.at(1000)
        while not all(one.freed for one in registrations):
            await asyncio.sleep(0)

    asyncio.run(main())
    assert bench.monitor.stats().errors == 0


def test_an_async_callback_that_raises(bench: Bench, caplog: Any) -> None:
    async def main() -> None:
        async def broken(_: PressureEvent) -> None:
            raise ZeroDivisionError

        registration = bench.monitor.on(HIGH, broken)
        for _ in range(2):
            bench.at(1000, 5.0)
            bench.at(0, 5.0)
            before = registration.errors
            while registration.errors == before:
                await asyncio.sleep(0)

    asyncio.run(main())
    assert len(logged(caplog)) == 1
    assert bench.monitor.stats().errors == 2


def test_an_async_callback_that_has_not_finished_is_passed_over(bench: Bench) -> None:
    async def main() -> None:
        go = asyncio.Event()

        async def slow(_: PressureEvent) -> None:
            await go.wait()

        registration = bench.monitor.on(HIGH, slow)
        bench.at(1000)
        await settled()
        bench.at(1200)
        await settled()
        assert registration.calls == 1
        go.set()
        await settled()
        bench.at(0, 5.0)
        bench.at(1200)
        await settled()
        assert registration.calls == 2

    asyncio.run(main())


def test_an_async_callback_of_a_closed_loop_is_dropped(bench: Bench, caplog: Any) -> None:
    async def late(_: PressureEvent) -> None:
        raise AssertionError

    async def main() -> Registration:
        return bench.monitor.on(HIGH, late)

    registration = asyncio.run(main())
    bench.monitor.on(HIGH, bench.note)
    bench.at(1000)
    assert registration.cancelled
    assert len(bench.events) == 1
    assert "its event loop is closed" in logged(caplog)[0]


def test_an_async_callback_without_a_loop_is_an_error_that_says_so(bench: Bench, caplog: Any) -> None:
    async def lost(_: PressureEvent) -> None:
        raise AssertionError

    registration = bench.monitor.on(HIGH, lost)
    bench.at(1000)
    assert registration.errors == 1
    assert "outside a running event loop" in str(records(caplog)[0].exc_info[1])


def test_an_async_callback_without_a_loop_takes_that_of_the_monitor(bench: Bench) -> None:
    async def free(_: PressureEvent) -> int:
        return 3

    registration = bench.monitor.on(HIGH, free)

    async def main() -> None:
        async with bench.monitor:
            bench.memory.used = 1000
            await asyncio.to_thread(bench.monitor.poll)
            while not registration.freed:
                await asyncio.sleep(0)

    asyncio.run(main())


def test_async_callbacks_that_are_cancelled_leave_the_monitor_in_order(bench: Bench) -> None:
    async def main() -> None:
        async def endless(_: PressureEvent) -> None:
            await asyncio.Event().wait()

        bench.monitor.on(HIGH, endless)
        bench.at(1000)
        await asyncio.sleep(0)

    asyncio.run(main())  # cancels it
    until(lambda: bench.monitor.stats().callbacks[0].seconds >= 0)
    bench.at(1200)


# ---- a loop that is lent ----


def test_a_loop_is_lent_anew_when_the_one_before_was_closed(bench: Bench) -> None:
    async def note(event: PressureEvent) -> None:
        bench.note(event)

    registration = bench.monitor.on(HIGH, note)

    async def main(calls: int) -> None:
        async with bench.monitor:
            rise(bench)
            await counted(registration, calls)

    for calls in (1, 2, 3):
        asyncio.run(main(calls))
    assert len(bench.events) == 3


def test_a_lent_loop_that_is_closed_takes_no_callback_with_it(bench: Bench) -> None:
    async def note(event: PressureEvent) -> None:
        bench.note(event)

    registration = bench.monitor.on(HIGH, note)

    async def lend() -> None:
        async with bench.monitor:
            pass

    async def main() -> None:
        rise(bench)
        await counted(registration, 1)

    asyncio.run(lend())
    rise(bench)
    assert (registration.errors, registration.cancelled) == (1, False)
    asyncio.run(main())
    assert len(bench.events) == 1


def test_a_loop_that_stands_is_replaced_by_one_that_runs(bench: Bench) -> None:
    async def note(event: PressureEvent) -> None:
        bench.note(event)

    registration = bench.monitor.on(HIGH, note)

    async def main() -> None:
        async with bench.monitor:
            rise(bench)
            await counted(registration, len(bench.events) + 1)

    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    first.run_until_complete(main())
    second.run_until_complete(main())
    first.close()
    second.close()
    assert len(bench.events) == 2


# ---- one that never finished ----


def test_a_task_that_is_cancelled_before_its_first_step_is_called_again(bench: Bench) -> None:
    async def main() -> None:
        async def note(event: PressureEvent) -> None:
            bench.note(event)

        registration = bench.monitor.on(HIGH, note)
        before = asyncio.all_tasks()
        rise(bench)
        await asyncio.sleep(0)
        (task,) = asyncio.all_tasks() - before
        task.cancel()
        await settled()
        assert bench.events == []
        rise(bench)
        await counted(registration, 1)

    asyncio.run(main())
    assert len(bench.events) == 1


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_a_loop_that_is_closed_over_a_call_drops_the_callback(bench: Bench, caplog: Any, turns: int) -> None:
    """Not begun, a task that has not begun, a task that waits."""

    async def endless(_: PressureEvent) -> None:
        await asyncio.Event().wait()

    async def main() -> Registration:
        registration = bench.monitor.on(HIGH, endless)
        rise(bench)
        for _ in range(turns):
            await asyncio.sleep(0)
        return registration

    loop = asyncio.new_event_loop()
    registration = loop.run_until_complete(main())
    tasks = asyncio.all_tasks(loop)
    loop.close()
    rise(bench)
    for task in tasks:
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        task.get_coro().close()  # type: ignore[union-attr]
    assert registration.cancelled
    assert any("its event loop is closed" in line for line in logged(caplog))


def test_what_cannot_become_a_task_is_an_error_and_is_tried_again(bench: Bench) -> None:
    async def main() -> None:
        async def note(event: PressureEvent) -> None:
            bench.note(event)

        def refuse(*_: object, **__: object) -> Any:
            raise ZeroDivisionError

        registration = bench.monitor.on(HIGH, note)
        loop = asyncio.get_running_loop()
        loop.set_task_factory(refuse)
        rise(bench)
        await asyncio.sleep(0)
        loop.set_task_factory(None)
        assert registration.errors == 1
        rise(bench)
        await counted(registration, 1)

    asyncio.run(main())
    assert len(bench.events) == 1


def test_what_asks_a_cancelled_future_has_failed(bench: Bench) -> None:
    async def main() -> Registration:
        async def ask(_: PressureEvent) -> None:
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future

        registration = bench.monitor.on(HIGH, ask)
        rise(bench)
        await counted(registration, 1)
        return registration

    assert asyncio.run(main()).errors == 1


# ---- one that is on its way ----


def test_what_is_cancelled_on_its_way_is_not_called(bench: Bench) -> None:
    async def main() -> None:
        async def note(event: PressureEvent) -> None:
            bench.note(event)

        for turns in (0, 1):
            registration = bench.monitor.on(HIGH, note)
            rise(bench)
            for _ in range(turns):
                await asyncio.sleep(0)
            registration.cancel()
            await settled()

    asyncio.run(main())
    assert bench.events == []


@pytest.mark.parametrize("turns", [0, 1])
def test_what_is_suppressed_on_its_way_is_told_at_the_next_poll(bench: Bench, turns: int) -> None:
    async def main() -> None:
        async def note(event: PressureEvent) -> None:
            bench.note(event)

        registration = bench.monitor.on(HIGH, note)
        bench.at(1200)
        for _ in range(turns):
            await asyncio.sleep(0)
        with bench.monitor.suppressed():
            await settled()
            bench.at(1000)
            await settled()
            assert bench.events == []
        for _ in range(3):
            bench.at(1000)
            await settled()
        assert bench.levels() == [(NORMAL, HIGH)]
        assert (registration.calls, bench.monitor.stats().calls) == (1, 1)

    asyncio.run(main())


def test_what_is_suppressed_on_its_way_and_holds_no_more_is_not_told(bench: Bench) -> None:
    async def main() -> None:
        async def note(event: PressureEvent) -> None:
            bench.note(event)

        bench.monitor.on(HIGH, note)
        bench.monitor.on_relief(note)
        rise(bench)
        with bench.monitor.suppressed():
            await settled()
        bench.at(0)
        await settled()
        assert bench.levels() == [(HIGH, NORMAL)]
        rise(bench)
        await settled()
        bench.at(0)
        with bench.monitor.suppressed():
            await settled()
        bench.at(1000)  # it is short again: a rise, and no relief
        await settled()
        assert bench.levels()[1:] == [(NORMAL, HIGH)] * 2

    asyncio.run(main())


# ---- fork ----


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_the_child_of_a_fork_has_no_loop_until_one_runs_there(run_python: Any) -> None:
    run_python(
        """
        import asyncio, os, sys
        from mempool.pressure import Level, PressureMonitor, Thresholds

        used, calls = [0], []
        monitor = PressureMonitor(Thresholds(1000), sources=[lambda: (used[0], None)], min_dwell=0)

        def rise():
            used[0] = 0
            monitor.poll()
            used[0] = 1100
            monitor.poll()

        async def note(event):
            calls.append(event)

        async def main():
            mine = monitor.on(Level.HIGH, note)
            rise()                                 # on its way while the program forks
            return mine

        async def child():
            rise()
            while not calls:
                await asyncio.sleep(0)

        loop = asyncio.new_event_loop()
        registration = loop.run_until_complete(main())
        pid = os.fork()
        if not pid:
            calls.clear()
            rise()
            assert registration.errors == 1 and not registration.cancelled
            asyncio.run(child())
            os._exit(0 if len(calls) == 1 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        """
    )
