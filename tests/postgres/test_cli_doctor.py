"""`strandline doctor` on real troubles: each cure is typed as it is printed, and the trouble is gone."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from commands import SHOP, ended, execute, put_node, put_work, rows, run, started, until
from typer.testing import CliRunner

from strandline.cli.main import app as commands
from strandline.cli.settings_checks import examine_settings
from strandline.cli.surveying import FIELDS
from strandline.settings import Settings
from strandline.survey.finding import FAIL, OK, WARN
from strandline.testing.database import fresh_database

Row = dict[str, Any]
DEAD = (
    "INSERT INTO strandline.dead_jobs (id, created_at, priority, attempt, max_attempts, flags, queue,"
    " kind, args, fingerprint) VALUES (4, now(), 5, 3, 3, 0, 'mail', 'send', '{}', 'f')"
)
APPEND = "SELECT position FROM strandline.append($1, $2)"
BODY = '[{"type": "money-deposited", "data": {"amount": 1}}]'


@pytest.fixture(autouse=True)
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module ``cli_shop``, importable from here."""
    monkeypatch.chdir(SHOP)
    monkeypatch.syspath_prepend(str(SHOP))
    sys.modules.pop("cli_shop", None)
    import cli_shop

    yield cli_shop
    sys.modules.pop("cli_shop", None)


def doctor(url: str, *words: str) -> list[Row]:
    """What the doctor finds, whatever its exit code says."""
    sys.modules.pop("cli_shop", None)
    environment = {"STRANDLINE_DATABASE_URL": url, "STRANDLINE_APP": None}
    done = CliRunner().invoke(commands, ["doctor", *words, "--json"], env=environment)
    found: list[Row] = json.loads(done.stdout)
    assert done.exit_code == int(any(one["outcome"] == FAIL for one in found)), done.stderr
    return found


def troubles(url: str, texts: Iterable[str], *words: str) -> list[Row]:
    """The finding with each of *texts*, all of which somebody should look at."""
    found = doctor(url, *words)
    bad = [one for one in found if one["outcome"] != OK]
    match = [[one for one in bad if text in one["finding"]] for text in texts]
    assert all(match), [one["finding"] for one in found]
    return [one[0] for one in match]


def trouble(url: str, text: str, *words: str) -> Row:
    """The finding with *text*, which must be one that somebody should look at."""
    return troubles(url, [text], *words)[0]


def is_told(url: str, text: str, *more: str, app: str = "") -> bool:
    """Whether any trouble has one of these texts."""
    bad = [one["finding"] for one in doctor(url, *([app] if app else [])) if one["outcome"] != OK]
    return any(one in told for told in bad for one in (text, *more))


def typed(url: str, cure: str) -> None:
    """Type *cure*: a command, whose question is answered with yes, or a statement."""
    if cure.startswith("strandline "):
        run(url, *shlex.split(cure)[1:], answer="y\n")
    else:
        asyncio.run(execute(url, cure))


def put(url: str, text: str, *arguments: Any) -> None:
    asyncio.run(execute(url, text, *arguments))


# ---- cures


def test_missing_tables_are_cured_by_the_command_that_is_told(server_url: str) -> None:
    with asyncio.Runner() as runner:
        context = fresh_database(server_url, template="template1")
        url = runner.run(context.__aenter__())
        try:
            found = trouble(url, "lacks 0001_events")
            assert (found["check"], found["outcome"]) == ("migrations", FAIL)

            typed(url, found["cure"])

            assert not is_told(url, "lacks")
        finally:
            runner.run(context.__aexit__(None, None, None))


def test_numbering_is_cured_by_the_statement_that_is_told(database_url: str) -> None:
    put(database_url, "ALTER TABLE strandline.events ALTER COLUMN position SET CACHE 20 SET CYCLE")
    found = trouble(database_url, "has CACHE 20, INCREMENT 1, CYCLE")

    typed(database_url, found["cure"])

    assert not is_told(database_url, "CACHE")


def test_a_paused_queue_and_dead_jobs_are_cured(database_url: str) -> None:
    run(database_url, "jobs", "enqueue", "send", "--queue", "mail")
    run(database_url, "queues", "pause", "mail", "--reason", "a trial")
    put(database_url, DEAD)

    said = ("queue 'mail' is paused (a trial)", "1 dead in queue 'mail'")
    for one in troubles(database_url, said):
        typed(database_url, one["cure"])

    assert not is_told(database_url, "paused", "dead in")
    assert len(rows(database_url, "jobs", "list", "--queue", "mail")) == 2


def test_a_schedule_that_cannot_be_fired_is_cured(database_url: str) -> None:
    put(
        database_url,
        "INSERT INTO strandline.schedules (name, spec, job, next_at, error) VALUES"
        " ('every night', '@daily', '{}', now(), 'no such kind')",
    )
    found = trouble(database_url, "every night cannot be fired: no such kind")

    typed(database_url, found["cure"])

    assert not is_told(database_url, "every night")


async def _two_nodes(url: str) -> None:
    a = await put_node(url, "a", leads=True, labels=["orders:v2"])
    b = await put_node(url, "b", expires=-5.0, labels=["orders:v2"])
    await put_node(url, "a", labels=["orders:v2"])
    for name, owner in (("orders:v2:1/2", a), ("orders:v2:2/2", b)):
        await put_work(url, name, target=owner, owner=owner)
    await put_work(url, "high-water", target=a, owner=a)
    await execute(
        url, "INSERT INTO strandline.slicings (label, parts, wanted) VALUES ('orders:v2', 2, 2)"
    )
    await execute(
        url,
        "INSERT INTO strandline.shards (name, claimed_at, epoch, owner) SELECT work, now(), 1, owner"
        " FROM strandline.assignments WHERE work LIKE 'orders%'",
    )


def test_a_silent_node_namesakes_and_pins_are_cured(database_url: str) -> None:
    asyncio.run(_two_nodes(database_url))
    run(database_url, "work", "pin", "orders:v2:1/2", "gone", "--yes")
    put(
        database_url,
        """WITH free AS (UPDATE strandline.assignments SET owner = NULL, target = NULL
                          WHERE work = 'orders:v2:1/2')
           INSERT INTO strandline.node_log (kind, detail)
           VALUES ('plan', '{"unplaced": {"pinned to gone": ["orders:v2:1/2"]}}')""",
    )
    said = (
        "node b has not beaten for",
        "2 nodes are named 'a'",
        "work without a node: orders:v2:1/2",
        "orders:v2:2/2 belongs to a node that does not beat",
    )
    for one in troubles(database_url, said)[:3]:
        typed(database_url, one["cure"])

    assert not is_told(database_url, "node b", "are named")
    (work,) = [one for one in rows(database_url, "work", "list") if one["name"] == "orders:v2:1/2"]
    assert work["pinned_to"] is None


def test_work_that_is_held_is_cured(database_url: str) -> None:
    asyncio.run(_two_nodes(database_url))
    put(database_url, APPEND, "s", BODY)
    put(database_url, "UPDATE strandline.assignments SET owner = NULL")
    run(database_url, "work", "pause", "orders:v2:*", "--reason", "a trial")
    run(database_url, "work", "pause", "high-water", "--reason", "a trial")
    said = ("paused by an operator: a trial", "nobody has the duty to move it")
    held, mark = troubles(database_url, said)

    typed(database_url, held["cure"])
    typed(database_url, mark["cure"])

    assert held["cure"] == "strandline work resume 'orders:v2:*'"
    assert not is_told(database_url, "by an operator")
    states = {one["name"]: one["paused_at"] for one in rows(database_url, "work", "list")}
    assert set(states.values()) == {None}


def test_whoever_holds_the_mark_is_named_and_ended(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRANDLINE_STALE_AFTER", "0.1")
    with asyncio.Runner() as runner:

        async def hold() -> Any:
            holder = await asyncpg.connect(
                database_url, server_settings={"application_name": "slow import"}
            )
            await holder.execute("BEGIN")
            await holder.fetchval(APPEND, "held", BODY)
            await execute(database_url, APPEND, "quick", BODY)
            return holder

        holder = runner.run(hold())
        until(lambda: is_told(database_url, "'slow import'"))
        found = trouble(database_url, "'slow import'")
        assert found["cure"] == f"strandline gaps cancel {holder.get_server_pid()}"
        assert found["runbook"] == "high-water-stale"

        typed(database_url, found["cure"])

        until(lambda: not is_told(database_url, "'slow import'"))
        holder.terminate()


def test_a_forgotten_transaction_is_ended(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRANDLINE_LEAK_AFTER", "0.05")
    with asyncio.Runner() as runner:

        async def forget() -> Any:
            connection = await asyncpg.connect(
                database_url, server_settings={"application_name": "a report"}
            )
            await connection.execute("BEGIN; SELECT 1")
            return connection

        connection = runner.run(forget())
        until(lambda: is_told(database_url, "'a report'"))

        found = trouble(database_url, "is idle in transaction")
        assert found["cure"] == f"SELECT pg_terminate_backend({connection.get_server_pid()})"
        typed(database_url, found["cure"])

        until(lambda: not is_told(database_url, "'a report'"))
        connection.terminate()


def test_late_events_are_healed(database_url: str, shop: Any) -> None:
    asyncio.run(shop.fill(database_url, 1))
    put(database_url, APPEND, "account-0", BODY)
    put(
        database_url,
        "INSERT INTO strandline.gaps (first, last, kind, proof) VALUES (6, 6, 'forced', '{}')",
    )
    found = trouble(database_url, "turned up in gaps", "cli_shop:app")
    assert found["cure"] == "strandline projections heal cli_shop:app"

    typed(database_url, found["cure"])

    assert not is_told(database_url, "turned up in gaps", app="cli_shop:app")


def test_an_old_version_is_retired(database_url: str) -> None:
    async def leave() -> None:
        await put_node(database_url, "a", leads=True, labels=["accounts:v2", "notifier"])
        for label in ("accounts:v1", "accounts:v2"):
            await execute(
                database_url,
                "INSERT INTO strandline.slicings (label, parts, wanted) VALUES ($1, 1, 1)",
                label,
            )
            await put_work(database_url, f"{label}:all")
            await execute(
                database_url,
                "INSERT INTO strandline.shards (name, claimed_at, epoch) VALUES ($1, now(), 1)",
                f"{label}:all",
            )
        await execute(database_url, APPEND, "s", BODY)

    asyncio.run(leave())
    found = trouble(database_url, "accounts:v1:all is of an old version", "cli_shop:app")
    assert found["cure"] == "strandline projections retire accounts:v1 --app cli_shop:app"

    typed(database_url, found["cure"])

    assert not is_told(database_url, "accounts:v1", app="cli_shop:app")


def test_a_node_that_may_lead_cures_what_waits_for_one(database_url: str, shop: Any) -> None:
    """The commands for three troubles start the same node."""
    asyncio.run(shop.fill(database_url, 1))
    asyncio.run(put_node(database_url, "follower", "draining", mode="follower"))
    words = ("cli_shop:app",)
    said = ("nobody leads, ", "in no living node's code", "nobody has the duty")
    leader, code, mark = troubles(database_url, said, *words)
    assert leader["cure"] == "strandline node cli_shop:app --mode cluster"
    assert leader["outcome"] == FAIL
    assert code["cure"] == mark["cure"] == "strandline node cli_shop:app"

    node = started(database_url, *shlex.split(leader["cure"])[1:], STRANDLINE_PULSE_INTERVAL="0.2")
    try:
        until(lambda: not any(one["outcome"] == FAIL for one in doctor(database_url, *words)), 60)
        until(lambda: not is_told(database_url, "shard", app="cli_shop:app"), 60)
        found = doctor(database_url, *words)
    finally:
        assert ended(node)[0] == 0
    assert {one["finding"] for one in found if one["check"] == "shards"} == {
        "2 shards running and up to date"
    }
    assert any(" leads, epoch 1" in one["finding"] for one in found)


# ---- as it is written


def test_a_finding_has_its_reason_cure_and_page(database_url: str) -> None:
    asyncio.run(put_node(database_url, "b", expires=-5.0, leads=True))
    found = trouble(database_url, "b leads and has not beaten")
    assert tuple(found) == FIELDS
    page = Path(__file__).parents[2] / "docs/operate/runbooks" / f"{found['runbook']}.md"

    text, _ = run(database_url, "doctor", width=72)

    assert f"cure: {found['cure']}" in text
    assert f"more: docs/operate/runbooks/{page.name}" in text
    assert max(len(line) for line in text.splitlines()) <= 72
    assert page.is_file()


# ---- settings and extras


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"force_after": 5.0}, "skipped without proof"),
        ({"stop_hard": 60.0}, "more than the 30 s that Kubernetes"),
        ({"leak_rollback_after": 3.0}, "below leak_after"),
        ({"leak_after": 90.0}, "not below idle_transaction_timeout"),
        ({"stall_kill_after": 10.0}, "not above stall_after"),
        ({"pulse_deadline": 9.0}, "more than the 10 s a leader may trust"),
        ({"failure_pause": 900.0}, "above longest_failure_pause"),
        ({"job_drain_timeout": 60.0}, "a stop has 20 s for it"),
        ({"log_level": "LOUD"}, "is no level"),
    ],
)
def test_settings_that_do_not_fit_together_are_told(settings: dict[str, Any], words: str) -> None:
    (found,) = examine(**settings)

    assert found["outcome"] == WARN
    assert words in found["what"]
    assert found["cure"]


def test_extras_that_are_asked_for_and_missing_are_told() -> None:
    (keys,) = examine(job_keys="k", missing=("cryptography",))
    (metrics,) = examine(ops_port=0, missing=("prometheus_client",))
    otlp = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector"}
    (sent,) = examine(missing=("opentelemetry.exporter.otlp.proto.http",), environment=otlp)

    assert (keys["outcome"], keys["cure"]) == (FAIL, "pip install 'strandline[encryption]'")
    assert metrics["cure"] == "pip install 'strandline[prometheus]'"
    assert sent["cure"] == "pip install 'strandline[otlp]'"
    assert examine() == []


def examine(
    *, missing: tuple[str, ...] = (), environment: dict[str, str] | None = None, **settings: Any
) -> list[Row]:
    found = examine_settings(
        Settings(**settings),
        has_jobs=True,
        environment=environment or {},
        is_there=lambda name: name not in missing,
    )
    return [
        {"outcome": one.outcome, "what": one.what, "cure": one.cure}
        for one in found
        if one.outcome != OK
    ]
