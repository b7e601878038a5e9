"""Tells the log what happened: an event of the catalogue, with its fields as attributes of the record."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from contextvars import ContextVar
from typing import Any

from strandline.telemetry.catalogue.log_events import LOG_EVENTS

current_node: ContextVar[str] = ContextVar("strandline_node", default="")
"""Name of the node on whose behalf this task runs: the field ``node`` of what it tells."""

OF_RECORDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""What every record has, in some version of Python."""

RESERVED = OF_RECORDS | {
    "event",
    "exception",
    "level",
    "logger",
    "span_id",
    "time",
    "trace",
    "trace_id",
}
"""Names that no field may have: the record's own, the arguments of ``tell``, and those of the JSON line."""

_KNOWN = {one.name: (one.severity, one.message) for one in LOG_EVENTS.values()}
_AS_THEY_ARE = (str, int, float, bool, type(None))


class Journal:
    """A logger that is told events of the catalogue.

    Each record has the event's name as ``event`` and every field under its own name. The message is
    the catalogue's, filled in by the handlers as always, so ``record.msg`` groups what is alike.

    Args:
        name: Of the logger.
    """

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def tell(
        self,
        event: str,
        /,
        *,
        level: int | None = None,
        trace: BaseException | None = None,
        **fields: Any,
    ) -> None:
        """Write *event*, unless nobody listens to its level. Never raises because of what it is given.

        An exception given as a field is text in the message (``%(error)r`` shows its class too); on
        the record the field is the name of its class, and ``<field>_text`` its text. A tuple is
        joined by commas in the message, and a list on the record.

        Args:
            event: Name in ``LOG_EVENTS``.
            level: Instead of the catalogue's.
            trace: Its traceback is told as well; it is the field ``error`` if no other is given.
            fields: As the catalogue lists them.
        """
        severity, message = _KNOWN.get(event, (logging.WARNING, ""))
        severity = severity if level is None else level
        logger = self._logger
        if not logger.isEnabledFor(severity):
            return
        place, line, function, _ = logger.findCaller(False, 2)
        traced = None if trace is None else (type(trace), trace, trace.__traceback__)
        shown = {name: _in_words(one) for name, one in fields.items()}
        record = logger.makeRecord(
            logger.name,
            severity,
            place,
            line,
            message,
            (shown,) if shown else (),
            traced,
            function,
        )
        if trace is not None:
            fields.setdefault("error", trace)
        vars(record).update(_attributes(event, fields))
        if not _can_be_shown(record, message):
            record.msg, record.args = _as_it_is(event, shown), ()
        logger.handle(record)


class _Spoken:
    """An exception in a message. Its class may be the user's, and fail to show itself."""

    __slots__ = ("_error",)

    def __init__(self, error: BaseException) -> None:
        self._error = error

    def __str__(self) -> str:
        try:
            return str(self._error)
        except Exception:  # the user's code raises anything
            return type(self._error).__name__

    def __repr__(self) -> str:
        try:
            return repr(self._error)
        except Exception:  # the user's code raises anything
            return type(self._error).__name__


def _in_words(value: Any) -> Any:
    """*value* for the message."""
    if isinstance(value, BaseException):
        return _Spoken(value)
    if isinstance(value, tuple):
        return ", ".join(str(plain(one)) for one in value)
    return value


def _attributes(event: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the record gets: plain values that any handler can write."""
    found: dict[str, Any] = {"event": event}
    if node := current_node.get():
        found["node"] = node
    if ids := current_trace():
        found["trace_id"], found["span_id"] = ids
    for name, value in fields.items():
        safe = f"{name}_" if name in RESERVED else name
        if isinstance(value, BaseException):
            found[safe] = type(value).__name__
            found[f"{safe}_text"] = str(_Spoken(value))
        else:
            found[safe] = plain(value)
    return found


def current_trace() -> tuple[str, str] | None:
    """Trace and span id of the current span; OpenTelemetry is not imported for that."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from strandline.telemetry.trace_context import current_ids

    return current_ids()


def plain(value: Any) -> Any:
    """*value* as text, number, truth, nothing, or a list of these; never raises."""
    if isinstance(value, _AS_THEY_ARE):
        return value
    try:
        if isinstance(value, Mapping):
            return {str(name): plain(one) for name, one in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [plain(one) for one in value]
        return str(value)
    except Exception:  # the user's code raises anything
        return type(value).__name__


def _can_be_shown(record: logging.LogRecord, message: str) -> bool:
    """Whether the catalogue knows the event and its message takes these fields; else a handler would fail."""
    if not message or ("%(" in message and not record.args):
        return False
    try:
        record.getMessage()
    except Exception:
        return False
    return True


def _as_it_is(event: str, shown: Mapping[str, Any]) -> str:
    return " ".join((event, *(f"{name}={plain(one)}" for name, one in shown.items())))
