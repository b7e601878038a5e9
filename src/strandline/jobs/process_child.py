"""The other side of a job's process: reads a call, runs it, answers, until its pipe is closed."""

from __future__ import annotations

import functools
import importlib
import multiprocessing
import os
import pickle
import signal
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from multiprocessing.connection import Connection, wait
from typing import Any, NoReturn

import msgspec

from strandline.errors import InvalidDefinition
from strandline.jobs.context import CURRENT, JobContext
from strandline.jobs.row import Claimed

PROGRESS_GAP = 0.2  # seconds between what is told of one job's progress


BEGUN = b"b"  # the first answer: from now on the job has been attempted


class Request(msgspec.Struct, array_like=True):
    """A call: where the function is found, for which job, its arguments as JSON, and its span."""

    module: str
    name: str
    job: tuple[Any, ...]
    args: str
    trace: str = ""


class Progress(msgspec.Struct, array_like=True):
    """How far a job is."""

    done: float | None
    total: float | None
    message: str


class ChildReach:
    """What a job in a process of its own can reach: its progress."""

    def __init__(self, send: Callable[[bytes], None]) -> None:
        self._send = send
        self._told_at = 0.0
        self._left: bytes | None = None
        self._closed = False
        self._lock = threading.Lock()

    def progress(self, job: Claimed, done: float | None, total: float | None, message: str) -> None:
        """See ``Reach``."""
        data = b"p" + msgspec.msgpack.encode(Progress(done, total, message[:1000]))
        with self._lock:
            if self._closed:  # a thread of a job that has ended: the pipe is another job's by now
                return
            now = time.monotonic()
            if now - self._told_at < PROGRESS_GAP:
                self._left = data
                return
            self._told_at, self._left = now, None
            self._send(data)

    def close(self) -> None:
        """Tell what was held back, and nothing more."""
        with self._lock:
            self._closed = True
            if self._left is not None:
                self._send(self._left)
                self._left = None

    async def results(self, job: Claimed) -> dict[str, Any]:
        """See ``Reach``."""
        _unreachable("results()")

    def completing(self, job: Claimed, result: Any) -> AbstractAsyncContextManager[Any]:
        """See ``Reach``."""
        _unreachable("completing()")

    async def enqueue(self, call: Any) -> Any:
        """See ``Reach``."""
        _unreachable("enqueue()")


def serve(pipe: Connection) -> None:
    """Answer requests until *pipe* is closed, or this process's parent is gone."""
    # Ctrl-C and a stopping supervisor tell everybody; whether its jobs may end is for the node to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    decode = msgspec.msgpack.Decoder(Request).decode
    while True:
        try:
            data = pipe.recv_bytes()
        except (EOFError, OSError):
            return
        pipe.send_bytes(BEGUN)
        pipe.send_bytes(_performed(decode(data), pipe.send_bytes))


def _performed(request: Request, send: Callable[[bytes], None]) -> bytes:
    """The answer: the result, or what was raised."""
    reach = ChildReach(send)
    job = Claimed(*request.job)
    context = JobContext(job, reach)
    token = CURRENT.set(context)
    try:
        call = _call(request.module, request.name, job.kind)
        with _spanned(request.trace):
            result = call(context, request.args)
        answer = _returned(result, job.kind)
    except BaseException as error:  # sys.exit() and whatever else: the job's failure
        answer = b"e" + _failure(error)
    finally:
        CURRENT.reset(token)
    reach.close()
    return answer


def _spanned(trace: str) -> AbstractContextManager[None]:
    """In it the job's span, which is the node's, is the current one."""
    if not trace:
        return nullcontext()
    from strandline.telemetry.trace_context import continued

    return continued(trace)


def _returned(result: Any, kind: str) -> bytes:
    """The result, or why it cannot be told: the job has completed all the same."""
    from strandline.jobs.returned import encoded

    try:
        return b"r" + encoded(result, kind).encode()
    except Exception as error:  # what it holds is the user's
        return b"u" + _clean(str(error)).encode()


@functools.lru_cache(maxsize=1000)
def _call(module: str, name: str, kind: str) -> Callable[[JobContext, str], Any]:
    """What runs the function from its JSON."""
    from strandline.jobs.arguments import Arguments
    from strandline.jobs.inject import inject, sources

    function = _found(module, name)
    arguments = Arguments(function, kind)
    injected = sources(function, f"job {kind!r}").blocking

    def call(context: JobContext, text: str) -> Any:
        args, kwargs = arguments.decode(text)
        called = inject(function, context, injected) if injected else function
        return called(*args, **kwargs)

    return call


def _found(module: str, name: str) -> Callable[..., Any]:
    try:
        found: Any = importlib.import_module(module)
        for step in name.split("."):
            found = getattr(found, step)
    except (ImportError, AttributeError) as error:
        raise InvalidDefinition(
            f"a process for jobs cannot find {module}.{name}: {error}; a job with"
            " executor='process' must be a function of a module that can be imported there"
        ) from error
    function: Callable[..., Any] = getattr(
        found, "function", found
    )  # a declared job, or the function itself
    if not callable(function):
        raise InvalidDefinition(f"{module}.{name} is {function!r}, which is no function")
    return function


def _failure(error: BaseException) -> bytes:
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    trace = "".join(traceback.format_exception(error))
    try:
        # By the class and the attributes: most classes with an __init__ of their own do not survive
        # being pickled as exceptions are.
        pickled = pickle.dumps(_Carried(error))
        pickle.loads(pickled)  # noqa: S301 - just made
    except Exception:  # it holds a lock, a connection, or is local to a function
        pickled = b""
    try:
        text = str(error)
    except Exception:
        text = "(its text cannot be had)"
    return msgspec.msgpack.encode((name, _clean(text), _clean(trace), pickled))


class _Carried:
    """Pickles as the exception that it holds."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return rebuilt, (type(self.error), self.error.args, vars(self.error))


def rebuilt(
    cls: type[BaseException], args: tuple[Any, ...], state: dict[str, Any]
) -> BaseException:
    """An exception as it was, without calling its ``__init__`` again."""
    error = cls.__new__(cls, *args)
    error.args = args
    vars(error).update(state)
    return error


def _clean(text: str) -> str:
    return text.encode(errors="replace").decode()


def _unreachable(what: str) -> NoReturn:
    raise RuntimeError(f"{what} cannot be reached from a process of its own: use executor='thread'")


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
