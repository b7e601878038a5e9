"""What `strandline doctor` examines: each check answers findings with their cure."""

from __future__ import annotations

from collections.abc import Callable

from strandline.cli import output
from strandline.cli.command import Options
from strandline.cli.config import hidden
from strandline.cli.connect import Database, database
from strandline.cli.finding import FAIL, OK, WARN, Finding, Findings
from strandline.cli.job_checks import examine_jobs
from strandline.cli.shards import NEVER_RAN, NO_NODE, standings
from strandline.daemon.late_events import unhealed_gaps
from strandline.errors import InvalidSetting, SchemaOutOfDate, Unavailable
from strandline.events import gaps, inspect
from strandline.postgres import diagnosis, migrations, pooler

OLDEST_SERVER = 140_000
LINGERING = 60.0  # seconds after which a prepared or idle transaction is worth a word
BEHIND = 60.0  # seconds of lag that are worth a word


async def examined(options: Options, *, sample: int) -> list[Finding]:
    """Everything that was found, in the order of the checks.

    Raises:
        SetupError: No database was chosen, or the App cannot be found.
    """
    found: list[Finding] = []
    try:
        async with database(options, migrated=False) as db:
            where = hidden(db.url)
            found += [one async for one in _server(db, where)]
            for look in (_poolers, _connections):
                found += [one async for one in look(db)]
            missing = [one async for one in _tables(db)]
            found += missing
            if any(one.outcome == FAIL for one in missing):
                return found
            checks: list[Callable[[Database], Findings]] = [_numbering, _prepared, _mark]
            if db.app is not None:
                checks.append(_shards)
            checks.append(examine_jobs)
            for check in checks:
                found += [one async for one in check(db)]
            found += [one async for one in _types(db, sample)]
    except InvalidSetting as error:
        if error.name != "pooler":
            raise
        found.append(Finding("pooler", FAIL, error.reason, 'set pooler="transaction"'))
    except Unavailable as error:
        cure = "start the server, or correct STRANDLINE_DATABASE_URL or --database-url"
        found.append(Finding("connection", FAIL, str(error), cure))
    return found


async def _server(db: Database, where: str) -> Findings:
    facts = await db.pool.run(diagnosis.server_facts())
    yield Finding("connection", OK, f"connected to {where} as {facts.user}")
    if facts.number < OLDEST_SERVER:
        cure = "move to PostgreSQL 14 or newer"
        yield Finding("server", FAIL, f"PostgreSQL {facts.version} is too old", cure)
    else:
        yield Finding("server", OK, f"PostgreSQL {facts.version}")
    if facts.standby:
        cure = "connect to the primary (target_session_attrs=read-write lists several hosts)"
        yield Finding("primary", FAIL, "this server is a standby: nothing can be written", cure)
    elif facts.read_only:
        cure = "ALTER ROLE/DATABASE ... SET default_transaction_read_only = off"
        yield Finding("primary", FAIL, "transactions are read-only by default", cure)
    else:
        yield Finding("primary", OK, "the server takes writes")
    if facts.encoding != "UTF8":
        cure = "CREATE DATABASE ... ENCODING 'UTF8' TEMPLATE template0"
        yield Finding("encoding", WARN, f"the database is {facts.encoding}", cure)
    for one in _durability(facts):
        yield one


def _durability(facts: diagnosis.ServerFacts) -> list[Finding]:
    found = []
    for name in ("fsync", "full_page_writes"):
        if not getattr(facts, name):
            text = f"{name} is off: a crash of the machine can destroy the database"
            found.append(Finding("durability", WARN, text, f"{name} = on in postgresql.conf"))
    if facts.synchronous_commit == "off":
        text = (
            "synchronous_commit is off: a crash loses the last commits, though they were confirmed"
        )
        found.append(Finding("durability", WARN, text, "ALTER SYSTEM SET synchronous_commit = on"))
    return found or [Finding("durability", OK, "commits are on disk before they are confirmed")]


async def _connections(db: Database) -> Findings:
    room = await db.pool.run(diagnosis.room())
    needs = diagnosis.Needs.of(db.settings)
    short = diagnosis.shortage(room, needs)
    if short:
        reasons, _, cure = short.partition(": ")
        yield Finding("connections", WARN if needs.total <= room.left else FAIL, reasons, cure)
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
            yield Finding("pooler", FAIL, reason, cure)
        elif declared and not lends:
            text = 'pooler="transaction", and no pooler there lends backends'
            yield Finding("pooler", WARN, text, "unset pooler")
        elif declared and not settings.direct_url:
            text = "no LISTEN through the pooler: nodes poll, and control queues with the work"
            yield Finding("pooler", WARN, text, "set direct_url to a way past it")
        else:
            yield Finding("pooler", OK, "declared" if declared else "none on the way")
        if settings.direct_url:
            async for one in _direct(db):
                yield one
    except Unavailable as error:
        yield Finding("pooler", WARN, f"could not be examined: {error}", "try again")


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
            yield Finding("direct way", FAIL, text, "correct direct_url: leases would be worthless")
        elif await pooler.lends_backends(settings.direct_url, timeout=settings.connect_timeout):
            reason, _, cure = pooler.DIRECT_WARNING.partition(": ")
            yield Finding("direct way", FAIL, reason, cure)
        else:
            where = hidden(settings.direct_url)
            yield Finding("direct way", OK, f"{where} leads to the same database")
    except (Unavailable, InvalidSetting) as error:
        yield Finding("direct way", FAIL, str(error), "correct direct_url")
    finally:
        await direct.close()


async def _tables(db: Database) -> Findings:
    schema = db.settings.schema
    try:
        await db.pool.run(migrations.check(schema))
    except SchemaOutOfDate as error:
        yield Finding("migrations", FAIL, str(error), "strandline migrate apply")
        return
    last = migrations.available()[-1]
    yield Finding("migrations", OK, f"schema {schema!r} is at {last.number:04} {last.name}")
    rights = await db.pool.run(diagnosis.may_write())
    if rights is None or not (rights.usage and rights.writes):
        cure = (
            f"GRANT USAGE ON SCHEMA {schema} and SELECT, INSERT, UPDATE, DELETE ON ALL TABLES to it"
        )
        yield Finding("rights", FAIL, "this role may not write all tables of the schema", cure)
    elif not rights.creates:
        cure = "run `strandline migrate apply MODULE:APP` as the owner, or GRANT CREATE ON SCHEMA"
        yield Finding("rights", WARN, "this role cannot make tables of new read models", cure)
    else:
        yield Finding("rights", OK, "this role may read, write and create tables")


async def _numbering(db: Database) -> Findings:
    found = await db.pool.run(inspect.position_sequence())
    if found is None:
        text = "events.position has no sequence: appends fail"
        yield Finding("numbering", FAIL, text, "restore the table from a backup or `migrate dump`")
    elif found.cache != 1 or found.increment != 1 or found.cycles:
        text = (
            f"the sequence of positions has CACHE {found.cache}, INCREMENT {found.increment}"
            f"{', CYCLE' if found.cycles else ''}: projections can miss events"
        )
        cure = (
            f"ALTER TABLE {db.settings.schema}.events ALTER COLUMN position"
            " SET CACHE 1 SET INCREMENT 1 SET NO CYCLE"
        )
        yield Finding("numbering", FAIL, text, cure)
    else:
        yield Finding("numbering", OK, "positions are drawn one by one")


async def _prepared(db: Database) -> Findings:
    found = await db.pool.run(diagnosis.lingering_prepared(LINGERING))
    for one in found:
        text = f"prepared transaction {one.gid!r} of {one.owner} is {output.duration(one.age)} old"
        cure = f"COMMIT PREPARED or ROLLBACK PREPARED {one.gid!r}"
        yield Finding("prepared transactions", WARN, text, cure)
    if not found:
        yield Finding("prepared transactions", OK, "none lingers")


async def _mark(db: Database) -> Findings:
    extent = await db.pool.run(inspect.log_extent())
    live = await db.pool.run(gaps.live_gaps())
    behind = extent.highest - extent.mark
    age = (extent.now - extent.settled_at).total_seconds()
    apps = (await db.pool.run(diagnosis.server_facts())).apps
    if behind <= 0:
        yield Finding("high-water mark", OK, f"at the end of the log, position {extent.mark:,}")
    elif live.gaps and live.holders:
        text = f"{behind:,} positions behind, {len(live.gaps)} gap(s) open; held by those below"
        outcome = WARN if age > db.settings.stale_after else OK
        yield Finding(
            "high-water mark", outcome, text, "strandline gaps live" if outcome == WARN else ""
        )
    elif not apps:
        text = f"{behind:,} positions behind: no process with this database open moves it"
        yield Finding("high-water mark", WARN, text, "strandline node MODULE:APP")
    else:
        outcome = WARN if age > BEHIND else OK
        text = f"{behind:,} positions behind, moved {output.duration(age)} ago"
        cure = "look at the log of the nodes: does one run?" if outcome == WARN else ""
        yield Finding("high-water mark", outcome, text, cure)
    for holder in live.holders:
        if (holder.age or 0) > (db.settings.stale_after if behind > 0 else LINGERING):
            yield Finding("open transaction", WARN, f"{holder.who} holds streams", holder.cure)
    async for one in _skipped(db):
        yield one


async def _skipped(db: Database) -> Findings:
    """Gaps skipped by force, and what turned up in them."""
    forced = [gap for gap in await db.pool.run(gaps.list_gaps(1000)) if gap.kind == "forced"]
    labels = None if db.app is None else db.app.registry.labels()
    unhealed = await db.pool.run(unhealed_gaps(labels))
    if unhealed:
        events = sum(one.events for one in unhealed)
        text = (
            f"{events} event(s) turned up in {len(unhealed)} gap(s) after force_after had skipped"
            " them: what had passed them lacks those"
        )
        yield Finding("skipped positions", FAIL, text, "strandline projections heal MODULE:APP")
    elif forced:
        text = f"{len(forced)} gap(s) were skipped without proof (force_after)"
        yield Finding("skipped positions", WARN, text, "strandline gaps list")


async def _shards(db: Database) -> Findings:
    _, found = await standings(db)
    node = "strandline node MODULE:APP"
    fine = 0
    for one in found:
        said = f"{one.title} {one.state}{f': {one.reason}' if one.reason else ''}"
        lag = f"{one.lag_events or 0:,} events, {output.duration(one.lag_seconds)} behind"
        if one.shard is None:
            continue
        if one.state == "paused":
            cure = "correct the cause; the shard tries again by itself after failure_pause seconds"
            yield Finding("shards", FAIL, f"{said} ({lag})", cure)
        elif one.state == NEVER_RAN:
            yield Finding("shards", WARN, f"{one.title} never ran ({lag})", node)
        elif one.state in ("stopped", NO_NODE):
            outcome = WARN if one.lag_events else OK
            yield Finding("shards", outcome, f"{said} ({lag})", node if outcome == WARN else "")
        elif (one.lag_seconds or 0) > BEHIND:
            cure = "strandline projections list shows whether it catches up"
            yield Finding("shards", WARN, f"{one.title} is {lag}", cure)
        else:
            fine += 1
    if fine:
        yield Finding("shards", OK, f"{fine} running and up to date")


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
        yield Finding("event types", WARN, text, cure)
    if not odd:
        where = "the log" if low == 0 else f"the last {sample:,} positions"
        yield Finding("event types", OK, f"every type in {where} is registered")
