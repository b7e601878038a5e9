"""The blocking twin: the same declarations, the same rules, on psycopg connections."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest

import strandline as sl
from strandline import sync
from strandline.errors import NotOpen


@dataclass(frozen=True, slots=True)
class Opened:
    owner: str


@dataclass(frozen=True, slots=True)
class Deposited:
    amount: int


@dataclass
class Account:
    owner: str
    balance: int = 0


class Accounts(sl.SingleStream[Account]):
    @sl.create
    def opened(self, event: Opened) -> Account:
        return Account(event.owner)

    @sl.apply
    def deposited(self, account: Account, event: Deposited) -> None:
        account.balance += event.amount


def bank(url: str, lifecycle: str = "inline") -> sync.App:
    app = sync.App("bank", url)
    app.event("opened")(Opened)
    app.event("deposited")(Deposited)
    app.projection("accounts", lifecycle=lifecycle)(Accounts)
    return app


def test_append_read_and_an_inline_document(database_url: str) -> None:
    with bank(database_url) as app:
        done = app.append("a", [Opened("Ada"), Deposited(5)], expected=sl.NO_STREAM)

        assert (done.version, done.position) == (2, 2)
        assert [event.data for event in app.read_stream("a")] == [Opened("Ada"), Deposited(5)]
        assert app.get("accounts", "a") == Account("Ada", 5)
        assert app.live("accounts", "a", version=1) == Account("Ada")
        assert app.query("accounts", {"owner": "Ada"}) == [("a", Account("Ada", 5))]
        with pytest.raises(sl.WrongVersion):
            app.append("a", Deposited(1), expected=1)


def test_a_transaction_that_fails_leaves_neither_events_nor_documents(database_url: str) -> None:
    with bank(database_url) as app:
        with pytest.raises(RuntimeError, match="no"), app.transaction() as tx:
            tx.append("a", Opened("Ada"))
            assert tx.get("accounts", "a") == Account("Ada")
            raise RuntimeError("no")

        assert app.stream_state("a") is None
        assert app.find("accounts", "a") is None


def test_a_conflict_leaves_the_transaction_usable(database_url: str) -> None:
    with bank(database_url) as app, app.transaction() as tx:
        tx.append("a", Opened("Ada"))
        with pytest.raises(sl.WrongVersion):
            tx.append("a", Deposited(1), expected=7)
        tx.append("a", Deposited(2), expected=1)
        tx.execute("CREATE TABLE mine (n int)")
        tx.execute("INSERT INTO mine VALUES ($1)", 3)

        assert tx.fetch("SELECT n FROM mine WHERE n > $1", 2)[0][0] == 3
        assert tx.get("accounts", "a") == Account("Ada", 2)


def test_the_callers_own_connection_is_joined(database_url: str) -> None:
    with bank(database_url) as app, psycopg.connect(database_url) as connection:
        app.join(connection).append("a", Opened("Ada"))
        assert app.stream_state("a") is None

        connection.commit()

        assert app.get("accounts", "a") == Account("Ada")


def test_threads_lose_no_append(database_url: str) -> None:
    with bank(database_url) as app:
        app.append("a", Opened("Ada"))

        def deposit() -> None:
            for _ in range(20):
                app.append("a", Deposited(1))

        threads = [threading.Thread(target=deposit) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert app.get("accounts", "a") == Account("Ada", 120)


async def test_a_node_serves_what_the_twin_appends(database_url: str) -> None:
    node: Any = sl.App("bank", database_url)
    twin = bank(database_url, lifecycle="async")
    node.registry = twin.registry
    async with node:
        await node.start()
        with twin:
            done = twin.append("a", [Opened("Ada"), Deposited(5)])
            await node.wait_for(done.position)
            twin.wait_for(done.position, "accounts", timeout=5)

            assert twin.get("accounts", "a") == Account("Ada", 5)


def test_waiting_ends_with_words_when_no_node_runs(database_url: str) -> None:
    with bank(database_url, lifecycle="async") as app:
        done = app.append("a", Opened("Ada"))

        with pytest.raises(sl.AnswerTimedOut, match="it never ran"):
            app.wait_for(done.position, timeout=0.1)


def test_a_closed_twin_says_so(database_url: str) -> None:
    app = bank(database_url)

    with pytest.raises(NotOpen, match="with app:"):
        app.append("a", Opened("Ada"))


def test_a_server_that_is_not_there_is_told(database_url: str) -> None:
    app = sync.App("bank", "postgresql://nobody@127.0.0.1:1/x", connect_timeout=1.0)

    with pytest.raises(sl.DatabaseUnavailable):
        app.open()
