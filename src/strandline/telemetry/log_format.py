"""Log records as lines: for people, or one JSON object each."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import msgspec

from strandline.telemetry.journal import OF_RECORDS, current_trace, plain


class ConsoleFormatter(logging.Formatter):
    """Time, level, logger and message in one line; a traceback in those below."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the fields of the record.

    The fields are whatever is on the record besides what every record has, so it also writes the
    ``extra`` of records that are not ours. A record of ours has ``event``. ``trace_id`` and
    ``span_id`` are told where a span was current, ``exception`` where there is a traceback.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The line, without a line break at its end."""
        told = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        told["time"] = told["time"].replace("+00:00", "Z")
        fields = {
            name: plain(value) for name, value in vars(record).items() if name not in OF_RECORDS
        }
        if "trace_id" not in fields and (ids := current_trace()):
            fields["trace_id"], fields["span_id"] = ids
        if record.exc_info and not record.exc_text:
            record.exc_text = self.formatException(record.exc_info)
        if record.exc_text:
            fields["exception"] = record.exc_text
        if record.stack_info:
            fields["stack"] = self.formatStack(record.stack_info)
        return _encoded({**told, **{key: one for key, one in fields.items() if key not in told}})


def formatter(name: str) -> logging.Formatter:
    """The formatter that the setting ``log_format`` names."""
    return JsonFormatter() if name == "json" else ConsoleFormatter()


def _encoded(line: dict[str, Any]) -> str:
    try:
        return msgspec.json.encode(line).decode()
    except (TypeError, ValueError):  # half a surrogate pair, or a number of a class of its own
        return msgspec.json.encode(_written(line)).decode()


def _written(value: Any) -> Any:
    if isinstance(value, dict):
        return {_written(name): _written(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_written(one) for one in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):  # of a class of its own
        return int(value) if isinstance(value, int) else float(value)
    return str(value).encode("utf-8", "backslashreplace").decode()
