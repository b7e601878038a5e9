"""How a blocking transaction that did not commit, or may have, is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tally import Ticked

from strandline import sync
from strandline.errors import InvalidEvent, OutcomeUnknown, TransactionFailed
from strandline.testing.faults import Proxy


def blocking_app(url: str) -> Any:
    app = sync.App("blocking", url)
    app.event("ticked")(Ticked)
    return app


def test_a_blocking_transaction_with_a_caught_error_is_not_called_committed(
    database_url: str,
) -> None:
    with blocking_app(database_url) as app:
        with pytest.raises(TransactionFailed), app.transaction() as tx:
            tx.append("a", Ticked(1))
            with pytest.raises(InvalidEvent):
                tx.execute("SELECT 1/0")

        assert app.read_stream("a") == []


async def test_a_blocking_transaction_whose_commit_got_no_answer_says_so(
    database_url: str,
) -> None:
    def append(url: str, swallow: Callable[[bytes], None]) -> int:
        with blocking_app(url) as app:
            app.read_stream("a")
            app.read_stream("a")  # or the COMMIT of the migrations is still in the words seen
            swallow(b"COMMIT")
            with pytest.raises(OutcomeUnknown), app.transaction() as tx:
                tx.append("a", Ticked(1))
            return len(app.read_stream("a"))

    async with Proxy(database_url) as proxy:
        assert await asyncio.to_thread(append, proxy.url, proxy.swallow_answer_to) == 1
