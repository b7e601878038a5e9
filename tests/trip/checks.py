"""Compares every document of the Trip read models with the oracle's: absence too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from strandline.app import App
from trip.domain import MODELS
from trip.oracle import Stored, expected_documents


async def log_of(app: App, tenant: str = "default") -> list[Stored]:
    """Every event in order of positions, as the oracle takes it."""
    return [
        (one.stream, one.version, one.data)
        async for one in app.read_all(tenant=tenant, settled=False, unknown="keep")
    ]


async def documents(app: App, name: Any, tenant: str = "default") -> dict[str, Any]:
    """Every document of one read model."""
    return dict(await app.query(name, tenant=tenant))


async def assert_documents(
    app: App,
    *names: str,
    tenant: str = "default",
    events: Iterable[Stored] | None = None,
    version: int | None = None,
) -> None:
    """The read models hold exactly what the oracle makes of *events* (default: of the log)."""
    expected = expected_documents(await log_of(app, tenant) if events is None else list(events))
    for name in names or MODELS:
        asked = name if version is None else f"{name}:v{version}"
        assert await documents(app, asked, tenant) == expected[name], asked
