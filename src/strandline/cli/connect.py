"""The database a command works on: its settings, its URL, a small pool of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from strandline.cli.command import Options, complain
from strandline.errors import SetupError
from strandline.settings import Settings, load

if TYPE_CHECKING:
    from strandline.app import App
    from strandline.postgres.embedded import Embedded
    from strandline.postgres.pools import Pool
    from strandline.requests import Requests

DEFAULT_NAME = "app"  # what `sl.App()` is called


@dataclass(frozen=True, slots=True)
class Database:
    """An open database, and the App if one was named."""

    pool: Pool
    settings: Settings
    url: str
    app: App | None

    @property
    def requests(self) -> Requests:
        """The operations of the App.

        Raises:
            SetupError: No App was named.
        """
        from strandline.requests import Requests

        app = need_app(self.app)
        app.registry.bind()
        return Requests(app.registry, self.settings)


def need_app(app: App | None) -> App:
    """*app*, if one was named.

    Raises:
        SetupError: None was.
    """
    if app is None:
        from strandline.cli.locate import HINT

        raise SetupError(f"this command needs your App: {HINT}")
    return app


def chosen_app(options: Options) -> App | None:
    """The App that was named, with ``--database-url`` and ``--schema`` in its settings."""
    if options.app is None:
        return None
    from strandline.cli.locate import find_app

    app = find_app(options.app)
    app.settings = _overridden(app.settings, options)
    return app


def chosen_settings(options: Options, app: App | None) -> Settings:
    """The settings of *app*, or those of the environment."""
    return app.settings if app is not None else _overridden(load(), options)


@asynccontextmanager
async def database(options: Options, *, migrated: bool = True) -> AsyncIterator[Database]:
    """Connect to the database that was chosen, for the length of the block.

    Args:
        options: What was asked.
        migrated: Whether the tables must be there and up to date.

    Raises:
        SetupError: None was chosen, and there is no embedded server.
        SchemaOutOfDate: It lacks tables.
        DatabaseUnavailable: It cannot be reached.
    """
    from strandline.postgres import migrations
    from strandline.postgres.pools import Pool

    app = chosen_app(options)
    settings = chosen_settings(options, app)
    server = None if settings.database_url else existing_server(settings, app)
    try:
        url = settings.database_url or (await asyncio.to_thread(_started, server))
        pool = Pool("cli", url, 2, settings)
        await pool.open()
        try:
            if migrated:
                await pool.run(migrations.check(settings.schema))
            yield Database(pool, settings, url, app)
        finally:
            await pool.close()
    finally:
        if server is not None:
            await asyncio.to_thread(server.stop)


def existing_server(settings: Settings, app: App | None) -> Embedded:
    """The embedded server of *app*, which must exist already.

    Raises:
        SetupError: It does not: a command that looks never makes a server.
    """
    from strandline.postgres.embedded import Embedded

    name = app.name if app is not None else DEFAULT_NAME
    server = Embedded(settings.embedded_folder(name), app=name)
    if not (Path(server.folder) / "data").is_dir():
        what = "" if app is not None else ", or name your App (--app MODULE:APP)"
        raise SetupError(
            f"no database: neither --database-url nor STRANDLINE_DATABASE_URL is set, and there is"
            f" no embedded server in {server.folder}; set one of them{what},"
            f" or start a server with `strandline up{f' MODULE:{name}' if app is not None else ''}`"
        )
    return server


def _started(server: Embedded | None) -> str:
    assert server is not None
    found = server.start()
    complain(f"using the embedded server in {found.folder}")
    return found.url


def _overridden(settings: Settings, options: Options) -> Settings:
    return replace(
        settings,
        database_url=options.database_url or settings.database_url,
        schema=options.schema or settings.schema,
    )
