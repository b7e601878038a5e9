"""What is wrong with a job is told where it is declared or called, not when it runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import strandline as sl
from strandline.app import App
from strandline.errors import InvalidDefinition, InvalidInput


async def send(to: str, text: str = "") -> None: ...


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"unique": "x"}, "'x'"),
        ({"unique": sl.Unique(by=("nope",))}, "no such argument"),
        ({"unique": sl.Unique(by=5)}, "by=5"),  # type: ignore[arg-type]
        ({"unique": sl.Unique(until="never")}, "'never'"),  # type: ignore[arg-type]
        ({"unique": sl.Unique(on_duplicate="drop")}, "'drop'"),  # type: ignore[arg-type]
        ({"unique": sl.Unique(within=-1)}, "-1"),
        ({"retry": 3}, "retry=3"),
        ({"retry": 3, "max_attempts": 2}, "retry=3"),
        ({"retry": sl.Retry(first=-1)}, "first=-1"),
        ({"retry": sl.Retry(longest=float("inf"))}, "longest=inf"),
        ({"retry": sl.Retry(factor=float("nan"))}, "factor=nan"),
        ({"retry": sl.Retry(jitter=2)}, "jitter=2"),
        ({"retry": sl.Retry(on=("x",))}, "on="),  # type: ignore[arg-type]
        ({"retry": sl.Retry(delay=5)}, "delay=5"),  # type: ignore[arg-type]
        ({"max_attempts": 0}, "max_attempts=0"),
        ({"key": "to"}, "key='to'"),
        ({"aliases": "old"}, "'old'"),
    ],
)
def test_options_of_a_job_that_cannot_be_meant_are_refused_where_it_is_declared(
    options: dict[str, Any], told: str
) -> None:
    with pytest.raises(InvalidDefinition) as caught:
        App("shop").job(**options)(send)

    assert told in str(caught.value)


@pytest.mark.parametrize("tags", ["invoice", b"invoice", 5, ["a", 5], [""], ["x"] * 51])
def test_tags_that_are_no_texts_are_refused(tags: Any) -> None:
    job = App("shop").job(send)

    with pytest.raises(InvalidInput):
        job.call("ada").with_(tags=tags)


class Odd:
    def __repr__(self) -> str:
        raise ValueError("odd")


@pytest.mark.parametrize(
    ("make", "shown"),
    [
        (lambda job: job.call("ada"), "<call send('ada')>"),
        (lambda job: job.call("ada", text="hi").with_(priority=1), "<call send('ada', text='hi')>"),
        (lambda job: job.call(Odd()), "<call send(<Odd instance at "),
    ],
)
def test_a_call_is_shown_as_it_is_written(make: Callable[[Any], Any], shown: str) -> None:
    assert repr(make(App("shop").job(send))).startswith(shown)


def test_a_call_is_shown_in_short_and_what_is_encrypted_not_at_all() -> None:
    app = App("shop")
    secret = app.job(name="secret", encrypted=True)(send)

    assert repr(secret.call("1234")) == "<call secret(...)>"
    assert len(repr(app.job(send).call("x" * 100_000, text="y" * 100_000))) < 300
