"""What a failure looks like in a dead letter."""

from __future__ import annotations

import json
from typing import Any

import pytest

from strandline.daemon import described
from strandline.errors import ApplyFailed, DatabaseUnavailable, UndecodableEvent, UnknownEventType


def raised(message: str, kind: type[Exception] = ValueError) -> ApplyFailed:
    """What the fold makes of a handler that raises."""
    try:
        handler(message, kind)
    except Exception as error:
        failed = ApplyFailed("orders:v1", repr(error), position=7)
        failed.__cause__ = error
        return failed
    raise AssertionError


def handler(message: str, kind: type[Exception]) -> None:
    raise kind(message)


def test_failures_that_differ_in_numbers_and_quoted_values_look_alike() -> None:
    one = described.fingerprint(raised("no account 17 for 'ann'"), "placed")

    assert described.fingerprint(raised("no account 4 for 'bob'"), "placed") == one
    assert described.fingerprint(raised('no account 4 for "it\'s"'), "placed") == one
    assert described.fingerprint(raised("no order 4 for 'bob'"), "placed") != one
    assert described.fingerprint(raised("no account 4 for 'bob'", KeyError), "placed") != one
    assert described.fingerprint(raised("no account 4 for 'bob'"), "paid") != one


def test_it_names_the_class_and_the_function_of_the_user() -> None:
    found: dict[str, Any] = json.loads(described.as_json(raised("too late")))

    assert found["class"] == "ValueError"
    assert found["handler"] == "raised"  # the outermost function that is not ours
    assert found["message"] == "orders:v1 at position 7: ValueError('too late')"


@pytest.mark.parametrize("text", ["a\0b", "lone \ud800", "x" * 10_000])
def test_whatever_the_message_holds_can_be_stored(text: str) -> None:
    found = described.as_json(raised(text))

    assert "\\u0000" not in found
    assert len(found) < 3 * described.LONGEST
    described.fingerprint(raised(text), "placed")


def test_an_error_whose_words_cannot_be_had_has_its_name() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    failed = ApplyFailed("orders:v1", "mute", position=1)
    failed.__cause__ = Mute()

    assert json.loads(described.as_json(failed))["class"] == "Mute"
    assert described.fingerprint(failed, "placed")


def test_the_category_is_one_that_a_letter_may_have() -> None:
    assert described.category(raised("x")) == "apply"
    assert described.category(UndecodableEvent("placed", "no")) == "undecodable"
    assert described.category(UnknownEventType("placed")) == "unknown_type"
    assert described.category(DatabaseUnavailable("away")) == "apply"
    assert described.category(KeyError("x")) == "apply"
