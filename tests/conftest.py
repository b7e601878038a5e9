"""One server for the run, one database per test."""

from __future__ import annotations

import asyncio
import inspect
import os
from collections.abc import Iterator
from typing import Any

import pytest

from strandline.testing.database import fresh_database


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: Any) -> bool | None:
    """Run ``async def`` tests in an event loop of their own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session")
def server_url() -> Iterator[str]:
    """The PostgreSQL server of this run: STRANDLINE_DATABASE_URL, or an embedded one."""
    given = os.environ.get("STRANDLINE_DATABASE_URL")
    if given:
        yield given
        return
    from strandline.postgres.embedded import Embedded

    with Embedded(app="strandline-tests", durable=False) as server:
        yield server.url


@pytest.fixture
def database_url(server_url: str) -> Iterator[str]:
    """A fresh, migrated database."""
    with asyncio.Runner() as runner:
        context = fresh_database(server_url)
        url = runner.run(context.__aenter__())
        yield url
        runner.run(context.__aexit__(None, None, None))
