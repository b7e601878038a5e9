"""The public face: its names, that they are described, and how tracebacks show them."""

from __future__ import annotations

import inspect
from typing import Any

import pytest

import strandline
from strandline import sync

NAMES = [
    "ANY", "AnswerTimedOut", "App", "Appended", "ApplyFailed", "CheckpointMoved",
    "ConflictError", "DatabaseUnavailable", "DeadLetter", "DocumentNotFound", "DuplicateEvent", "ErrorPolicy",
    "EventBatch",
    "EventFailure", "Expected", "ImportedEvent", "InvalidDefinition", "InvalidInput",
    "Metadata", "MultiStream", "NO_STREAM", "NotFound", "OutcomeUnknown", "OwnershipLost",
    "POSITION", "PoolExhausted", "RECORDED_AT", "RecordedEvent", "STREAM", "STREAM_EXISTS",
    "SchemaOutOfDate", "SetupError", "SingleStream", "Sql", "Statements", "execute",
    "StrandlineError", "StreamArchived",
    "StreamNotFound", "StreamState", "TENANT", "TYPE", "Table", "Transaction", "Unavailable",
    "UndecodableEvent", "Unknown", "UnknownEventType", "UnknownProjection", "VERSION",
    "WrongVersion", "add", "apply", "bucket", "column", "constant", "count", "create", "delete",
    "Change", "Changes", "Composite", "Deleted", "Lookup", "Updated", "effects", "enrich",
    "fan_out", "first", "greatest", "key", "least", "on", "subtract",
    "batch", "chain", "dag", "Call", "Cancel", "DuplicateJob", "Inject", "Job", "JobContext", "JobNotDone",
    "ClaimLost", "JobNotFound", "ResultNotKept", "UnknownJob",
    "JobRef", "Retry", "Snooze", "Unique", "current",
]  # fmt: skip
MOST = 100  # names; more are harder to learn than they are worth


def test_the_public_names_are_these() -> None:
    assert sorted(strandline.__all__) == sorted(NAMES), (
        "a public name is a promise: also in the changelog"
    )
    assert len(NAMES) <= MOST


@pytest.mark.parametrize("name", NAMES)
def test_a_public_name_is_described(name: str) -> None:
    value = getattr(strandline, name)
    described = value if callable(value) else type(value)

    assert inspect.getdoc(described)
    if inspect.isclass(value):
        assert _undescribed(value) == []


@pytest.mark.parametrize("cls", [sync.App, sync.Transaction])
def test_the_blocking_twins_are_described(cls: type) -> None:
    assert inspect.getdoc(cls)
    assert _undescribed(cls) == []


def test_tracebacks_show_the_name_that_users_import() -> None:
    shown = [
        strandline.App,
        strandline.Transaction,
        *(one for one in vars(strandline).values() if _is_error(one)),
    ]

    assert [one for one in shown if one.__module__ != "strandline"] == []


def test_hints_of_value_classes_can_be_resolved() -> None:
    """They are resolved in ``__module__``: so that may not be changed for them."""
    for name in NAMES:
        value = getattr(strandline, name)
        if inspect.isclass(value):
            inspect.get_annotations(value, eval_str=True)


def _undescribed(cls: type) -> list[str]:
    return [
        name
        for name, member in inspect.getmembers_static(cls)
        if not name.startswith("_")
        and (inspect.isfunction(member) or isinstance(member, property))
        and getattr(member, "__module__", "strandline").startswith("strandline")
        and not inspect.getdoc(member)
    ]


def _is_error(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, strandline.StrandlineError)
