"""`strandline migrate`: the tables in the database."""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import TYPE_CHECKING, Any

from strandline.cli.command import Options, command, group

if TYPE_CHECKING:
    from strandline.app import App
    from strandline.postgres.migrations import Applied, Migration

commands = group("Tables: apply migrations, see which there are, print their SQL.")


@command(commands, "apply", app="argument", json=("number", "name", "outcome"))
async def apply(options: Options) -> None:
    """Apply missing migrations; with MODULE:APP make the tables of its read models too.

    Safe to run from many processes at once, and again: one applies, the others find nothing to do.
    """
    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.postgres import migrations

    async with database(options, migrated=False) as db:
        schema = db.settings.schema
        async with db.pool.transaction() as session:
            done = await session.run(migrations.apply(schema))
            if db.app is not None:
                requests = db.requests
                await session.run(requests.learn_retired())
                await session.run(requests.create_read_models())
    if options.json:
        output.write_json(
            [{"number": one.number, "name": one.name, "outcome": "applied"} for one in done]
        )
        return
    for one in done:
        output.say(f"applied {one.number:04} {one.name}")
    if not done:
        output.say(f"nothing to apply: schema {schema!r} is up to date")
    if db.app is not None:
        output.say("the tables of read models are there")


@command(commands, "status", app="argument", json=("number", "name", "state", "applied_at"))
async def status(options: Options) -> None:
    """List migrations: applied (and when), pending, changed, or unknown to this version.

    Exit code 1 if any is not applied as this version has it.
    """
    import typer

    from strandline.cli import output
    from strandline.cli.connect import database
    from strandline.postgres import migrations

    async with database(options, migrated=False) as db:
        done = await db.pool.run(migrations.applied(db.settings.schema))
    rows = _states(migrations.available(), done)
    if options.json:
        output.write_json(rows)
    else:
        output.table(
            [">number", "name", "state", "applied at (UTC)"],
            [
                (
                    f"{row['number']:04}",
                    row["name"],
                    output.styled(row["state"], _STYLES[row["state"]]),
                    output.moment(row["applied_at"]),
                )
                for row in rows
            ],
        )
        if any(row["state"] == "pending" for row in rows):
            output.say("`strandline migrate apply` applies what is pending")
    if any(row["state"] != "applied" for row in rows):
        raise typer.Exit(1)


@command(commands, "dump", app="argument")
def dump(options: Options) -> None:
    """Print the SQL of all migrations, for those who apply it by other means.

    With MODULE:APP also the tables of its read models. Needs no database. `psql -f` of the output
    leaves an empty database as `migrate apply` would.
    """
    from strandline.cli.connect import chosen_app, chosen_settings
    from strandline.postgres import migrations

    app = chosen_app(options)
    schema = chosen_settings(options, app).schema
    parts = ["BEGIN;", migrations.CREATE_SCHEMA.sql(schema) + ";"]
    parts.append(migrations.CREATE_TABLE.sql(schema) + ";")
    for one in migrations.available():
        parts += [_rendered(one, schema), _record(one, schema)]
    if app is not None:
        parts += _read_models(app, schema)
    print("\n\n".join([*parts, "COMMIT;"]))


_STYLES = {"applied": "green", "pending": "yellow", "changed": "red", "unknown": "red"}


def _states(ours: list[Migration], done: list[Applied]) -> list[dict[str, Any]]:
    have = {one.number: one for one in done}
    known = {one.number: one for one in ours}
    rows = []
    for number in sorted(known.keys() | have.keys()):
        there, brought = have.get(number), known.get(number)
        if there is None:
            state = "pending"
        elif brought is None:
            state = "unknown"
        else:
            state = "applied" if brought.checksum == there.checksum else "changed"
        name = there.name if there else known[number].name
        applied_at = there.applied_at if there else None
        rows.append({"number": number, "name": name, "state": state, "applied_at": applied_at})
    return rows


def _rendered(one: Migration, schema: str) -> str:
    from strandline.postgres.statements import quoted

    return f"-- {one.number:04} {one.name}\n" + one.text.strip().replace("{schema}", quoted(schema))


def _record(one: Migration, schema: str) -> str:
    from strandline.postgres import migrations
    from strandline.postgres.statements import literal

    values = {"$1": str(one.number), "$2": literal(one.name), "$3": literal(one.checksum)}
    text = migrations.RECORD.sql(schema)
    return re.sub(r"\$[123]", lambda found: values[found[0]], text) + ";"


def _read_models(app: App, schema: str) -> list[str]:
    from strandline.requests import Requests

    app.registry.bind()
    creating: Generator[Any, Any, None] = Requests(app.registry, app.settings).create_read_models()
    found = ["-- read models"]
    try:
        call = next(creating)
        while True:  # the operation asks nothing, so it can be driven without a database
            found.append(call.statement.sql(schema) + ";")
            call = creating.send(())
    except StopIteration:
        return found
