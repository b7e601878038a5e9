"""What an error says about why the end of jobs was not written."""

from __future__ import annotations

import asyncpg
import pytest

from strandline.errors import AnswerTimedOut, DatabaseUnavailable, InvalidEvent
from strandline.jobs.refusals import trouble


def refused(state: str, words: str = "no") -> Exception:
    """As a line raises it."""
    cause = asyncpg.PostgresError(words)
    cause.sqlstate = state  # type: ignore[attr-defined]
    error = DatabaseUnavailable("line")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("state", "what"),
    [
        ("08006", "away"),
        ("28P01", "away"),  # the password was changed
        ("3D000", "away"),
        ("53300", "away"),
        ("53100", "away"),
        ("57P01", "away"),
        ("25006", "away"),
        ("57014", "late"),
        ("40P01", "conflict"),
        ("55P03", "conflict"),
        ("XX000", "conflict"),
        ("22021", "data"),
        ("54000", "data"),
        ("23514", "data"),
        ("42P01", "setup"),
        ("42501", "setup"),
        ("0A000", "setup"),
        ("55000", "setup"),
        ("23505", "row"),
        ("P0001", "row"),
        ("XX001", "row"),
        ("QQ001", "row"),
    ],
)
def test_a_code_of_the_server_says_what_is_wrong(state: str, what: str) -> None:
    assert trouble(refused(state)) == what


def test_without_a_code_the_server_is_away_or_late_or_a_value_could_not_be_sent() -> None:
    assert trouble(DatabaseUnavailable("gone")) == "away"
    assert trouble(AnswerTimedOut("nothing")) == "late"
    error = InvalidEvent("cannot be stored")
    error.__cause__ = ValueError("surrogates")
    assert trouble(error) == "data"
    assert trouble(ZeroDivisionError("a fault of ours")) == "row"


def test_a_row_that_met_a_new_day_of_the_history_is_tried_again() -> None:
    words = "new row for relation job_history_default violates partition constraint"
    assert trouble(refused("23514", words)) == "conflict"
