"""The spans of enqueueing, and of attempts."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from strandline.jobs.attempt import Attempt
from strandline.jobs.verdicts import Cancel, Snooze
from strandline.jobs.waking import Written
from strandline.telemetry import tracing
from strandline.telemetry.journal import current_node

NO_FAILURES = ("snoozed", "cancelled", "released")  # endings of which nobody is to blame


def enqueueing() -> tracing.AnySpan:
    """The span of an enqueueing. What is prepared inside has its context: begin it before."""
    return tracing.span("strandline.enqueue")


def enqueued(span: tracing.AnySpan, ref: Any, written: Written) -> None:
    """Say on *span* what was enqueued: a job, or a flow."""
    if not span.is_recording:
        return
    span.set(kind=getattr(ref, "kind", None), job=getattr(ref, "id", None))
    enqueued_many(span, written)


def enqueued_many(span: tracing.AnySpan, written: Written) -> None:
    """Say on *span* how many jobs were enqueued, and where if it is one queue."""
    if span.is_recording:
        queues = list(written.counts)
        span.set(jobs=written.counts.total(), queue=queues[0] if len(queues) == 1 else None)


async def spanned(begin: Callable[[Attempt], Awaitable[Any]], attempt: Attempt) -> Any:
    """Run *attempt* by *begin* in a span of its own, which follows from what enqueued the job."""
    job = attempt.job
    trace = _trace_of(attempt)
    span = tracing.span(
        "strandline.job",
        parent=trace or tracing.ROOT,
        links=(trace,) if trace else (),
        node=current_node.get() or None,
        kind=job.kind,
        queue=job.queue,
        job=job.id,
        attempt=job.attempt,
        tenant=job.tenant,
    )
    try:
        with span.within():
            result = await begin(attempt)
    except BaseException as error:
        ending = _ending(attempt, error)
        span.set(ending=ending)
        span.end(error, failed=ending not in NO_FAILURES)
        raise
    span.set(ending="completed")
    span.end()
    return result


def _ending(attempt: Attempt, error: BaseException) -> str:
    if isinstance(error, Snooze):
        return "snoozed"
    if isinstance(error, Cancel):
        return "cancelled"
    if attempt.stopped_for in ("cancelled", "time"):
        return "cancelled" if attempt.stopped_for == "cancelled" else "failed"
    return "released" if attempt.stopped_for else "failed"


def _trace_of(attempt: Attempt) -> str | None:
    """What enqueued the job; whatever else stands in its meta, written by hand maybe."""
    text = attempt.job.meta
    if text is None or '"trace"' not in text:
        return None
    try:
        found = attempt.meta.get("trace")
    except (ValueError, AttributeError, RecursionError):
        return None
    return found if isinstance(found, str) else None
