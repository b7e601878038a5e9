"""The W3C trace context of the caller, when OpenTelemetry is installed and a span is recording."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_current_span: Callable[[], Any] | None
_no_span: Any = None
try:
    from opentelemetry.trace import INVALID_SPAN as _no_span  # noqa: N811 - None where it is not installed
    from opentelemetry.trace import get_current_span as _current_span
except ImportError:
    _current_span = None


def current_traceparent() -> str | None:
    """``traceparent`` of the current span; None when nothing is recorded."""
    if _current_span is None:
        return None
    span = _current_span()
    if span is _no_span:
        return None
    context = span.get_span_context()
    if not context.is_valid:
        return None
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
