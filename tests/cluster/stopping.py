"""A node without a database that misbehaves when it stops: ``python stopping.py KIND [SETTING=VALUE ...]``.

It prints ``up``, then what its steps did, then the report.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from strandline import termination

GIVEN = dict(word.split("=") for word in sys.argv[2:])
HARD, FAST = float(GIVEN.get("hard", 2.5)), float(GIVEN.get("fast", 0.4))
TOLD = termination.install(hard=HARD, fast=FAST)

from strandline.cli.node import log_to_stderr, run_until_done  # noqa: E402
from strandline.cluster.shutdown import Shutdown, Step  # noqa: E402
from strandline.cluster.shutdown_report import ShutdownReport  # noqa: E402
from strandline.cluster.until_told import until_told  # noqa: E402
from strandline.telemetry.signals import Signals  # noqa: E402


class Bang(BaseException):
    pass


def say(text: str) -> None:
    print(text, flush=True)


def did(name: str) -> Callable[[], Any]:
    async def step() -> None:
        await asyncio.sleep(0.01)
        say(f"did {name}")

    return step


async def swallow() -> None:
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            say("swallowed")


async def thread() -> None:
    await asyncio.to_thread(time.sleep, 60)


async def blocks() -> None:
    time.sleep(60)


async def regex() -> None:
    re.match(r"(a+)+$", "a" * 40 + "b")


async def raises() -> None:
    raise RuntimeError("async")


def raises_at_once() -> Any:
    raise ValueError("sync")


async def raises_base() -> None:
    raise Bang


async def exits() -> None:
    sys.exit(9)


async def exits_in_a_task() -> None:
    async def end() -> None:
        sys.exit(9)

    await asyncio.gather(asyncio.create_task(end()))


async def stops_the_loop() -> None:
    asyncio.get_running_loop().stop()
    await asyncio.sleep(0.05)


async def interrupted() -> None:
    raise KeyboardInterrupt


async def cancels_all() -> None:
    for task in asyncio.all_tasks():
        if task is not asyncio.current_task():
            task.cancel()
    await asyncio.sleep(0.05)


async def slow() -> None:
    await asyncio.sleep(60)


async def nap() -> None:
    await asyncio.sleep(1)


async def leaves_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(60,)).start()


async def leaves_an_exit_function() -> None:
    atexit.register(time.sleep, 60)
    atexit.register(say, "exit function ran")


async def fills_stdout() -> None:
    sys.stdout.write("x" * 10_000_000)


async def forks() -> None:
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(5)
    await asyncio.sleep(0.1)
    os.kill(child, signal.SIGTERM)
    _, status = os.waitpid(child, 0)
    say(f"child {os.waitstatus_to_exitcode(status)}")


KINDS: dict[str, Callable[[], Any]] = {
    one.__name__: one
    for one in (
        swallow, thread, blocks, regex, raises, raises_at_once, raises_base, exits, exits_in_a_task,
        stops_the_loop, interrupted, cancels_all, slow, nap, leaves_a_thread, leaves_an_exit_function,
        fills_stdout, forks,
    )
}  # fmt: skip


async def live(kind: str) -> ShutdownReport:
    signals = Signals()
    shutdown = Shutdown(
        total=float(GIVEN.get("total", 1.5)),
        reserve=0.5,
        fast=FAST,
        signals=signals,
        hurry=lambda: TOLD.count,
    )
    TOLD.last_words = shutdown.last_words

    async def start() -> None:
        shutdown.part(Step("close", did("close"), cap=0.5))
        shutdown.part(Step("leave", did("leave"), cap=0.5, needed=True))
        shutdown.part(Step("give back", did("give back"), cap=0.5, needed=True))
        if kind == "start":  # hangs in the middle, and swallows that it is cancelled
            say("up")
            await swallow()
        step = KINDS.get(kind, did("work"))
        shutdown.part(Step("work", step, cap=float(GIVEN.get("cap", 9))))
        shutdown.part(Step("step down", raises, cap=0.5, needed=True))
        shutdown.part(Step("announce", did("announce"), cap=0.5, needed=True))
        say("up")
        if "before" in GIVEN:  # misbehaves while it runs, not when it stops
            await KINDS[GIVEN["before"]]()

    report = await until_told(start, TOLD.wait, shutdown, began=lambda: TOLD.told_at)
    say(report.json())
    return report


def main() -> None:
    log_to_stderr("INFO")
    if GIVEN.get("loop") == "asyncio":
        sys.modules["uvloop"] = None  # type: ignore[assignment]
    if "import" in GIVEN:  # heavy imports, which take their time
        say("up")
        time.sleep(float(GIVEN["import"]))
    termination.leave(run_until_done(live(sys.argv[1])).exit_code)


main()
