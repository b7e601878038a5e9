"""Ids and senders: never the same twice, also in a process that was forked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import pytest

from strandline.jobs.enqueuer import CALLS_OF_A_ROW, Sender
from strandline.jobs.ids import BLOCK, Ids

blocks = count(1)


def run(op: Any) -> Any:
    """Answer every question for blocks."""
    rows: Any = None
    try:
        while True:
            call = op.send(rows)
            rows = [(next(blocks),) for _ in range(call.arguments[0])]
    except StopIteration as stop:
        return stop.value


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A call that makes this process look like a child of the one it was."""
    return lambda: monkeypatch.setattr(os, "getpid", lambda: -1)


def test_ids_are_drawn_in_blocks_and_given_out_once() -> None:
    ids = Ids()
    found = [*run(ids.draw(3)), *run(ids.draw(BLOCK * 2)), ids.at_hand()]

    assert len(set(found)) == len(found) == BLOCK * 2 + 4
    assert found[:3] == list(range(found[0], found[0] + 3))
    assert not ids.are_few
    ids.forget()
    assert ids.are_few
    assert ids.at_hand() is None


def test_threads_never_get_the_same_id() -> None:
    ids = Ids()
    with ThreadPoolExecutor(8) as pool:
        found = [one for part in pool.map(lambda n: run(ids.draw(n)), range(400)) for one in part]

    assert len(set(found)) == len(found)


def test_a_forked_process_draws_ids_of_its_own(forked: Any) -> None:
    ids = Ids()
    run(ids.draw(1))
    forked()

    assert ids.at_hand() is None


def test_a_forked_sender_takes_a_row_of_its_own(forked: Any) -> None:
    sender = Sender()
    row, number = sender.next()
    assert sender.next() == (row, number + 1)
    forked()
    other, first = sender.next()

    assert other != row
    assert first == 1
    assert {sender.next()[0] for _ in range(CALLS_OF_A_ROW - 1)} == {other}
    assert sender.next()[0] != other
