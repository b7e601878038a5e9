"""The W3C trace context: of the span that is current, as text that travels, and back.

It is written where somebody will see it only: the context of a span that is not sampled is not
carried on. ``tracestate`` is not kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_current_span: Callable[[], Any] | None
_no_span: Any = None
_api: Any
_contexts: Any
try:
    from opentelemetry import context as _contexts
    from opentelemetry import trace as _api
    from opentelemetry.trace import INVALID_SPAN as _no_span  # noqa: N811 - None where it is not installed
    from opentelemetry.trace import get_current_span as _current_span
except ImportError:
    _contexts = _api = _current_span = None

LENGTH = 55  # characters of a traceparent of version 00
HEX = frozenset("0123456789abcdef")


def current_traceparent() -> str | None:
    """``traceparent`` of the current span; None when there is none, or nobody will see it."""
    if _current_span is None:
        return None
    span = _current_span()
    return None if span is _no_span else traceparent_of(span)


def traceparent_of(span: Any) -> str | None:
    """``traceparent`` of a *span* of OpenTelemetry; None when it is not sampled."""
    context = span.get_span_context()
    if not context.is_valid or not context.trace_flags & 1:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def current_ids() -> tuple[str, str] | None:
    """Trace and span id of the current span, in hexadecimal, for log records; None without one."""
    if _current_span is None:
        return None
    span = _current_span()
    if span is _no_span:
        return None
    context = span.get_span_context()
    if not context.is_valid:
        return None
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def parsed(traceparent: object) -> Any | None:
    """The span context that *traceparent* names; None if it names none, or nobody sees its trace.

    It may have been written by hand: anything is taken, and what cannot be read is no context.
    """
    if _api is None or not isinstance(traceparent, str) or len(traceparent) < LENGTH:
        return None
    version, trace, span, flags = (*traceparent[:LENGTH].split("-"), "", "", "", "")[:4]
    if (len(version), len(trace), len(span), len(flags)) != (2, 32, 16, 2) or version == "ff":
        return None
    if len(traceparent) > LENGTH and (version == "00" or traceparent[LENGTH] != "-"):
        return None  # a later version may say more, behind a dash
    if not HEX.issuperset(version + trace + span + flags) or not int(flags, 16) & 1:
        return None
    told = _api.TraceFlags(int(flags, 16))
    context = _api.SpanContext(int(trace, 16), int(span, 16), is_remote=True, trace_flags=told)
    return context if context.is_valid else None


@contextmanager
def continued(traceparent: str | None) -> Iterator[None]:
    """What the block does follows from the span that *traceparent* names, in another process maybe."""
    found = parsed(traceparent)
    if found is None:
        yield
        return
    token = _contexts.attach(_api.set_span_in_context(_api.NonRecordingSpan(found)))
    try:
        yield
    finally:
        _contexts.detach(token)


@contextmanager
def apart() -> Iterator[None]:
    """What the block starts and what outlives it belongs to no span, whoever has called."""
    if _contexts is None or _current_span is None or _current_span() is _no_span:
        yield
        return
    token = _contexts.attach(_contexts.Context())
    try:
        yield
    finally:
        _contexts.detach(token)
