"""How a process is told to end, and that it does: signals, a count, two deadlines.

Standard library only and no asyncio at import, so that ``strandline node`` can listen for SIGTERM
before anything else is imported; as process 1 of a container an unheard SIGTERM is lost for good.

The first signal is a request: whoever waits in ``wait`` learns of it, in an event loop that runs
already or one that is made later. The second shortens what is left to ``fast`` seconds. The third
ends the process at once with code 130. From the first on two deadlines run, neither in need of the
event loop:

1. shortly before ``hard``, a thread writes ``last_words`` and ends the process with code 70;
2. at ``hard`` the C thread of ``faulthandler`` writes all stacks and ends it with code 1. It needs
   no interpreter lock: a regular expression that runs away holds the thread up, but not this.

A signal that comes while C code runs which never looks for signals is heard when that code ends.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import faulthandler
import os
import signal
import sys
import threading
import time

TYPE_CHECKING = False  # as type checkers know it; `typing` itself is slow to import
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType
    from typing import Any, NoReturn

EXIT_FUNCTIONS = 2.0  # seconds for what `atexit` was told
FORCED, THIRD_SIGNAL = 70, 130  # exit codes
HEARD = (signal.SIGTERM, signal.SIGINT)
MARGIN = 0.5  # seconds by which the thread comes before `hard`
AFTER_FAST = 1.0  # seconds from the end of `fast` until the thread comes
ECHO = 0.1  # seconds within which a second delivery is the same wish, forwarded by a parent


class Termination:
    """The signals of this process, while somebody listens; made by ``install``.

    Attributes:
        hears_signals: False outside the main thread, where Python allows no handlers.
        last_words: Says what was going on, for the log of a process that is ended by force.
    """

    def __init__(self, *, hard: float, fast: float) -> None:
        self.hears_signals = False
        self.last_words: Callable[[], str] | None = None
        self._hard, self._fast = hard, fast
        self._came: list[tuple[str, float]] = []
        self._process = os.getpid()
        self._asked = ""
        self._told_at: float | None = None
        self._armed_at: float | None = None
        self._armed = 0  # which arming is in force; a thread of an earlier one ends
        self._wakers: list[Callable[[], None]] = []
        self._before: dict[signal.Signals, Any] = {}

    @property
    def count(self) -> int:
        """How many stop signals have come."""
        return len(self._came)

    @property
    def reason(self) -> str:
        """The first signal, such as ``SIGTERM``, or what ``ask`` said; empty while none came."""
        return self._asked or (self._came[0][0] if self._came else "")

    @property
    def told_at(self) -> float | None:
        """The moment of the first request, by the monotonic clock."""
        return self._told_at

    async def wait(self) -> str:
        """Wait for the first request, also one that came long ago; its reason."""
        import asyncio

        loop = asyncio.get_running_loop()
        came = asyncio.Event()

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(came.set)

        self._wakers.append(wake)
        try:
            if self._told_at is None:  # looked at after `wake` is in its place, so none is missed
                await came.wait()
        finally:
            self._wakers.remove(wake)
        return self.reason

    def ask(self, reason: str) -> None:
        """Request the end as a first signal does, from any thread, without counting as one."""
        if self._told_at is None:
            self._asked = reason
            self._told_at = time.monotonic()
            self.arm()
        self._wake()

    def limit(self, *, hard: float, fast: float) -> None:
        """Set the deadlines anew, from the moment they began to run."""
        self._hard, self._fast = hard, fast
        if self._armed_at is not None:
            self._set_deadline()

    def arm(self) -> None:
        """Let the deadlines run from now, for an end that no signal began.

        Without signals the process is somebody else's, and goes on.
        """
        if self._armed_at is None and self.hears_signals:
            self._armed_at = time.monotonic()
            self._set_deadline()

    def disarm(self) -> None:
        """Stop the deadlines: the process goes on."""
        if self._armed_at is not None:
            self._armed_at = None
            self._armed += 1
            faulthandler.cancel_dump_traceback_later()

    def handle(self, number: int, frame: FrameType | None = None) -> None:
        """Take a signal. Runs between two instructions of the main thread, so it locks nothing."""
        if os.getpid() != self._process:  # forked off by user code, which ends it with SIGTERM
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        now = time.monotonic()
        if self._came and now - self._came[-1][1] < ECHO:
            return
        self._came.append((signal.Signals(number).name, now))
        self._told_at = self._told_at or now
        if len(self._came) >= 3:
            _write("strandline: third signal, ended at once\n")
            os._exit(THIRD_SIGNAL)
        self.arm()
        if len(self._came) == 2:
            self._set_deadline()
        self._wake()

    def _wake(self) -> None:
        for wake in list(self._wakers):
            wake()

    def _listen(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for one in HEARD:
            if (now := signal.getsignal(one)) != self.handle:  # also if somebody took it since
                self._before[one] = now
                signal.signal(one, self.handle)
        self.hears_signals = True
        if not faulthandler.is_enabled() and (errors := _stderr()) is not None:
            faulthandler.enable(errors)  # SIGABRT of the side process prints every stack

    def _restore(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for one, handler in self._before.items():
            if signal.getsignal(one) == self.handle:  # somebody else's is left alone
                signal.signal(one, signal.SIG_DFL if handler is None else handler)
        self._before.clear()
        self.hears_signals = False

    def _set_deadline(self) -> None:
        assert self._armed_at is not None
        margin = min(MARGIN, self._hard / 10)
        end = self._armed_at + self._hard
        if (known := len(self._came)) >= 2:
            end = min(end, self._came[1][1] + self._fast + AFTER_FAST + margin)
        self._armed += 1
        left = max(0.01, end - time.monotonic())
        errors = _stderr()
        where = os.open(os.devnull, os.O_WRONLY) if errors is None else errors
        try:
            faulthandler.dump_traceback_later(left, exit=True, file=where)
            # Not threading.Thread: its start takes locks that the interrupted code may hold.
            _thread.start_new_thread(self._force, (self._armed, end - margin))
        except RuntimeError:  # no thread can be had: the kernel's alarm needs none
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, left)
        if known != len(self._came):  # a signal came in the middle of this
            self._set_deadline()

    def _force(self, armed: int, at: float) -> None:
        while (left := at - time.monotonic()) > 0:
            time.sleep(min(left, 0.5))
            if armed != self._armed:
                return
        words = "nothing is known of what was going on"
        if self.last_words is not None:
            try:
                words = self.last_words()
            except BaseException as error:
                words = f"and could not say what was going on: {error!r}"
        if armed == self._armed:
            _write(f"strandline: ended by force, {words}\n")
            if (errors := _stderr()) is not None:
                faulthandler.dump_traceback(errors)
            os._exit(FORCED)


_lock = threading.Lock()
_present: Termination | None = None
_users = 0


def install(*, hard: float = 28.0, fast: float = 3.0) -> Termination:
    """Listen for SIGTERM and SIGINT from now on, in place of whoever did.

    Any number of callers share one listener; each ends its part with ``uninstall``. Outside the
    main thread nothing is replaced, and ``hears_signals`` of the answer is False.

    Args:
        hard: Seconds after the first signal at which the process is ended, whatever hangs.
        fast: Seconds left after a second signal.
    """
    global _present, _users
    with _lock:
        if _present is None:
            _present = Termination(hard=hard, fast=fast)
        else:
            _present.limit(hard=hard, fast=fast)
        _present._listen()
        _users += 1
        return _present


def uninstall(*, goes_on: bool = True) -> None:
    """End what ``install`` began; the last one restores the handlers and stops the deadlines.

    Args:
        goes_on: Whether the process may live on. If not, deadlines that run go on running.
    """
    global _present, _users
    with _lock:
        _users = max(0, _users - 1)
        if _users == 0 and _present is not None:
            _present._restore()
            if goes_on:
                _present.disarm()
            _present = None


def present() -> Termination | None:
    """The listener of this process, if there is one."""
    return _present


def leave(code: int) -> NoReturn:
    """End the process: run the exit functions, flush, and wait for no thread and no task.

    The functions that `atexit` was told get ``EXIT_FUNCTIONS`` seconds in all.
    """
    if _present is not None:
        _present.arm()  # for a pipe that nobody reads
    exits = threading.Thread(target=atexit._run_exitfuncs, daemon=True)
    with contextlib.suppress(RuntimeError):
        exits.start()
        exits.join(EXIT_FUNCTIONS)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)


def _stderr() -> int | None:
    """Where stacks can go; None if the program closed its stderr."""
    try:
        return sys.stderr.fileno() if sys.stderr is not None else None
    except (OSError, ValueError, AttributeError):
        return None


def _write(text: str) -> None:
    if (errors := _stderr()) is not None:
        with contextlib.suppress(OSError):
            os.write(errors, text.encode(errors="replace"))
