"""The runner of a shutdown: order, time limits, isolation, report."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from strandline import termination
from strandline.cluster.shutdown import Shutdown, Step
from strandline.cluster.shutdown_report import ShutdownReport, StepOutcome
from strandline.cluster.until_told import until_told
from strandline.telemetry.signals import Notice, Signals


class Diary:
    """Steps that write down when they ran."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def step(self, name: str, *, seconds: float = 0.0, **given: Any) -> Step:
        async def run() -> None:
            await asyncio.sleep(seconds)
            self.done.append(name)

        return Step(name, run, **{"cap": 1.0, **given})


@pytest.fixture
def diary() -> Diary:
    return Diary()


def shutdown(
    *steps: Step,
    total: float = 2.0,
    reserve: float = 0.5,
    fast: float = 0.3,
    signals: Signals | None = None,
    hurry: Callable[[], int] = lambda: 0,
) -> Shutdown:
    made = Shutdown(
        total=total, reserve=reserve, fast=fast, signals=signals or Signals(), hurry=hurry
    )
    for step in reversed(steps):  # registered last, run first: *steps* is the order they run in
        made.part(step)
    return made


def statuses(report: ShutdownReport) -> dict[str, str]:
    return {step.name: step.status for step in report.steps}


async def forever() -> None:
    await asyncio.Event().wait()


# ---- order


async def test_what_was_registered_last_is_stopped_first(diary: Diary) -> None:
    stopping = Shutdown(total=1, reserve=0, fast=1, signals=Signals())
    for name in ("pools", "pulse", "work"):
        stopping.part(diary.step(name))

    report = await stopping.run("stop")

    assert diary.done == ["work", "pulse", "pools"]
    assert (report.result, report.exit_code, report.is_complete) == ("clean", 0, True)


async def test_neighbours_of_one_phase_run_side_by_side(diary: Diary) -> None:
    stopping = shutdown(
        diary.step("first"),
        diary.step("slow", seconds=0.2, phase=1),
        diary.step("quick", seconds=0.1, phase=1),
        diary.step("other phase", phase=2),
        diary.step("far from its phase", phase=1),
    )

    report = await stopping.run("stop")

    assert diary.done == ["first", "quick", "slow", "other phase", "far from its phase"]
    assert report.seconds < 0.29


async def test_a_part_that_is_stopped_already_is_taken_back(diary: Diary) -> None:
    stopping = shutdown(diary.step("stays"))
    withdraw = stopping.part(diary.step("goes", needed=True))

    withdraw()
    withdraw()
    await stopping.run("stop")

    assert diary.done == ["stays"]


async def test_a_part_that_starts_while_others_stop_is_stopped_next(diary: Diary) -> None:
    stopping = shutdown(diary.step("last"))

    async def starts_another() -> None:
        stopping.part(diary.step("late"))

    stopping.part(Step("starts another", starts_another, cap=1))
    await stopping.run("stop")

    assert diary.done == ["late", "last"]
    with pytest.raises(RuntimeError, match="too late was started after the shutdown"):
        stopping.part(diary.step("too late"))


async def test_two_calls_are_one_shutdown(diary: Diary) -> None:
    stopping = shutdown(diary.step("once", seconds=0.05))

    one, other = await asyncio.gather(stopping.run("first"), stopping.run("second"))
    later = await stopping.run("third")

    assert diary.done == ["once"]
    assert one is other is later
    assert one.reason == "first"


async def test_a_step_that_calls_for_the_end_does_not_wait_for_itself(diary: Diary) -> None:
    """A hook that calls ``app.stop()``, by itself or in a task of its own."""
    stopping = shutdown(diary.step("last"))
    seen: list[ShutdownReport] = []

    async def hook() -> None:
        seen.append(await stopping.run("hook"))
        seen.append(await asyncio.create_task(stopping.run("hook", stubborn=True)))

    stopping.part(Step("hook", hook, cap=1))
    report = await stopping.run("stop")

    assert statuses(report) == {"hook": "ok", "last": "ok"}
    assert [one.is_complete for one in seen] == [False, False]


async def test_it_goes_on_when_its_caller_is_cancelled(diary: Diary) -> None:
    stopping = shutdown(diary.step("slow", seconds=0.1), diary.step("last"))
    caller = asyncio.create_task(stopping.run("stop"))
    await asyncio.sleep(0.02)

    caller.cancel()
    await asyncio.wait({caller})
    report = await stopping.run("again")

    assert caller.cancelled()
    assert (diary.done, report.result) == (["slow", "last"], "clean")


async def test_a_stubborn_caller_gets_its_report_although_it_is_cancelled(diary: Diary) -> None:
    stopping = shutdown(diary.step("slow", seconds=0.1))
    caller = asyncio.create_task(stopping.run("stop", stubborn=True))
    await asyncio.sleep(0.02)

    for _ in range(3):
        caller.cancel()
        await asyncio.sleep(0.01)
    report = await caller

    assert report.result == "clean"
    assert caller.cancelling() == 0


# ---- failures


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        SystemExit(4),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
async def test_no_failure_keeps_the_next_step_from_running(
    diary: Diary, error: BaseException, at_once: bool
) -> None:
    def fail_at_once() -> Awaitable[None]:
        raise error

    async def fail() -> None:
        await asyncio.sleep(0)
        raise error

    stopping = shutdown(Step("fails", fail_at_once if at_once else fail, cap=1), diary.step("next"))

    report = await stopping.run("stop")

    assert statuses(report) == {"fails": "error", "next": "ok"}
    assert report.steps[0].error.startswith(type(error).__name__)
    assert (report.result, report.exit_code) == ("degraded", 3)


async def test_an_error_whose_text_cannot_be_made_is_told_by_its_kind(diary: Diary) -> None:
    class Odd(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    async def fail() -> None:
        raise Odd

    report = await shutdown(Step("odd", fail, cap=1), diary.step("next")).run("stop")

    assert (report.steps[0].error, diary.done) == ("Odd", ["next"])


async def test_listeners_and_log_handlers_that_raise_disturb_nothing(diary: Diary) -> None:
    signals = Signals()
    signals.listen(lambda notice: 1 / 0)
    stopping = shutdown(diary.step("one"), diary.step("two"), signals=signals)

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise SystemExit(1)

    handler = Broken()
    logging.getLogger("strandline.shutdown").addHandler(handler)
    try:
        report = await stopping.run("stop")
    finally:
        logging.getLogger("strandline.shutdown").removeHandler(handler)

    assert (diary.done, report.result) == (["one", "two"], "clean")


async def test_a_plain_function_is_a_step_as_well(diary: Diary) -> None:
    def plain() -> Any:
        diary.done.append("plain")

    report = await shutdown(Step("plain", plain, cap=1)).run("stop")

    assert (diary.done, report.result) == (["plain"], "clean")


# ---- time


async def test_a_hanging_step_is_cut_off_and_the_report_tells_where(diary: Diary) -> None:
    report = await shutdown(Step("hangs", forever, cap=0.1), diary.step("next")).run("stop")

    assert statuses(report) == {"hangs": "timeout", "next": "ok"}
    assert "in forever" in report.steps[0].error
    assert report.result == "degraded"  # its own cap, not the time in all


async def test_a_step_that_swallows_its_cancellation_is_abandoned(diary: Diary) -> None:
    let_go = asyncio.Event()

    async def swallow() -> None:
        while not let_go.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await let_go.wait()

    report = await shutdown(Step("swallows", swallow, cap=0.1), diary.step("next")).run("stop")
    let_go.set()

    assert "goes on although it was cancelled" in report.steps[0].error
    assert diary.done == ["next"]
    assert report.seconds < 0.4


async def test_needed_steps_get_the_reserve_in_the_share_of_their_caps(diary: Diary) -> None:
    stopping = shutdown(
        Step("greedy", forever, cap=60),
        Step("give back", forever, cap=3, needed=True),
        Step("leave", forever, cap=1, needed=True),
        diary.step("close"),
        total=1.0,
        reserve=0.4,
    )

    report = await stopping.run("stop")

    seconds = {step.name: step.seconds for step in report.steps}
    assert seconds["greedy"] == pytest.approx(0.6, abs=0.12)
    assert seconds["give back"] == pytest.approx(0.3, abs=0.12)
    assert seconds["leave"] == pytest.approx(0.1, abs=0.12)
    assert statuses(report)["close"] == "skipped"
    assert (report.result, report.exit_code, report.forced) == ("forced", 70, True)


async def test_needed_steps_run_even_when_a_blocked_loop_used_up_everything(diary: Diary) -> None:
    async def block() -> None:
        time.sleep(0.5)

    stopping = shutdown(
        Step("blocks", block, cap=0.1),
        diary.step("optional"),
        diary.step("leave", seconds=0.05, needed=True, cap=0.2),
        total=0.4,
        reserve=0.2,
    )

    report = await stopping.run("stop")

    assert diary.done == ["leave"]
    assert statuses(report) == {"blocks": "ok", "optional": "skipped", "leave": "ok"}


async def test_a_needed_step_does_not_pay_for_a_loop_blocked_by_others(diary: Diary) -> None:
    async def block() -> None:
        await asyncio.sleep(0.01)
        time.sleep(0.4)

    blocking = asyncio.create_task(block())
    report = await shutdown(diary.step("leave", seconds=0.1, needed=True, cap=0.2)).run("stop")
    await blocking

    assert statuses(report) == {"leave": "ok"}


async def test_the_reserve_is_at_most_half_of_the_time(diary: Diary) -> None:
    """Otherwise a short ``stop_timeout`` would leave the work nothing."""
    stopping = shutdown(
        diary.step("drain", seconds=0.1, cap=9),
        diary.step("leave", needed=True, cap=5),
        total=0.4,
        reserve=5,
    )

    await stopping.run("stop")

    assert diary.done == ["drain", "leave"]


async def test_time_counts_from_the_signal(diary: Diary) -> None:
    stopping = shutdown(Step("hangs", forever, cap=9), total=0.5, reserve=0)

    report = await stopping.run("SIGTERM", began=time.monotonic() - 0.3)

    assert report.steps[0].seconds == pytest.approx(0.2, abs=0.12)
    assert report.seconds >= 0.5


async def test_a_second_signal_cuts_the_step_under_way_short(diary: Diary) -> None:
    count = 1
    stopping = shutdown(
        Step("drain", forever, cap=60),
        diary.step("leave", needed=True, cap=0.2),
        total=9,
        fast=0.3,
        hurry=lambda: count,
    )
    running = asyncio.create_task(stopping.run("SIGTERM"))
    await asyncio.sleep(0.1)

    count = 2
    report = await running

    assert report.seconds < 0.8
    assert diary.done == ["leave"]
    assert (report.signals, report.exit_code) == (2, 70)


async def test_a_second_signal_before_the_first_step_is_heard(diary: Diary) -> None:
    stopping = shutdown(Step("drain", forever, cap=60), total=9, fast=0.3, hurry=lambda: 2)

    report = await stopping.run("SIGTERM")

    assert report.seconds < 0.7


async def test_the_limit_can_be_set_for_one_stop(diary: Diary) -> None:
    stopping = shutdown(Step("hangs", forever, cap=60), total=60)
    stopping.limit(0.2)

    report = await stopping.run("stop")

    assert report.seconds < 0.6


# ---- report


async def test_every_step_is_told_and_at_the_end_the_report(diary: Diary) -> None:
    signals = Signals()
    heard: list[Notice] = []
    signals.listen(heard.append)
    stopping = shutdown(diary.step("one"), Step("two", forever, cap=0.1), signals=signals)

    report = await stopping.run("stop")

    assert [(one.name, one.facts.get("status")) for one in heard] == [
        ("shutdown_step", "ok"),
        ("shutdown_step", "timeout"),
        ("shutdown", None),
    ]
    assert set(heard[0].facts) == {"step", "status", "seconds", "error"}
    assert heard[-1].facts["report"] is report


async def test_the_report_of_the_moment_shows_the_step_under_way(diary: Diary) -> None:
    stopping = shutdown(diary.step("first"), total=5)
    seen: list[ShutdownReport] = []

    async def leave() -> None:
        seen.append(stopping.report())

    stopping.part(Step("leave", leave, cap=1))
    await stopping.run("SIGTERM")

    (report,) = seen
    assert (report.is_complete, report.result) == (False, "clean")
    assert statuses(report) == {"leave": "running"}
    assert json.loads(stopping.last_words())["result"] == "forced"


async def test_work_that_was_left_makes_a_stop_degraded(diary: Diary) -> None:
    stopping = shutdown(diary.step("drain"))
    stopping.note(released=["a", "b"], abandoned=["c"])

    report = await stopping.run("stop")

    assert (report.released, report.abandoned) == (("a", "b"), ("c",))
    assert (report.result, report.exit_code) == ("degraded", 3)
    assert "2 released; 1 abandoned" in report.summary()


def test_the_report_in_json_stays_small() -> None:
    names = tuple(f"orders:v2:{number}/6500" for number in range(6500))
    report = ShutdownReport("stop", released=names, steps=(StepOutcome("drain", "ok", 1.23456),))

    facts = json.loads(report.json())

    assert len(report.json()) < 5000
    assert (facts["released_count"], len(facts["released"])) == (6500, 100)
    assert facts["steps"] == [{"name": "drain", "status": "ok", "seconds": 1.235, "error": ""}]


def test_an_evicted_node_ends_with_a_code_of_its_own() -> None:
    assert ShutdownReport("evicted").exit_code == 75
    assert ShutdownReport("evicted", abandoned=("a",)).exit_code == 75
    assert ShutdownReport("evicted", forced=True).exit_code == 70


# ---- a life


async def never() -> str:
    await forever()
    return ""


async def test_a_life_starts_waits_and_stops(diary: Diary) -> None:
    stopping = shutdown()
    told = asyncio.Event()

    async def start() -> None:
        stopping.part(diary.step("pools"))
        told.set()

    async def wait() -> str:
        await told.wait()
        return "SIGTERM"

    report = await until_told(start, wait, stopping)

    assert (diary.done, report.reason, report.result) == (["pools"], "SIGTERM", "clean")


async def test_a_start_that_fails_stops_what_it_had_started(diary: Diary) -> None:
    stopping = shutdown()

    async def start() -> None:
        stopping.part(diary.step("pools"))
        raise SystemExit(9)

    with pytest.raises(SystemExit):
        await until_told(start, never, stopping)

    assert diary.done == ["pools"]
    assert stopping.report().reason == "start failed: SystemExit"


async def test_told_in_the_middle_of_a_start_only_what_started_is_stopped(diary: Diary) -> None:
    stopping = shutdown()
    begun = asyncio.Event()

    async def start() -> None:
        stopping.part(diary.step("pools"))
        begun.set()
        try:
            await forever()
        finally:
            diary.done.append("cleaned up")
        stopping.part(diary.step("pulse"))

    async def wait() -> str:
        await begun.wait()
        return "SIGTERM"

    report = await until_told(start, wait, stopping)

    assert diary.done == ["cleaned up", "pools"]
    assert statuses(report) == {"break off the start": "ok", "pools": "ok"}


async def test_a_start_that_cleans_up_by_the_same_steps_does_not_wait_for_itself(
    diary: Diary,
) -> None:
    stopping = shutdown()
    begun = asyncio.Event()

    async def start() -> None:
        stopping.part(diary.step("pools"))
        begun.set()
        try:
            await forever()
        except BaseException:
            await stopping.run("could not start")
            raise

    async def wait() -> str:
        await begun.wait()
        return "SIGTERM"

    report = await until_told(start, wait, stopping)

    assert (report.reason, report.result, diary.done) == ("SIGTERM", "clean", ["pools"])


async def test_told_before_the_start_nothing_is_started(diary: Diary) -> None:
    async def start() -> None:
        diary.done.append("started")

    async def wait() -> str:
        return "SIGTERM"

    report = await until_told(start, wait, shutdown())

    assert (diary.done, report.exit_code) == ([], 0)


async def test_a_cancelled_life_stops_everything_and_is_cancelled(diary: Diary) -> None:
    stopping = shutdown()

    async def start() -> None:
        stopping.part(diary.step("pools", seconds=0.05))

    life = asyncio.create_task(until_told(start, never, stopping))
    await asyncio.sleep(0.02)
    life.cancel()
    await asyncio.wait({life})

    assert life.cancelled()
    assert (diary.done, stopping.report().reason) == (["pools"], "cancelled")


# ---- signals, where there are none


@pytest.fixture
def listener() -> Iterator[termination.Termination]:
    """As in a thread of somebody's program: Python allows no handlers there."""
    found: list[termination.Termination] = []

    async def elsewhere() -> None:
        await asyncio.to_thread(lambda: found.append(termination.install(hard=0.2, fast=0.1)))

    asyncio.run(elsewhere())
    yield found[0]
    termination.uninstall()


def test_outside_the_main_thread_there_are_no_signals_and_no_force(
    listener: termination.Termination,
) -> None:
    async def wait() -> str:
        asyncio.get_running_loop().call_later(0.01, listener.ask, "asked")
        return await asyncio.wait_for(listener.wait(), 5)

    assert listener.hears_signals is False
    assert asyncio.run(wait()) == "asked"
    assert asyncio.run(listener.wait()) == "asked"  # also who comes late
    listener.arm()
    time.sleep(0.4)  # this process is still there
    assert listener.count == 0


def test_handlers_are_put_back_when_the_last_one_has_ended() -> None:
    import signal

    before = signal.getsignal(signal.SIGTERM)
    one = termination.install()
    assert termination.install() is one
    assert signal.getsignal(signal.SIGTERM) == one.handle

    termination.uninstall()
    assert termination.present() is one
    termination.uninstall()

    assert termination.present() is None
    assert signal.getsignal(signal.SIGTERM) is before
