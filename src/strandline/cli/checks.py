"""What `strandline doctor` examines: each check answers findings with their cure."""

from __future__ import annotations

from collections.abc import AsyncIterator

from strandline.cli.command import Options
from strandline.cli.config import hidden
from strandline.cli.connect import Database, database
from strandline.cli.job_checks import examine_jobs
from strandline.cli.settings_checks import examine_settings
from strandline.errors import InvalidSetting, SchemaOutOfDate, Unavailable
from strandline.events import inspect
from strandline.postgres import diagnosis, migrations, pooler
from strandline.postgres.statements import quoted
from strandline.survey.case import APP
from strandline.survey.finding import FAIL, OK, WARN, Finding

OLDEST_SERVER = 140_000

Findings = AsyncIterator[Finding]


async def examined(options: Options, *, sample: int) -> list[Finding]:
    """Everything that was found, in the order of the checks.

    Raises:
        SetupError: No database was chosen, or the App cannot be found.
    """
    found: list[Finding] = []
    try:
        async with database(options, migrated=False) as db:
            found += [one async for one in _server(db, hidden(db.url))]
            for look in (_poolers, _connections):
                found += [one async for one in look(db)]
            found += examine_settings(db.settings, has_jobs=_has_jobs(db))
            missing = [one async for one in _tables(db)]
            found += missing
            if any(one.outcome == FAIL for one in missing):
                return found
            found += [one async for one in _rights(db)]
            found += [one async for one in _numbering(db)]
            found += await _surveyed(db, options)
            found += [one async for one in examine_jobs(db, app=options.app or APP)]
            found += [one async for one in _types(db, sample)]
    except InvalidSetting as error:
        if error.name != "pooler":
            raise
        found.append(Finding("pooler", FAIL, error.reason, cure='set pooler="transaction"'))
    except Unavailable as error:
        cure = "start the server, or correct STRANDLINE_DATABASE_URL or --database-url"
        why = "it answered at first: it has gone, or is too slow" if found else ""
        found = [one for one in found if one.name != "connection"]
        found.append(Finding("connection", FAIL, str(error), why, cure, "database-unreachable"))
    return found


def _has_jobs(db: Database) -> bool:
    return db.app is not None and bool(db.app.kinds.names)


async def _server(db: Database, where: str) -> Findings:
    facts = await db.pool.run(diagnosis.server_facts())
    yield Finding("connection", OK, f"connected to {where} as {facts.user}")
    if facts.number < OLDEST_SERVER:
        cure = "move to PostgreSQL 14 or newer"
        yield Finding("server", FAIL, f"PostgreSQL {facts.version} is too old", cure=cure)
    else:
        yield Finding("server", OK, f"PostgreSQL {facts.version}")
    if facts.standby:
        cure = "connect to the primary (target_session_attrs=read-write lists several hosts)"
        yield Finding(
            "primary", FAIL, "this server is a standby: nothing can be written", cure=cure
        )
    elif facts.read_only:
        cure = "ALTER ROLE/DATABASE ... SET default_transaction_read_only = off"
        yield Finding("primary", FAIL, "transactions are read-only by default", cure=cure)
    else:
        yield Finding("primary", OK, "the server takes writes")
    if facts.encoding != "UTF8":
        cure = "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        yield Finding("encoding", WARN, f"the database is {facts.encoding}", cure=cure)
    for one in _durability(facts):
        yield one


def _durability(facts: diagnosis.ServerFacts) -> list[Finding]:
    found = []
    for name in ("fsync", "full_page_writes"):
        if not getattr(facts, name):
            text = f"{name} is off: a crash of the machine can destroy the database"
            found.append(Finding("durability", WARN, text, cure=f"{name} = on in postgresql.conf"))
    if facts.synchronous_commit == "off":
        text = (
            "synchronous_commit is off: a crash loses the last commits, though they were confirmed"
        )
        found.append(
            Finding(
                "durability",
                WARN,
                text,
                cure="ALTER SYSTEM SET synchronous_commit = on; SELECT pg_reload_conf()",
            )
        )
    return found or [Finding("durability", OK, "commits are on disk before they are confirmed")]


async def _connections(db: Database) -> Findings:
    room = await db.pool.run(diagnosis.room())
    needs = diagnosis.Needs.of(db.settings, jobs=_has_jobs(db))
    short = diagnosis.shortage(room, needs)
    if short:
        reasons, _, cure = short.partition(": ")
        yield Finding("connections", WARN if needs.total <= room.left else FAIL, reasons, cure=cure)
        return
    text = f"{room.connections} of {room.most} in use"
    if needs.total:
        more = max(0, room.left // needs.total - room.apps)
        text += f"; one app opens up to {needs.total} ({needs}), room for {more} more"
    yield Finding("connections", OK, text)


async def _poolers(db: Database) -> Findings:
    """Whether what the settings say of poolers is so."""
    settings, limit = db.settings, db.settings.connect_timeout
    declared = settings.pooler == "transaction"
    try:
        lends = await pooler.lends_backends(db.url, timeout=limit)
        if lends and not declared:
            reason, _, cure = pooler.UNDECLARED_WARNING.partition(": ")
            yield Finding("pooler", FAIL, reason, cure=cure)
        elif declared and not lends:
            text = 'pooler="transaction", and no pooler there lends backends'
            yield Finding("pooler", WARN, text, cure="unset pooler")
        elif declared and not settings.direct_url:
            text = "no LISTEN through the pooler: nodes poll, and control queues with the work"
            yield Finding("pooler", WARN, text, cure="set direct_url to a way past it")
        else:
            yield Finding("pooler", OK, "declared" if declared else "none on the way")
        if settings.direct_url:
            async for one in _direct(db):
                yield one
    except Unavailable as error:
        yield Finding("pooler", WARN, f"could not be examined: {error}", cure="try again")


async def _direct(db: Database) -> Findings:
    """Whether ``direct_url`` leads to the same database, past any pooler."""
    from strandline.postgres.entry_checks import is_same_database
    from strandline.postgres.pools import Pool

    settings = db.settings
    direct = Pool("cli", settings.direct_url, 2, settings)
    try:
        await direct.open()
        if not await is_same_database(db.pool, direct):
            text = "direct_url leads to another server or database than database_url"
            yield Finding(
                "direct way", FAIL, text, cure="correct direct_url: leases would be worthless"
            )
        elif await pooler.lends_backends(settings.direct_url, timeout=settings.connect_timeout):
            reason, _, cure = pooler.DIRECT_WARNING.partition(": ")
            yield Finding("direct way", FAIL, reason, cure=cure)
        else:
            where = hidden(settings.direct_url)
            yield Finding("direct way", OK, f"{where} leads to the same database")
    except (Unavailable, InvalidSetting) as error:
        yield Finding("direct way", FAIL, str(error), cure="correct direct_url")
    finally:
        await direct.close()


async def _tables(db: Database) -> Findings:
    """Whether they are there, and can be looked at."""
    schema = db.settings.schema
    rights = await db.pool.run(diagnosis.may_write())
    if rights is not None and not rights.reads:
        text = f"role {rights.role!r} may not read all tables of the schema"
        why = "nothing else can be looked at"
        yield Finding("rights", FAIL, text, why, _granted(db, rights.role))
        return
    try:
        await db.pool.run(migrations.check(schema))
    except SchemaOutOfDate as error:
        yield Finding("migrations", FAIL, str(error), cure="strandline migrate apply")
        return
    last = migrations.available()[-1]
    yield Finding("migrations", OK, f"schema {schema!r} is at {last.number:04} {last.name}")


def _granted(db: Database, role: str) -> str:
    """The statements that give *role* what a node needs."""
    schema, to = quoted(db.settings.schema), quoted(role)
    return (
        f"GRANT USAGE ON SCHEMA {schema} TO {to};"
        f" GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA {schema} TO {to}"
    )


async def _rights(db: Database) -> Findings:
    rights = await db.pool.run(diagnosis.may_write())
    if rights is None or not rights.writes:
        role = "this role" if rights is None else rights.role
        text = f"role {role!r} may not write all tables of the schema: it can look, and run no node"
        yield Finding("rights", FAIL, text, cure=_granted(db, role))
    elif not rights.creates:
        cure = "run `strandline migrate apply MODULE:APP` as the owner, or GRANT CREATE ON SCHEMA"
        yield Finding("rights", WARN, "this role cannot make tables of new read models", cure=cure)
    else:
        yield Finding("rights", OK, "this role may read, write and create tables")
    if rights is not None and not rights.sees_all:
        yield Finding(
            "statistics",
            WARN,
            f"role {rights.role!r} sees only its own transactions",
            "of others it cannot be told which hold the mark, or were forgotten",
            f"GRANT pg_read_all_stats TO {quoted(rights.role)}",
        )


async def _numbering(db: Database) -> Findings:
    found = await db.pool.run(inspect.position_sequence())
    if found is None:
        text = "events.position has no sequence: appends fail"
        yield Finding(
            "numbering", FAIL, text, cure="restore the table from a backup or `migrate dump`"
        )
    elif found.cache != 1 or found.increment != 1 or found.cycles:
        text = (
            f"the sequence of positions has CACHE {found.cache}, INCREMENT {found.increment}"
            f"{', CYCLE' if found.cycles else ''}: projections can miss events"
        )
        cure = (
            f"ALTER TABLE {quoted(db.settings.schema)}.events ALTER COLUMN position"
            " SET CACHE 1 SET INCREMENT 1 SET NO CYCLE"
        )
        yield Finding("numbering", FAIL, text, cure=cure)
    else:
        yield Finding("numbering", OK, "positions are drawn one by one")


async def _surveyed(db: Database, options: Options) -> list[Finding]:
    """What a picture of the whole database says."""
    from strandline.cli.surveying import look

    found = await look(db)
    return found.judged(app=options.app or APP)


async def _types(db: Database, sample: int) -> Findings:
    if db.app is None or not sample:
        return
    highest = (await db.pool.run(inspect.log_extent())).highest
    known = db.app.registry.types.decoders
    low = max(0, highest - sample)
    counts = []
    for start, end in inspect.windows(low, highest):
        counts += await db.pool.run(inspect.count_types(start, end))
    odd = [one for one in inspect.added(counts) if one.type not in known]
    for one in odd:
        text = (
            f"{one.events:,} events of type {one.type!r}, last at {one.last:,}, nobody registers it"
        )
        cure = f'register a class or an alias: @app.event("...", aliases=["{one.type}"])'
        yield Finding("event types", WARN, text, cure=cure)
    if not odd:
        where = "the log" if low == 0 else f"the last {sample:,} positions"
        yield Finding("event types", OK, f"every type in {where} is registered")
