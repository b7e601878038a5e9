"""The jobs that an app declares, by kind: looked up, prepared, decoded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from strandline.errors import InvalidDefinition, InvalidInput, UnknownJob
from strandline.events.causes import CAUSE
from strandline.jobs.arguments import Bound
from strandline.jobs.context import find_current
from strandline.jobs.encryption import decrypt, encrypt, newest
from strandline.jobs.flow import Flow
from strandline.jobs.job import NO_META, NO_OPTIONS, Call, Job, Options, Upcast, kept_flag
from strandline.jobs.parts import Runnable
from strandline.jobs.row import ORDERED, Flag, NewJob
from strandline.jobs.unique import checked_unique, unique_key
from strandline.jobs.words import (
    checked_job_option,
    checked_meta,
    checked_seconds,
    checked_tags,
    checked_word,
)
from strandline.settings import Settings
from strandline.telemetry.trace_context import current_traceparent

About = Mapping[str, Any]
Row = tuple[int, str, str]
Compile = Callable[[Job[..., Any]], Runnable]

_encode = msgspec.json.Encoder().encode
_plain = msgspec.json.Decoder(dict[str, Any]).decode
_KEPT = int(Flag.KEEP_ALL | Flag.KEEP_NOTHING)  # an enum's own & takes a microsecond


class Kinds:
    """The jobs of an app.

    Attributes:
        jobs: By kind and by alias; apps that share declarations share it.
    """

    def __init__(
        self, jobs: dict[str, Job[..., Any]] | None = None, settings: Settings | None = None
    ) -> None:
        self.jobs: dict[str, Job[..., Any]] = {} if jobs is None else jobs
        self._settings = settings or Settings()
        self._compile: Compile | None = None
        self._runnables: dict[str, Runnable] = {}

    def add(self, job: Job[..., Any]) -> None:
        """Declare *job*.

        Raises:
            InvalidDefinition: Its kind or an alias is taken.
        """
        if job.unique is not None:
            checked_unique(job.unique, job, error=InvalidDefinition)
        for name in (job.kind, *job.aliases):
            if name in self.jobs:
                raise InvalidDefinition(
                    f"job {name!r} is declared already: give it a name of its own"
                )
        for name in (job.kind, *job.aliases):
            self.jobs[name] = job

    def upcast(self, name: str, job: Job[..., Any], change: Upcast) -> None:
        """Read arguments stored under the kind *name* through *change* before *job* gets them.

        Raises:
            InvalidDefinition: *name* belongs to another job.
        """
        checked_word(name, "kind", error=InvalidDefinition)
        if self.jobs.get(job.kind) is not job:
            raise InvalidDefinition(f"declare job {job.kind!r} with @app.job before its upcasters")
        if self.jobs.setdefault(name, job) is not job:
            raise InvalidDefinition(f"job {name!r} is declared already, as {self.jobs[name]!r}")
        job.upcasters[name] = change

    def get(self, kind: str) -> Job[..., Any]:
        """The job of that kind.

        Raises:
            UnknownJob: There is none.
        """
        found = self.jobs.get(kind)
        if found is None:
            known = ", ".join(sorted(self.jobs)) or "none"
            raise UnknownJob(
                f"no job of kind {kind!r} is declared with @app.job (declared: {known})"
            )
        return found

    @property
    def names(self) -> list[str]:
        """All kinds that can be fetched, old names included."""
        return list(self.jobs)

    @property
    def queues(self) -> set[str]:
        """Where calls wait unless they say otherwise."""
        return {job.queue for job in self.jobs.values()}

    def bind(self) -> None:
        """Resolve the annotations of all jobs.

        Raises:
            InvalidDefinition: One names what JSON cannot be read as.
        """
        for job in self.jobs.values():
            job.arguments.bind()

    # ---- running

    def compile_with(self, compile_job: Compile) -> None:
        """Let *compile_job* make what ``runnable`` answers, each once, from now on."""
        self._compile = compile_job
        self._runnables = {}

    def runnable(self, kind: str) -> Runnable:
        """The job of that kind, ready to run.

        Raises:
            UnknownJob: There is none.
        """
        found = self._runnables.get(kind)
        if found is None:
            job = self.get(kind)
            if self._compile is None:
                raise RuntimeError("jobs run only on a node, and this app has begun none")
            found = self._runnables.get(job.kind) or self._compile(job)
            self._runnables[kind] = self._runnables[job.kind] = found
        return found

    def decode(self, kind: str, args: str, *, encrypted: bool = False) -> Bound:
        """What the function of *kind* is called with, from what is stored.

        Raises:
            UnknownJob: No job has this kind.
            InvalidSetting: The key is not there.
            msgspec.ValidationError: They do not fit.
        """
        job = self.get(kind)
        data: str | bytes = decrypt(args, self._settings.job_keys) if encrypted else args
        change = job.upcasters.get(kind)
        if change is not None:
            return job.arguments.convert(change(_plain(data)))
        return job.arguments.decode(data)

    # ---- enqueueing

    def check(self, call: Any) -> Call[Any]:
        """*call*, if it is one of a job of this app.

        Raises:
            InvalidInput: It is something else.
            UnknownJob: The job belongs to another app.
        """
        if not isinstance(call, Call):
            raise _not_a_call(call)
        job = call.job
        if self.jobs.get(job.kind) is not job:
            self.get(job.kind)
            raise UnknownJob(f"job {job.kind!r} of this app is another one than that of the call")
        return call

    def prepare(
        self,
        call: Call[Any],
        id: int,  # noqa: A002 - what the column is called
        about: About | None = None,
    ) -> NewJob:
        """*call* as a row, with this id: checked, encoded.

        Args:
            call: Of a job of this app.
            id: Of the row.
            about: What ``circumstances`` said just now; it is asked when None.

        Raises:
            InvalidInput: An argument or option cannot be stored.
            UnknownJob: The job belongs to another app.
        """
        job = self.check(call).job
        data = job.arguments.encode(call.args, call.kwargs)
        if len(data) > self._settings.max_payload_bytes:
            raise self._too_large(job, data)
        new = NewJob(
            id,
            job.kind,
            data.decode(),
            job.queue,
            job.priority,
            job.retry.max_attempts,
            job.flags,
        )
        options = call.options
        if about is None:
            about = circumstances()
        if options is not NO_OPTIONS:
            _apply(options, new)
            new.meta = self._meta(about, options)
        elif about:
            new.meta = self._meta(about, options)
        if new.key is None and job.key is not None:
            new.key = checked_word(job.arguments.filled(job.key, call.args, call.kwargs), "key")
        if new.flags & ORDERED and new.key is None:
            raise InvalidInput(f"job {job.kind!r} is ordered by its key, and this call has none")
        unique = options.unique if options.unique is not None else job.unique
        if unique is not None:
            secret = newest(self._settings.job_keys) if job.encrypted else ""
            unique_key(new, unique, job, data, secret)
        if job.encrypted:
            new.args = encrypt(data, self._settings.job_keys)
        return new

    def rows(self, calls: Sequence[Call[Any]], ids: Iterable[int]) -> list[Row] | None:
        """Id, kind and arguments of *calls* of one job, if they have nothing else of their own.

        Half the work of ``prepare``, which decides where this answers None.
        """
        job = getattr(calls[0], "job", None)
        if not isinstance(job, Job) or not job.is_usual or self.jobs.get(job.kind) is not job:
            return None
        encode, kind, limit = job.arguments.encode, job.kind, self._settings.max_payload_bytes
        rows: list[Row] = []
        for call, number in zip(calls, ids, strict=True):
            if type(call) is not Call or call.job is not job or call.options is not NO_OPTIONS:
                return None
            data = encode(call.args, call.kwargs)
            if len(data) > limit:
                raise self._too_large(job, data)
            rows.append((number, kind, data.decode()))
        return rows

    def _too_large(self, job: Job[..., Any], data: bytes) -> InvalidInput:
        return InvalidInput(
            f"arguments of job {job.kind!r} have {len(data)} bytes of JSON, the limit is"
            f" {self._settings.max_payload_bytes} (setting max_payload_bytes): store the large"
            " part elsewhere and its key here"
        )

    def _meta(self, circumstances: About, options: Options) -> str | None:
        about = dict(circumstances)
        if options.meta is not NO_META:
            about |= checked_meta(options.meta)
        if options.tags:
            about["tags"] = list(checked_tags(options.tags))
        if options.timeout is not None:
            about["timeout"] = checked_job_option("timeout", options.timeout)
        if not about:
            return None
        try:
            data = _encode(about)
        except (TypeError, ValueError, OverflowError, RecursionError) as error:
            raise InvalidInput(f"meta of a job has no JSON form: {error}") from error
        if len(data) > self._settings.max_payload_bytes and "trace" in circumstances:
            about = {name: value for name, value in circumstances.items() if name != "trace"}
            return self._meta(about, options)  # it is not to fail for being watched
        if b"\\u0000" in data or len(data) > self._settings.max_payload_bytes:
            raise InvalidInput("meta of a job holds a NUL character, or is too large")
        return data.decode()


def circumstances() -> About:
    """What is known of now about jobs that are enqueued: what led to them, and the trace."""
    about: dict[str, Any] = {}
    running = find_current()
    cause = CAUSE.get()
    if running is not None:
        about["causation"] = f"job:{running.id}"
        about["correlation"] = running.meta.get("correlation") or f"job:{running.id}"
    elif cause is not None:
        about["causation"] = cause.causation
        about["correlation"] = cause.correlation or cause.causation
    traceparent = current_traceparent()
    if traceparent is not None:
        about["trace"] = traceparent
    return about


def _apply(options: Options, new: NewJob) -> None:
    """Write into *new* what the call says otherwise than its job."""
    if options.queue is not None:
        new.queue = checked_word(options.queue, "queue")
    if options.priority is not None:
        new.priority = checked_job_option("priority", options.priority)
    if options.max_attempts is not None:
        new.max_attempts = checked_job_option("max_attempts", options.max_attempts)
    if options.delay is not None:
        new.delay = checked_seconds("delay", options.delay)
    if options.run_at is not None:
        new.run_at = checked_job_option("run_at", options.run_at)
    if options.key is not None:
        new.key = checked_word(options.key, "key")
    if options.tenant is not None:
        new.tenant = checked_word(options.tenant, "tenant")
    if options.ordered is not None:
        new.flags = new.flags & ~ORDERED | (ORDERED if options.ordered else 0)
    if options.keep is not None:
        kept = int(kept_flag(checked_job_option("keep", options.keep)))
        new.flags = new.flags & ~_KEPT | kept


def as_call(call: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
    """What ``enqueue(job, 1, x=2)`` and ``enqueue(job.call(1, x=2))`` mean alike.

    Raises:
        InvalidInput: Arguments stand beside a call, which has its own.
    """
    if isinstance(call, Job):
        return Call(call, args, kwargs or {})
    if args or kwargs:
        if not isinstance(call, Call | Flow):
            raise _not_a_call(call)
        raise InvalidInput(f"{call!r} has its arguments already: pass none beside it")
    return call


def _not_a_call(given: Any) -> InvalidInput:
    return InvalidInput(
        f"{given!r} cannot be enqueued: pass a job and its arguments, or job.call(...)"
    )


def all_calls(calls: Any) -> Iterable[Any]:
    """*calls*, if one can go through them."""
    if isinstance(calls, Call | str | bytes) or not isinstance(calls, Iterable):
        raise InvalidInput(f"{calls!r} is not a number of calls: enqueue takes a single one")
    return calls
