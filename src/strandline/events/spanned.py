"""The spans of appends."""

from __future__ import annotations

from collections.abc import Sequence

from strandline.events.event import DEFAULT_TENANT, Appended
from strandline.telemetry import tracing


def appending(
    tenant: str = DEFAULT_TENANT, stream: str | None = None, stream_type: str | None = None
) -> tracing.AnySpan:
    """The span of an append. What is prepared inside has its context: begin it before."""
    return tracing.span(
        "strandline.append",
        tenant=None if tenant == DEFAULT_TENANT else tenant,
        stream=stream,
        stream_type=stream_type,
    )


def appended(span: tracing.AnySpan, done: Sequence[Appended]) -> None:
    """Say on *span* what was appended."""
    if not span.is_recording:
        return
    last = max(done, key=lambda one: one.position)
    alone = len(done) == 1
    span.set(
        events=sum(len(one.ids) for one in done),
        position=last.position,
        stream_version=last.version if alone else None,
        streams=None if alone else len(done),
    )
