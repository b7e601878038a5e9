"""The journal: records with an event and fields, whatever is told; and the two formats."""

from __future__ import annotations

import io
import json
import logging
import logging.handlers
import queue
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from opentelemetry.sdk.trace import TracerProvider

from strandline.cli.node import log_to_stderr
from strandline.errors import SetupError
from strandline.telemetry.journal import Journal, current_node
from strandline.telemetry.log_format import ConsoleFormatter, JsonFormatter

ID = UUID("0198c2f4-0000-7000-8000-000000000001")


class Kept(logging.Handler):
    """Keeps the records, and formats each as a real handler does."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)
        self.format(record)


class Mute(Exception):
    """An error of a user that cannot show itself."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("strandline.test_journal")
    logger.propagate, level = False, logger.level
    logger.setLevel(logging.INFO)
    yield logger
    logger.handlers.clear()
    logger.setLevel(level)


@pytest.fixture
def kept(logger: logging.Logger) -> Kept:
    handler = Kept()
    logger.addHandler(handler)
    return handler


@pytest.fixture
def log(logger: logging.Logger) -> Journal:
    return Journal(logger.name)


def last(kept: Kept) -> dict[str, Any]:
    return vars(kept.records[-1])


def as_json(kept: Kept) -> dict[str, Any]:
    line = JsonFormatter().format(kept.records[-1])
    assert "\n" not in line
    found: dict[str, Any] = json.loads(line)
    return found


def test_a_record_has_the_event_its_fields_and_the_message_for_people(
    log: Journal, kept: Kept
) -> None:
    log.tell("work_failed", work="a:v1:all", error=ValueError("no"), failures=2)

    record = kept.records[-1]
    assert record.getMessage() == "work a:v1:all ended by itself: ValueError('no')"
    assert record.msg == "work %(work)s ended by itself: %(error)r"  # what groups records
    assert record.levelno == logging.WARNING
    assert (record.filename, record.funcName) == (
        "test_journal.py",
        "test_a_record_has_the_event_its_fields_and_the_message_for_people",
    )
    told = last(kept)
    assert told["event"] == "work_failed"
    assert (told["work"], told["failures"]) == ("a:v1:all", 2)
    assert (told["error"], told["error_text"]) == ("ValueError", "no")


def test_a_level_that_nobody_listens_to_costs_a_look_only(log: Journal, kept: Kept) -> None:
    class Costly:
        def __str__(self) -> str:
            raise AssertionError("not to be shown")

    log.tell("metric_unreadable", metric=Costly(), error=None)

    assert kept.records == []


def test_the_call_may_decide_the_level(log: Journal, kept: Kept) -> None:
    log.tell("stopped", level=logging.ERROR, summary="late", result="forced", seconds=1.0)

    assert kept.records[-1].levelname == "ERROR"


def test_a_traceback_is_told_with_the_class_of_the_error(log: Journal, kept: Kept) -> None:
    try:
        raise KeyError("gone")
    except KeyError as error:
        log.tell("drain_failed", trace=error)

    assert last(kept)["error"] == "KeyError"
    found = as_json(kept)
    assert found["message"] == "a draining node could not give its jobs back"
    assert found["exception"].endswith("KeyError: 'gone'")
    assert "Traceback" in ConsoleFormatter().format(kept.records[-1])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ((), "leadership_won"),
        ((("node", "a"),), "leadership_won node=a"),
        ((("node", "100%s"), ("epoch", "x")), "leadership_won node=100%s epoch=x"),
    ],
)
def test_what_does_not_fit_the_message_is_told_as_it_is(
    log: Journal, kept: Kept, told: tuple[tuple[str, Any], ...], message: str
) -> None:
    log.tell("leadership_won", **dict(told))

    assert kept.records[-1].getMessage() == message


def test_an_event_that_is_not_in_the_catalogue_is_told_all_the_same(
    log: Journal, kept: Kept
) -> None:
    log.tell("never_heard_of", name="x", shard="a")

    record = kept.records[-1]
    assert record.getMessage() == "never_heard_of name=x shard=a"
    assert record.name == "strandline.test_journal"  # a field cannot take the record's own place
    assert last(kept)["name_"] == "x"
    assert record.levelno == logging.WARNING


def test_an_error_that_cannot_show_itself_is_told_by_its_class(log: Journal, kept: Kept) -> None:
    log.tell("connections_unchecked", error=Mute())
    log.tell("release_delayed", works=Mute(), error=Mute())

    assert kept.records[0].getMessage() == "the connections could not be checked: Mute"
    assert kept.records[1].getMessage() == "Mute not released yet: Mute"
    assert last(kept)["error_text"] == "Mute"


def test_values_become_what_any_handler_can_write(log: Journal, kept: Kept) -> None:
    log.tell("evictions_braked", present=3, seconds=0.5, nodes=("a", "b"))
    assert kept.records[-1].getMessage().endswith("within another 0.5 s: a, b")
    assert last(kept)["nodes"] == ["a", "b"]

    log.tell("node_joined", node="a", node_id=ID)
    assert last(kept)["node_id"] == str(ID)


def test_the_log_of_a_factory_of_the_user_is_no_obstacle(log: Journal, kept: Kept) -> None:
    before = logging.getLogRecordFactory()

    def with_own_attributes(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.node, record.event = "theirs", "theirs"
        return record

    logging.setLogRecordFactory(with_own_attributes)
    try:
        log.tell("leadership_won", node="ours", epoch=1)
    finally:
        logging.setLogRecordFactory(before)

    assert (last(kept)["node"], last(kept)["event"]) == ("ours", "leadership_won")


def test_the_node_of_a_task_is_a_field_of_what_is_told_there(log: Journal, kept: Kept) -> None:
    token = current_node.set("a")
    try:
        log.tell("shard_recovered", shard="x:v1:all")
        log.tell("node_joined", node="b", node_id=ID)
    finally:
        current_node.reset(token)

    assert [vars(one)["node"] for one in kept.records] == ["a", "b"]


def test_a_record_knows_the_span_in_which_it_was_told(log: Journal, kept: Kept) -> None:
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("test")

    with tracer.start_as_current_span("outer") as span:
        log.tell("shard_recovered", shard="x:v1:all")
    log.tell("shard_recovered", shard="y:v1:all")

    context = span.get_span_context()
    assert vars(kept.records[0])["trace_id"] == f"{context.trace_id:032x}"
    assert vars(kept.records[0])["span_id"] == f"{context.span_id:016x}"
    assert "trace_id" not in last(kept)


def test_a_json_line_has_the_time_the_message_and_every_field(log: Journal, kept: Kept) -> None:
    log.tell("work_unplaced", count=2, reason='no node\nwith "gpu"', works=("a", "b"))

    found = as_json(kept)
    assert found.pop("time").endswith("Z")
    assert found == {
        "level": "WARNING",
        "logger": "strandline.test_journal",
        "message": '2 without a node: no node\nwith "gpu" (a, b)',
        "event": "work_unplaced",
        "count": 2,
        "reason": 'no node\nwith "gpu"',
        "works": ["a", "b"],
    }


def test_the_time_of_a_json_line_is_that_of_the_record(log: Journal, kept: Kept) -> None:
    log.tell("shard_recovered", shard="a")

    told = datetime.fromisoformat(as_json(kept)["time"])
    assert told == datetime.fromtimestamp(kept.records[-1].created, UTC)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("half \ud800 a pair", "half \\ud800 a pair"),
        (2**70, 2**70),
        (float("nan"), None),
        ({"a": {1: ID}}, {"a": {"1": str(ID)}}),
        (b"raw", "b'raw'"),
        (type("Name", (str,), {})("x"), "x"),
    ],
)
def test_a_json_line_is_written_whatever_a_field_holds(value: Any, written: Any) -> None:
    record = logging.makeLogRecord({"msg": "shard %s goes on", "args": (value,), "shard": value})

    # Not logged: what pytest has captured must be UTF-8 for its workers to hand it over.
    assert json.loads(JsonFormatter().format(record))["shard"] == written


def test_records_of_others_are_json_with_their_extra(logger: logging.Logger, kept: Kept) -> None:
    logger.info("paid %d", 3, extra={"order": "o-1", "level": "mine"}, stack_info=True)

    found = as_json(kept)
    assert (found["message"], found["order"], found["level"]) == ("paid 3", "o-1", "INFO")
    assert "test_journal.py" in found["stack"]


def test_a_record_survives_a_queue_between_threads(logger: logging.Logger, log: Journal) -> None:
    waiting: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logger.addHandler(logging.handlers.QueueHandler(waiting))

    log.tell("work_failed", work="a", error=Mute(), failures=1)

    found = json.loads(JsonFormatter().format(waiting.get_nowait()))
    assert (found["event"], found["message"]) == ("work_failed", "work a ended by itself: Mute")


@pytest.fixture
def ours() -> Iterator[logging.Logger]:
    """The logger of strandline, put back as it was."""
    ours = logging.getLogger("strandline")
    handlers, level = list(ours.handlers), ours.level
    yield ours
    ours.handlers[:] = handlers
    ours.setLevel(level)


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_the_commands_write_to_stderr_and_leave_the_root_logger_alone(
    monkeypatch: pytest.MonkeyPatch, ours: logging.Logger, log_format: str
) -> None:
    written = io.StringIO()
    monkeypatch.setattr(sys, "stderr", written)
    root = logging.getLogger()
    before = (list(root.handlers), root.level)

    log_to_stderr("info", log_format)
    Journal("strandline.agent").tell("shard_recovered", shard="a:v1:all")

    assert (list(root.handlers), root.level) == before
    (line,) = written.getvalue().splitlines()
    if log_format == "json":
        assert json.loads(line)["shard"] == "a:v1:all"
    else:
        assert line.endswith(" INFO    strandline.agent: shard a:v1:all goes on")


def test_a_level_that_is_none_is_refused(ours: logging.Logger) -> None:
    with pytest.raises(SetupError, match="log_level='LOUD'"):
        log_to_stderr("LOUD")
