"""The spans that a test made, and what to ask of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

from strandline.telemetry import tracing


class Seen:
    """The spans that have ended by now."""

    def __init__(self, sampler: Sampler = ALWAYS_ON) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = self.provider.get_tracer("test")

    @property
    def all(self) -> tuple[ReadableSpan, ...]:
        """In the order of their ends."""
        return tuple(self.exporter.get_finished_spans())

    def named(self, name: str, **attributes: Any) -> list[ReadableSpan]:
        """Those called ``strandline.name``, with *attributes* by the end of their keys."""
        return [
            one
            for one in self.all
            if one.name == f"strandline.{name}"
            and all(attribute(one, key) == value for key, value in attributes.items())
        ]

    def only(self, name: str, **attributes: Any) -> ReadableSpan:
        """The one that there is."""
        (found,) = self.named(name, **attributes)
        return found


@contextmanager
def seen(sampler: Sampler = ALWAYS_ON) -> Iterator[Seen]:
    """Spans are made inside, and kept."""
    found = Seen(sampler)
    end: Callable[[], None] = tracing.use(found.provider)
    try:
        yield found
    finally:
        end()


def attribute(span: ReadableSpan, name: str) -> Any:
    """The attribute ``strandline.name``."""
    return (span.attributes or {}).get(f"strandline.{name}")


def ids(span: ReadableSpan) -> tuple[int, int]:
    """Of its trace, and its own."""
    context = span.get_span_context()
    assert context is not None
    return context.trace_id, context.span_id


def is_child(span: ReadableSpan, of: ReadableSpan) -> bool:
    """Whether *of* is the parent of *span*."""
    return span.parent is not None and (span.parent.trace_id, span.parent.span_id) == ids(of)


def links(span: ReadableSpan) -> list[tuple[int, int]]:
    """Trace and span ids of what it links to."""
    return [(one.context.trace_id, one.context.span_id) for one in span.links]
