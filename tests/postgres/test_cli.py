"""The command line on a real database."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from typer.testing import CliRunner

from strandline.cli import projections, streams
from strandline.cli.gaps import HOLDER_FIELDS, LIVE_FIELDS, SETTLED_FIELDS
from strandline.cli.main import app as commands
from strandline.testing.database import fresh_database

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def shop(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module ``cli_shop``, importable from here."""
    monkeypatch.chdir(HERE)
    monkeypatch.setattr(sys, "path", [str(HERE), *sys.path])
    monkeypatch.delitem(sys.modules, "cli_shop", raising=False)
    import cli_shop

    yield cli_shop
    sys.modules.pop("cli_shop", None)


@pytest.fixture
def filled(database_url: str, shop: Any) -> str:
    """A database with three accounts, 15 events."""
    asyncio.run(shop.fill(database_url, 3))
    return database_url


def run(
    url: str, *words: str, code: int = 0, answer: str | None = None, width: int = 80
) -> tuple[str, str]:
    """Run a command; its stdout and stderr."""
    sys.modules.pop("cli_shop", None)  # an App takes its settings when it is made
    environment = {
        "STRANDLINE_DATABASE_URL": url,
        "STRANDLINE_APP": None,
        "COLUMNS": str(width),
    }
    done = CliRunner().invoke(commands, list(words), env=environment, input=answer)
    assert done.exit_code == code, (done.exit_code, done.stdout, done.stderr, done.exception)
    return done.stdout, done.stderr


def rows(url: str, *words: str, code: int = 0) -> list[dict[str, Any]]:
    """What a listing writes with --json."""
    found: list[dict[str, Any]] = json.loads(run(url, *words, "--json", code=code)[0])
    return found


async def sql(url: str, text: str, *arguments: Any) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(text, *arguments)
    finally:
        await connection.close()


async def holding(url: str) -> tuple[Any, int]:
    """A connection that holds up the mark, with a later event committed; and its pid."""
    holder = await asyncpg.connect(url, server_settings={"application_name": "slow import"})
    await holder.execute("BEGIN")
    body = '[{"type": "odd-type", "data": {}}]'
    await holder.execute("SELECT strandline.append('held', $1::text::jsonb)", body)
    await sql(url, "SELECT position FROM strandline.append('quick', $1::text::jsonb)", body)
    return holder, holder.get_server_pid()


def started(url: str, *words: str) -> subprocess.Popen[str]:
    """A command in a process of its own, in the folder of the shop."""
    return subprocess.Popen(
        [sys.executable, "-m", "strandline", *words],
        cwd=HERE,
        env={**os.environ, "STRANDLINE_DATABASE_URL": url, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def until(what: Callable[[], Any], timeout: float = 20.0) -> Any:
    """Call *what* until it answers something true."""
    deadline = time.monotonic() + timeout
    while not (answer := what()):
        assert time.monotonic() < deadline, "it did not come true in time"
        time.sleep(0.05)
    return answer


def ended(process: subprocess.Popen[str], number: int) -> tuple[int, str, str]:
    """Send the signal *number*; exit code, stdout and stderr."""
    process.send_signal(number)
    out, err = process.communicate(timeout=15)
    return process.returncode, out, err


# ---- migrations


def test_migrations_are_pending_then_applied(server_url: str) -> None:
    with asyncio.Runner() as runner:
        context = fresh_database(server_url, template="template1")
        url = runner.run(context.__aenter__())
        try:
            assert {row["state"] for row in rows(url, "migrate", "status", code=1)} == {"pending"}
            _, err = run(url, "events", "list", code=2)
            assert "strandline migrate apply" in err

            done = rows(url, "migrate", "apply", "cli_shop:app")
            assert [row["number"] for row in done] == list(range(1, len(done) + 1))
            assert rows(url, "migrate", "apply", "cli_shop:app") == []

            assert {row["state"] for row in rows(url, "migrate", "status")} == {"applied"}
            assert runner.run(sql(url, "SELECT count(*) FROM strandline.doc_accounts_v2")) == 0
        finally:
            runner.run(context.__aexit__(None, None, None))


def test_a_dump_makes_what_apply_makes(server_url: str) -> None:
    with asyncio.Runner() as runner:
        context = fresh_database(server_url, template="template1")
        url = runner.run(context.__aenter__())
        try:
            dump, _ = run(url, "migrate", "dump", "cli_shop")
            connection = runner.run(asyncpg.connect(url))
            runner.run(connection.execute(dump))
            runner.run(connection.close())

            assert {row["state"] for row in rows(url, "migrate", "status")} == {"applied"}
            assert runner.run(sql(url, "SELECT count(*) FROM strandline.doc_accounts_v2")) == 0
        finally:
            runner.run(context.__aexit__(None, None, None))


# ---- streams and events


def test_a_stream_is_shown_with_its_events(filled: str) -> None:
    text, _ = run(filled, "streams", "show", "account-1")
    found = rows(filled, "streams", "show", "account-1", "--backwards", "--limit", "2")

    assert text.startswith("account-1: version 5, type account, created ")
    assert '{"owner": "Ada 1"}' in text
    assert [(row["version"], row["data"]) for row in found] == [
        (5, {"amount": 3}),
        (4, {"amount": 2}),
    ]
    assert tuple(found[0]) == streams.EVENT_FIELDS


def test_a_missing_stream_has_an_exit_code_and_a_hint(filled: str) -> None:
    _, err = run(filled, "streams", "show", "account-1", "--tenant", "other", code=4)

    assert err.startswith("error: there is no stream 'account-1' of tenant 'other'")
    assert "tenant default has one" in err
    assert err.count("\n") == 1


def test_streams_are_listed_page_by_page(filled: str) -> None:
    first = rows(filled, "streams", "list", "--limit", "2")
    rest = rows(filled, "streams", "list", "--tenant", "default", "--after", first[-1]["id"])

    assert [row["id"] for row in first + rest] == ["account-0", "account-1", "account-2"]
    assert rows(filled, "streams", "list", "--type", "nothing") == []
    assert tuple(first[0]) == streams.STREAM_FIELDS


def test_events_are_listed_both_ways_and_filtered(filled: str) -> None:
    forwards = rows(filled, "events", "list", "--after", "3", "--limit", "2")
    backwards = rows(filled, "events", "list", "--backwards", "--after", "6", "--limit", "3")
    opened = rows(filled, "events", "list", "--type", "account-opened", "--stream-type", "account")

    assert [row["position"] for row in forwards] == [4, 5]
    assert [row["position"] for row in backwards] == [5, 4, 3]
    assert [row["stream"] for row in opened] == ["account-0", "account-1", "account-2"]
    assert rows(filled, "events", "list", "--tenant", "nobody") == []


def test_an_event_is_shown_by_position_and_by_id(filled: str) -> None:
    (by_position,) = rows(filled, "events", "show", "7")
    (by_id,) = rows(filled, "events", "show", by_position["id"])

    assert by_id == by_position
    assert by_position["position"] == 7
    assert "the highest is 15" in run(filled, "events", "show", "99", code=4)[1]
    assert "neither a position nor" in run(filled, "events", "show", "x", code=2)[1]


def test_types_nobody_registers_are_marked(filled: str) -> None:
    asyncio.run(_odd(filled))

    found = {row["type"]: row for row in rows(filled, "events", "types", "cli_shop:app")}

    assert found["money-deposited"]["events"] == 12
    assert found["money-deposited"]["registered"] is True
    assert found["odd-type"]["registered"] is False
    assert rows(filled, "events", "types")[0]["registered"] is None


async def _odd(url: str) -> None:
    holder, _ = await holding(url)
    await holder.execute("ROLLBACK")
    await holder.close()


def test_tail_follows_new_events_and_ends_cleanly(filled: str, shop: Any) -> None:
    tail = started(
        filled, *("streams", "tail", "--type", "account-opened", "--from", "0", "--json")
    )
    assert tail.stdout is not None
    seen = [json.loads(tail.stdout.readline()) for _ in range(3)]

    asyncio.run(shop.fill(filled, 1))
    seen.append(json.loads(tail.stdout.readline()))

    code, rest, err = ended(tail, signal.SIGINT)
    assert (code, rest, err) == (0, "", "")
    assert [row["position"] for row in seen] == [1, 6, 11, 16]


# ---- projections


def test_a_shard_that_never_ran_is_not_at_lag_zero(database_url: str, filled: str) -> None:
    found = {row["name"]: row for row in rows(filled, "projections", "list", "cli_shop:app")}
    text, _ = run(filled, "projections", "list", "cli_shop:app")

    assert found["accounts"]["state"] == "never_started"
    assert (found["accounts"]["position"], found["accounts"]["lag_events"]) == (None, 15)
    assert found["accounts"]["lag_seconds"] > 0
    assert (found["inline_accounts"]["state"], found["inline_accounts"]["lag_events"]) == (
        "inline",
        None,
    )
    assert tuple(found["accounts"]) == projections.LIST_FIELDS
    assert "never started" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_a_node_runs_the_projections_until_sigterm(filled: str) -> None:
    node = started(filled, "node", "cli_shop:app")
    try:
        until(lambda: _states(filled)["accounts"] == ("running", 15))
        (shards,) = [one for one in rows(filled, "doctor", "cli_shop") if one["check"] == "shards"]
        assert (shards["outcome"], shards["finding"]) == ("ok", "2 shards running and up to date")
        code, out, err = ended(node, signal.SIGTERM)
    finally:
        node.kill()

    assert (code, out) == (0, "")
    assert "runs 2 shards" in err
    assert _states(filled)["accounts"] == ("stopped", 15)
    (found,) = rows(filled, *("projections", "show", "accounts", "account-2", "--app", "cli_shop"))
    assert found["document"] == {"owner": "Ada 2", "balance": 6}


def test_a_killed_node_does_not_look_alive(filled: str) -> None:
    node = started(filled, "node", "cli_shop:app")
    until(lambda: _states(filled)["accounts"] == ("running", 15))

    node.kill()
    node.wait()

    until(lambda: _states(filled)["accounts"] == ("silent", 15))


def _states(url: str) -> dict[str, tuple[str, int | None]]:
    found = rows(url, "projections", "list", "cli_shop:app")
    return {row["name"]: (row["state"], row["position"]) for row in found}


def test_a_rebuild_asks_first_and_then_runs_here(filled: str) -> None:
    words = ("projections", "rebuild", "accounts", "--app", "cli_shop")

    _, err = run(filled, *words, code=1, answer="n\n")
    assert "aborted: nothing was changed" in err
    assert _states(filled)["accounts"] == ("never_started", None)
    done = rows(filled, *words, "--yes")
    again = rows(filled, *words, "--yes")

    assert (done[0]["position"], again[0]["position"]) == (15, 15)
    assert _states(filled)["accounts"][1] == 15
    assert _states(filled)["notifier"] == ("never_started", None)
    text, _ = run(filled, "projections", "show", "accounts", "account-0", "--app", "cli_shop")
    assert '"balance": 6' in text


def test_only_what_nodes_run_can_be_rebuilt(filled: str) -> None:
    words = ("projections", "rebuild", "live_accounts", "--app", "cli_shop", "--yes")

    assert "only asynchronous projections" in run(filled, *words, code=2)[1]


def test_a_document_that_is_not_there_is_not_found(filled: str) -> None:
    run(filled, "projections", "rebuild", "accounts", "--app", "cli_shop", "--yes")

    for name in ("accounts", "live_accounts"):
        _, err = run(filled, "projections", "show", name, "nix", "--app", "cli_shop", code=4)
        assert err.startswith("error: ")
    _, err = run(filled, "projections", "show", "nix", "nix", "--app", "cli_shop", code=2)
    assert "registered: accounts:v2, inline_accounts:v1, live_accounts:v1" in err


def test_a_command_that_needs_an_app_says_so(filled: str) -> None:
    assert "STRANDLINE_APP" in run(filled, "projections", "list", code=2)[1]


# ---- gaps and doctor


def test_gaps_tell_who_holds_them_and_cancel_ends_only_holders(filled: str) -> None:
    with asyncio.Runner() as runner:
        holder, pid = runner.run(holding(filled))
        (gap,) = rows(filled, "gaps", "live")
        assert (gap["first"], gap["last"], gap["highest"]) == (16, 16, 17)
        assert tuple(gap) == LIVE_FIELDS
        assert tuple(gap["holders"][0]) == HOLDER_FIELDS
        assert gap["holders"][0]["application"] == "slow import"
        assert f"pid {pid}" in run(filled, "gaps", "live")[0]

        _, err = run(filled, "gaps", "cancel", "1", "--yes", code=4)
        assert "left alone" in err
        _, err = run(filled, "gaps", "cancel", str(pid), code=1, answer="no\n")
        assert "slow import" in err
        assert rows(filled, "gaps", "cancel", str(pid), "--yes") == [{"pid": pid, "ended": True}]
        holder.terminate()

    run(filled, "projections", "rebuild", "accounts", "--app", "cli_shop", "--yes")
    (settled,) = rows(filled, "gaps", "list")
    assert (settled["first"], settled["last"], settled["kind"]) == (16, 16, "rolled_back")
    assert tuple(settled) == SETTLED_FIELDS


def test_doctor_finds_what_is_wrong_and_tells_the_cure(filled: str) -> None:
    asyncio.run(_odd(filled))
    asyncio.run(sql(filled, "ALTER TABLE strandline.events ALTER COLUMN position SET CACHE 20"))

    found = {row["check"]: row for row in rows(filled, "doctor", "cli_shop:app", code=1)}

    assert found["numbering"]["outcome"] == "fail"
    assert "SET CACHE 1" in found["numbering"]["cure"]
    assert found["event types"]["outcome"] == "warn"
    assert "odd-type" in found["event types"]["finding"]
    assert "never ran" in found["shards"]["finding"]
    assert found["server"]["outcome"] == "ok"
    text, _ = run(filled, "doctor", "cli_shop:app", code=1)
    assert "FAIL numbering" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_doctor_is_content_with_a_fresh_database(database_url: str) -> None:
    found = rows(database_url, "doctor")

    assert {row["outcome"] for row in found} <= {"ok", "warn"}
    assert all(row["cure"] for row in found if row["outcome"] != "ok")


def test_doctor_reports_a_database_that_cannot_be_reached() -> None:
    (found,) = rows("postgresql://postgres@127.0.0.1:1/nowhere", "doctor", code=1)

    assert (found["check"], found["outcome"]) == ("connection", "fail")


# ---- errors


def test_a_database_that_cannot_be_reached_is_exit_code_3() -> None:
    out, err = run("postgresql://postgres@127.0.0.1:1/nowhere", "events", "list", code=3)

    assert out == ""
    assert err.startswith("error: connect: ")
    assert "Traceback" not in err


def test_the_options_may_stand_before_and_after_the_command(filled: str) -> None:
    before, _ = run("postgresql://127.0.0.1:1/x", "--database-url", filled, "events", "list")
    after, _ = run("postgresql://127.0.0.1:1/x", "events", "list", "--database-url", filled)

    assert before == after
    assert "lacks" in run(filled, "events", "list", "--schema", "other", code=2)[1]


@pytest.mark.parametrize("width", [30, 80, 200])
def test_tables_fit_the_terminal(filled: str, width: int) -> None:
    for words in (
        ("events", "list"),
        ("streams", "list"),
        ("projections", "list", "cli_shop"),
        ("migrate", "status"),
        ("events", "types", "cli_shop"),
    ):
        text, _ = run(filled, *words, width=width)
        assert max(len(line) for line in text.splitlines()) <= width, words
        assert "\x1b" not in text


# ---- up


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """A folder that root's servers, which run as nobody, can reach too."""
    with tempfile.TemporaryDirectory(prefix="sl-cli-") as made:
        Path(made).chmod(0o755)
        yield Path(made) / "server"


def test_up_starts_a_server_that_other_commands_find(server_folder: Path) -> None:
    environment = {**os.environ, "STRANDLINE_EMBEDDED_DIR": str(server_folder)}
    environment.pop("STRANDLINE_DATABASE_URL", None)
    command = [sys.executable, "-m", "strandline"]
    up = subprocess.Popen(
        [*command, "up", "cli_shop:app", "--json"],
        cwd=HERE,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert up.stdout is not None
        facts = json.loads(up.stdout.readline())
        assert facts["url"].startswith("postgresql://")
        listing = subprocess.run(
            [*command, "projections", "list", "cli_shop:app", "--json"],
            cwd=HERE,
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert {one["name"] for one in json.loads(listing.stdout)} >= {"accounts", "notifier"}
        assert "using the embedded server" in listing.stderr
        code, _, err = ended(up, signal.SIGTERM)
    finally:
        up.kill()
    assert (code, "Traceback" in err) == (0, False)
