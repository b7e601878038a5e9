"""The tree of errors: complete, grouped, and documented where it is defined."""

from __future__ import annotations

import re

import pytest

from strandline import errors
from strandline.errors import StrandlineError


def classes() -> dict[str, type[Exception]]:
    return {
        name: one
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, StrandlineError)
    }


def test_the_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    drawn: dict[str, str] = {}
    parents: list[str] = []
    for line in errors.__doc__.splitlines():
        found = re.match(r"^    ([ │├└─]*)(\w+)", line)
        if found:
            depth = len(found[1]) // 4
            parents[depth:] = [found[2]]
            drawn[found[2]] = parents[depth - 1] if depth else "Exception"

    assert drawn == {name: one.__bases__[0].__name__ for name, one in classes().items()}


def test_every_error_says_what_it_means() -> None:
    for name, one in classes().items():
        assert one.__doc__, name


@pytest.mark.parametrize(
    ("error", "group"),
    [
        (errors.WrongVersion("s", expected=1, actual=2, tenant="t"), errors.ConflictError),
        (errors.CheckpointMoved("s", epoch=1, position=2), errors.OwnershipLost),
        (errors.PayloadTooLarge("t", payload_bytes=2, limit_bytes=1), errors.InvalidInput),
        (errors.ApplyFailed("p", "r", position=1), errors.EventFailure),
        (errors.OutcomeUnknown("x"), errors.Unavailable),
        (errors.MissingExtra("x", "sync"), errors.SetupError),
    ],
)
def test_groups_are_what_a_caller_catches(error: Exception, group: type[Exception]) -> None:
    assert isinstance(error, group)
    assert sum(isinstance(error, one) for one in StrandlineError.__subclasses__()) == 1


def test_messages_have_facts_and_the_next_step() -> None:
    wrong = errors.WrongVersion("account-1", expected=3, actual=5, tenant="t")
    large = errors.PayloadTooLarge("paid", payload_bytes=11, limit_bytes=10)

    assert str(wrong) == (
        "stream 'account-1' is at version 5, expected 3 (read it again and decide again)"
    )
    assert "paid" in str(large) and "11" in str(large) and "max_payload_bytes" in str(large)
