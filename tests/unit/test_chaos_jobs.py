"""The chaos suite's rules about jobs find what is planted, and only that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from chaos.job_oracle import Fate, JobEvidence, judge

RIGHT = JobEvidence(
    fates=[
        Fate("settle", "a-1", "committed"),
        Fate("book", "a-2", "committed"),
        Fate("book", "a-3", "never"),
        Fate("book", "a-4", "unknown"),
        Fate("step", "a#5", "committed"),
        Fate("step", "a#8", "committed"),
    ],
    ended=[(1, "a-1", "completed"), (2, "a-2", "completed")],
    runs={"a-1": 2},
    effects={"a-2": 1},
    steps={"a": [5, 8]},
    paid=[("s", 7)],
    wanted=[("s", 7)],
)


def test_what_is_right_is_not_accused() -> None:
    assert judge(RIGHT) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ended": [(1, "a-1", "completed")]}, "a-2 (book, committed) was completed 0 times"),
        ({"ended": [*RIGHT.ended, (2, "a-2", "completed")]}, "2 is recorded 2 times"),
        (
            {"ended": [*RIGHT.ended, (9, "a-2", "completed")]},
            "a-2 (book, committed) was completed 2",
        ),
        ({"ended": [*RIGHT.ended, (9, "a-3", "completed")]}, "its transaction was rolled back"),
        ({"ended": [*RIGHT.ended, (9, "b-1", "completed")]}, "nobody enqueued it"),
        ({"effects": {"a-2": 2}}, "its effect is there 2 times"),
        ({"effects": {"a-2": 1, "a-3": 1}}, "its transaction was rolled back"),
        ({"effects": {"a-2": 1, "a-4": 1}}, "a-4 (book, unknown) was completed 0 times"),
        ({"runs": {}}, "ran 0 times"),
        ({"steps": {"a": [8, 5]}}, "a did [8, 5] as its 1th"),
        ({"steps": {"a": [5, 5, 8]}}, "as its 2th"),
        ({"steps": {"a": [5]}}, "as its 2th"),
        ({"paid": []}, "was paid 0 times, not 1"),
        ({"paid": [("s", 7), ("s", 7)]}, "was paid 2 times, not 1"),
        ({"paid": [("s", 7), ("s", 8)]}, "was paid 1 times, not 0"),
        ({"live": 3}, "3 have not ended"),
        ({"dead": ["4 (pay): no"]}, "is a dead letter"),
    ],
)
def test_what_is_planted_is_found(change: dict[str, Any], words: str) -> None:
    found = judge(replace(RIGHT, **change))

    assert any(words in one.words for one in found), found
    assert {one.invariant for one in found} == {"I8"}
