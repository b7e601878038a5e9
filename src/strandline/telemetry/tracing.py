"""Spans, through the OpenTelemetry API, where the program has set a provider; nothing otherwise.

``span`` is put around live code, ``record`` tells of what is over. Names, kinds and attributes are those
of the catalogue. Without a provider ``span`` answers one shared object that does nothing. Nothing that
fails in somebody's exporter or sampler reaches the code that is spanned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from types import TracebackType
from typing import Any, Self, TypeAlias

from strandline.telemetry.catalogue.attributes import ATTRIBUTES
from strandline.telemetry.catalogue.spans import SPANS
from strandline.telemetry.journal import Journal
from strandline.telemetry.trace_context import parsed, traceparent_of

_api: Any
_contexts: Any
try:
    from opentelemetry import context as _contexts
    from opentelemetry import trace as _api
except ImportError:
    _api = _contexts = None

log = Journal("strandline.tracing")

Parent: TypeAlias = "Live | Nothing | str | None"
"""None: the current span. A span, or a ``traceparent``. Empty, ``ROOT``: none."""

AnySpan: TypeAlias = "Live | Nothing"

ROOT = ""
MOST_LINKS = 32  # of one span; what is more is counted

_KEYS = {name: one.key for name, one in ATTRIBUTES.items()}
_FIXED: dict[str, dict[str, Any]] = {
    one.name: {_KEYS["database"]: "postgresql"} if "database" in one.attributes else {}
    for one in SPANS.values()
}
_tracer: Any = None  # of the provider in use, once there is one
_api_variables: Mapping[str, Any] = {"_TRACER_PROVIDER": None} if _api is None else vars(_api)


# ---- spans


class Nothing:
    """A span that nobody sees."""

    __slots__ = ()
    is_recording = False
    traceparent: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def set(self, **attributes: Any) -> None:
        """See ``Live``."""

    def within(self) -> Self:
        """See ``Live``."""
        return self

    def end(self, error: BaseException | None = None, *, failed: bool | None = None) -> None:
        """See ``Live``."""


NOTHING = Nothing()


class Live:
    """A span under way. As a context manager it is the current one inside, and ends with the block."""

    __slots__ = ("_span", "_token", "is_recording")

    def __init__(self, span: Any) -> None:
        self._span = span
        self._token: Any = None
        self.is_recording: bool = span.is_recording()

    def __enter__(self) -> Self:
        self._token = _attached(self._span)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _detached(self._token, error)
        self.end(error)

    def within(self) -> _Within:
        """Makes it the current one in a block, which may be one of several, and does not end it."""
        return _Within(self._span)

    def set(self, **attributes: Any) -> None:
        """Set attributes, by their names in the catalogue; None is left out."""
        if self.is_recording:
            with _harmless():
                self._span.set_attributes(_keyed(attributes))

    def end(self, error: BaseException | None = None, *, failed: bool | None = None) -> None:
        """End it, failed if *error* is an exception and no cancellation, or as *failed* says."""
        has_failed = isinstance(error, Exception) if failed is None else failed
        if error is not None and has_failed and self.is_recording:
            with _harmless():  # its text is made by its class, which is the user's
                self._span.set_attribute("error.type", _class_of(error))
                self._span.set_status(_api.StatusCode.ERROR, _words(error))
                self._span.record_exception(error)
        with _harmless():
            self._span.end()

    @property
    def traceparent(self) -> str | None:
        """Names it elsewhere; None if nobody will see it."""
        return traceparent_of(self._span)


class _Within:
    __slots__ = ("_span", "_token")

    def __init__(self, span: Any) -> None:
        self._span = span
        self._token: Any = None

    def __enter__(self) -> None:
        self._token = _attached(self._span)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        _detached(self._token, error)


def is_on() -> bool:
    """Whether anybody has set a provider."""
    return _tracer is not None or _is_set()


def span(
    name: str,
    /,
    *,
    links: Iterable[str] = (),
    parent: Parent = None,
    began: float | None = None,
    **attributes: Any,
) -> AnySpan:
    """Begin a span of the catalogue.

    Args:
        name: Of the span.
        links: ``traceparent`` of others that it follows from; 32 at the most.
        parent: See ``Parent``.
        began: When it began, in seconds since 1970; now if None.
        attributes: By their names in the catalogue; None is left out.
    """
    if _tracer is None and not _is_set():
        return NOTHING
    try:
        return Live(
            _tracer.start_span(
                name,
                context=_context_of(parent),
                kind=_KINDS[SPANS[name].role],
                attributes={**_FIXED[name], **_keyed(attributes)},
                links=_links(links),
                start_time=None if began is None else int(began * 1e9),
            )
        )
    except Exception as trouble:  # somebody's sampler
        log.tell("span_begin_failed", span=name, error=trouble)
        return NOTHING


def record(
    name: str,
    began: float,
    ended: float,
    *,
    links: Iterable[str] = (),
    parent: Parent = ROOT,
    failure: str = "",
    **attributes: Any,
) -> None:
    """Tell of something that is over as a span of the catalogue.

    Args:
        name: Of the span.
        began: In seconds since 1970.
        ended: The same.
        links: See ``span``.
        parent: See ``Parent``.
        failure: Why it failed, in words; empty if it did not.
        attributes: By their names in the catalogue; None is left out.
    """
    found = span(name, links=links, parent=parent, began=began, **attributes)
    if isinstance(found, Live):
        over(found, ended, failure)


def over(found: AnySpan, ended: float, failure: str = "") -> None:
    """End *found* at *ended*, in seconds since 1970, failed with the words *failure* if there are any."""
    if not isinstance(found, Live):
        return
    with _harmless():
        if failure:
            found._span.set_status(_api.StatusCode.ERROR, failure)
        found._span.end(end_time=int(ended * 1e9))


def use(provider: Any) -> Callable[[], None]:
    """Make spans by *provider* instead of the one that is set for the process; the answer ends that."""
    global _tracer
    before, _tracer = _tracer, _tracer_of(provider)

    def end() -> None:
        global _tracer
        _tracer = before

    return end


# ---- inside


def _is_set() -> bool:
    """Whether a provider is set for the process; its tracer is taken then.

    Asked for each span, so by the API's own variable: its function takes 1.5 us to say the same.
    """
    global _tracer
    if _api_variables.get("_TRACER_PROVIDER", _api) is None:
        return False
    try:
        provider = _api.get_tracer_provider()
        if isinstance(provider, _api.ProxyTracerProvider):
            return False
        _tracer = _tracer_of(provider)
    except Exception as trouble:  # it is somebody's provider
        log.tell("span_begin_failed", span="", error=trouble)
        return False
    return True


def _tracer_of(provider: Any) -> Any:
    try:
        ours = version("strandline")
    except PackageNotFoundError:  # frozen into one file, or run from a folder
        ours = ""
    return provider.get_tracer("strandline", ours)


@contextmanager
def _harmless() -> Iterator[None]:
    """What fails in the block is somebody's span processor, or what it was told: a line in the log."""
    try:
        yield
    except Exception as trouble:
        log.tell("span_end_failed", error=trouble)


def _context_of(parent: Parent) -> Any | None:
    if parent is None:
        return None
    if isinstance(parent, Live):
        return _api.set_span_in_context(parent._span, _contexts.Context())
    found = None if isinstance(parent, Nothing) else parsed(parent)
    if found is None:
        return _contexts.Context()
    return _api.set_span_in_context(_api.NonRecordingSpan(found), _contexts.Context())


def _links(traceparents: Iterable[str]) -> list[Any]:
    found = [parsed(one) for one in traceparents]
    return [_api.Link(one) for one in found if one is not None][:MOST_LINKS]


def _attached(span: Any) -> Any:
    if not span.get_span_context().is_valid:
        return None
    return _contexts.attach(_api.set_span_in_context(span))


def _detached(token: Any, error: BaseException | None) -> None:
    # A coroutine that is thrown away is closed in whatever context finds it: nothing to take back.
    if token is not None and not isinstance(error, GeneratorExit):
        _contexts.detach(token)


def _keyed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        _KEYS.get(name, f"strandline.{name}"): _plain(value)
        for name, value in attributes.items()
        if value is not None
    }


def _plain(value: Any) -> Any:
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, BaseException):
        return _class_of(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [str(one) for one in value]
    return str(value)


def _class_of(error: BaseException) -> str:
    kind = type(error)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def _words(error: BaseException) -> str:
    try:
        return str(error)[:500]
    except Exception:  # it is the user's class
        return type(error).__name__


_KINDS: dict[str, Any] = (
    {}
    if _api is None
    else {
        "internal": _api.SpanKind.INTERNAL,
        "producer": _api.SpanKind.PRODUCER,
        "consumer": _api.SpanKind.CONSUMER,
        "client": _api.SpanKind.CLIENT,
    }
)
