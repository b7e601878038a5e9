"""Strandline's own tests use the plugin's fixtures, under shorter names, and run async tests."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace
from typing import Any

import pytest

from strandline import backoff


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: Any) -> bool | None:
    """Run ``async def`` tests in an event loop of their own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = pyfuncitem._fixtureinfo.argnames
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session")
def server_url(strandline_server: str) -> str:
    """The PostgreSQL server of this run."""
    return strandline_server


@pytest.fixture
def database_url(strandline_database: str) -> str:
    """A fresh, migrated database."""
    return strandline_database


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shards try again at once what failed."""
    monkeypatch.setattr(backoff, "WORK", replace(backoff.WORK, first=0.0, jitter=0.0))
