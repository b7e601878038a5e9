"""pytest plugin: a server for the run, a fresh database per test, your app on it.

Loaded by itself where strandline is installed. Every fixture is a plain one, and whatever it must
wait for happens in a thread of its own, so it works in plain, pytest-asyncio, anyio and trio tests
alike and never touches their event loop. The app comes unopened: an app belongs to the event loop
it is opened in, and only the test knows which one that is.

    @pytest.fixture
    def app_under_test():
        return shop.app                      # or in pytest.ini: strandline_app = shop:app

    async def test_an_order_is_listed(strandline_app):
        async with strandline_app as app:
            await app_scenario(app).given("order-1", Placed(3)).then_document(Orders, "order-1", ...)

Where every test wants it open, one fixture of yours does that, in your plugin's way:

    @pytest_asyncio.fixture                  # anyio: @pytest.fixture
    async def app(strandline_app):
        async with strandline_app as app:
            yield app
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_OPEN_PARTS = (
    "_daemon",
    "_store",
    "_enqueuer",
    "_results",
    "_runtime",
    "_listener",
    "_notifier",
    "_waiting",
    "_wakes",
    "_pools",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the ini option."""
    parser.addini("strandline_app", "the strandline app under test, as module:name", default="")


@pytest.fixture(scope="session")
def strandline_server() -> Iterator[str]:
    """URL of the PostgreSQL server of this run: ``STRANDLINE_DATABASE_URL``, or an embedded one.

    The workers of pytest-xdist share one embedded server. It is fast and not durable.
    """
    given = os.environ.get("STRANDLINE_DATABASE_URL")
    if given:
        yield given
        return
    from strandline.postgres.embedded import Embedded

    options = {"max_connections": "400"}  # many tests at once, each with several apps and nodes
    with Embedded(app="strandline-tests", durable=False, options=options) as server:
        yield server.url


@pytest.fixture
def strandline_database(strandline_server: str) -> Iterator[str]:
    """URL of a fresh, migrated database of this test's own."""
    from strandline.testing.database import fresh_database

    with _aside() as run:
        database = fresh_database(strandline_server)
        url = run(database.__aenter__())
        try:
            yield url
        finally:
            run(database.__aexit__(None, None, None))


@pytest.fixture
def app_under_test(request: pytest.FixtureRequest) -> Any:
    """Your app: override this fixture, or set ``strandline_app`` in pytest's configuration."""
    path = str(request.config.getini("strandline_app"))
    if not path:
        pytest.fail(
            "which app? Write a fixture `app_under_test` that returns it, or set"
            " `strandline_app = module:name` in pytest's configuration",
            pytrace=False,
        )
    module, _, name = path.partition(":")
    import importlib

    return getattr(importlib.import_module(module), name or "app")


@pytest.fixture
def strandline_app(app_under_test: Any, strandline_database: str) -> Iterator[Any]:
    """Your app, set to a fresh database and not open yet: ``async with strandline_app as app``.

    Afterwards the app has its own settings again, and the test fails if it was left open or left a
    transaction behind.
    """
    from dataclasses import replace

    from strandline.testing.leaks import idle_transactions

    before = app_under_test.settings
    app_under_test.settings = replace(before, database_url=strandline_database)
    try:
        yield app_under_test
    finally:
        app_under_test.settings = before
    if app_under_test.is_open:
        for part in _OPEN_PARTS:  # their event loop is gone; their connections go with the database
            setattr(app_under_test, part, None)
        pytest.fail("the app is still open: use `async with strandline_app`", pytrace=False)
    with _aside() as run:
        left = run(idle_transactions(strandline_database))
    if left:
        pytest.fail(f"the test left transactions open: {'; '.join(left)}", pytrace=False)


@contextmanager
def _aside() -> Iterator[Callable[[Any], Any]]:
    """A function that runs coroutines in one event loop, in a thread that nobody else sees."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1, thread_name_prefix="strandline fixture") as thread:
        runner = asyncio.Runner()
        try:
            yield lambda coroutine: thread.submit(runner.run, coroutine).result()
        finally:
            thread.submit(runner.close).result()
