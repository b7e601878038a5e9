"""The kit for users' tests on a real database: fixtures, scenarios of an app, leaks, faults."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from tally import Positions, Seen, Ticked, Versions, connected, tally_app

from strandline.app import App
from strandline.errors import ApplyFailed, WrongVersion
from strandline.projections.handlers import apply
from strandline.projections.single_stream import SingleStream
from strandline.testing import Proxy, app_scenario, database, fresh_database, no_leaks


@pytest.fixture
def app_under_test() -> App:
    return tally_app("postgresql://nobody@127.0.0.1:1/nowhere")


# ---- fixtures


async def test_the_app_comes_unopened_on_a_fresh_database(strandline_app: App) -> None:
    assert not strandline_app.is_open
    async with strandline_app as app:
        assert await app.append("s", Ticked()) and await app.catch_up() == 1


async def test_and_the_next_test_finds_it_empty(strandline_app: App) -> None:
    async with strandline_app as app:
        assert await app.catch_up() == 0


def test_a_plain_test_may_use_it_as_well(strandline_app: App, strandline_database: str) -> None:
    async def work() -> int:
        async with strandline_app as app:
            return (await app.append("s", Ticked())).position

    assert asyncio.run(work()) == 1
    assert strandline_app.settings.database_url == strandline_database


SUITE = """
import asyncio, inspect, pytest
from dataclasses import dataclass
import strandline as sl

shop = sl.App("shop")

@shop.event("sold")
@dataclass(frozen=True)
class Sold:
    amount: int = 1

@dataclass
class Total:
    amount: int = 0

@shop.projection("totals")
class Totals(sl.SingleStream[Total]):
    @sl.apply
    def sold(self, total: Total, event: Sold) -> None:
        total.amount += event.amount

def test_sync(strandline_app):
    async def work():
        async with strandline_app as app:
            await app.append("s", Sold(3))
            await app.catch_up()
            return await app.get(Totals, "s")
    assert asyncio.run(work()) == Total(3)

def test_left_open(strandline_app):
    asyncio.run(strandline_app.open())

def test_no_loop_is_touched(strandline_database):
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()

@pytest.mark.parametrize("number", range(3))
def test_fresh(strandline_app, number):
    test_sync(strandline_app)
"""


def run_suite(folder: Path, server: str, *options: str, ini: str = "") -> str:
    (folder / "test_shop.py").write_text(SUITE)
    (folder / "pytest.ini").write_text(f"[pytest]\n{ini}\npythonpath = .\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options]
    found = subprocess.run(
        command, cwd=folder, env={"STRANDLINE_DATABASE_URL": server, "PATH": ""},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    return found.stdout + found.stderr


def test_a_users_suite_names_its_app_in_the_configuration_and_runs_in_parallel(
    tmp_path: Path, server_url: str
) -> None:
    out = run_suite(tmp_path, server_url, "-n", "2", ini="strandline_app = test_shop:shop")

    assert "6 passed, 1 error" in out, out
    assert "the app is still open: use `async with strandline_app`" in out


def test_a_users_suite_without_an_app_is_told_how_to_name_it(
    tmp_path: Path, server_url: str
) -> None:
    out = run_suite(tmp_path, server_url, "-k", "sync")

    assert "which app? Write a fixture `app_under_test`" in out


# ---- scenarios


async def test_a_scenario_of_the_whole_app_passes(database_url: str) -> None:
    async with tally_app(database_url) as app, no_leaks(app):
        await (
            app_scenario(app)
            .given("a", Ticked(1), Ticked(2))
            .given("b", Ticked(1))
            .when(lambda app: app.append("a", Ticked(3), expected=2))
            .then_events("a", Ticked(3))
            .then_document(Versions, "a", Seen([1, 2, 3]))
            .then_documents(Versions, {"a": Seen([1, 2, 3]), "b": Seen([1])})
            .then_no_document("versions", "c")
            .when("b", Ticked(2))
            .then_document(Versions, "b", Seen([1, 2]))
            .then_document(Positions, "0", Seen([3]))
        )


async def test_a_scenario_runs_on_a_node_too(database_url: str) -> None:
    async with tally_app(database_url) as app:
        await app.start()

        await app_scenario(app).given(Ticked()).then_document(Versions, "stream-1", Seen([1]))

        assert app.is_running


async def test_a_scenario_shows_what_differs(database_url: str) -> None:
    async with tally_app(database_url) as app:
        scene = app_scenario(app).given("a", Ticked(1))

        with pytest.raises(AssertionError, match=r"document 'a' of Versions is not as expected"):
            await scene.then_document(Versions, "a", Seen([7]))
        with pytest.raises(AssertionError, match=r"events appended to 'a' is not as expected"):
            await app_scenario(app).given("a", Ticked(1)).then_events("a", Ticked(2))
        with pytest.raises(AssertionError, match="Versions has no document 'b'"):
            await app_scenario(app).then_document(Versions, "b", Seen())
        with pytest.raises(AssertionError, match="Versions has a document 'a'"):
            await app_scenario(app).then_no_document(Versions, "a")


async def test_what_happens_may_raise_if_that_is_expected(database_url: str) -> None:
    async def conflict(app: App) -> None:
        await app.append("a", Ticked(), expected=9)

    async with tally_app(database_url) as app:
        await app_scenario(app).given("a", Ticked()).when(conflict).then_raises(WrongVersion, "'a'")
        with pytest.raises(WrongVersion):
            await app_scenario(app).when(conflict)
        with pytest.raises(AssertionError, match="ValueError was raised, but WrongVersion"):
            await app_scenario(app).when(conflict).then_raises(ValueError)
        with pytest.raises(AssertionError, match="WrongVersion was not raised"):
            await app_scenario(app).given("a", Ticked()).then_raises(WrongVersion)


async def test_a_handler_that_raises_ends_the_scenario_at_once(database_url: str) -> None:
    app = tally_app(database_url)

    @app.projection("broken")
    class Broken(SingleStream[Seen]):
        @apply
        def ticked(self, seen: Seen, event: Ticked) -> None:
            raise ValueError("a bug")

    async with app, no_leaks(app):
        with pytest.raises(ApplyFailed, match="a bug"):
            async with asyncio.timeout(10):
                await app_scenario(app).given(Ticked()).then_document("broken", "stream-1", Seen())


# ---- leaks and faults


async def test_what_is_left_behind_is_named(database_url: str) -> None:
    app = tally_app(database_url)
    task: Any = None
    with pytest.raises(AssertionError, match="left behind: task 'forgotten'"):
        async with no_leaks(patience=0.05):
            task = asyncio.create_task(asyncio.Event().wait(), name="forgotten")
    task.cancel()

    async with app:
        with pytest.raises(
            AssertionError, match=r"pool 'work' has 1 in use.*idle in|in a transact"
        ):
            async with no_leaks(app, patience=0.05):
                transaction = app.transaction()
                await (await transaction.__aenter__()).execute("SELECT 1")
        await transaction.__aexit__(None, None, None)
        async with no_leaks(app):
            await app.append("s", Ticked())


async def test_a_database_is_gone_after_its_block(server_url: str) -> None:
    async with fresh_database(server_url) as url, connected(url) as connection:
        assert await connection.fetchval("SELECT position FROM strandline.high_water") == 0

    with pytest.raises(asyncpg.InvalidCatalogNameError):
        await asyncpg.connect(url)


async def test_a_proxy_cuts_refuses_holds_and_swallows(database_url: str) -> None:
    async with no_leaks(), Proxy(database_url) as proxy:
        async with connected(proxy.url) as connection:
            assert await connection.fetchval("SELECT 1") == 1
            proxy.hold()
            with pytest.raises(TimeoutError):
                await connection.fetchval("SELECT 2", timeout=0.05)
            proxy.forward()
        connection = await asyncpg.connect(proxy.url)
        await connection.execute("CREATE TABLE t (n int)")
        proxy.swallow_answer_to(b"INSERT INTO t")
        with pytest.raises((asyncpg.ConnectionDoesNotExistError, OSError)):
            await connection.execute("INSERT INTO t VALUES (1)")
        proxy.refuse()
        with pytest.raises((asyncpg.PostgresConnectionError, OSError)):
            await asyncpg.connect(proxy.url)
        proxy.forward()

        async with connected(proxy.url) as after:
            assert await after.fetchval("SELECT count(*) FROM t") == 1, "done, though never told"
        assert proxy.swallowed == 1


async def test_a_proxy_that_is_not_open_has_no_address(database_url: str) -> None:
    with pytest.raises(RuntimeError, match="the proxy is not open"):
        _ = Proxy(database_url).url


async def test_a_template_that_is_gone_is_made_anew(
    server_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = f"sl_template_{uuid4().hex[:12]}"
    monkeypatch.setattr(database, "template_name", lambda schema="strandline": own)
    for _ in range(2):
        async with fresh_database(server_url) as url, connected(url) as operator:
            assert await operator.fetchval("SELECT count(*) FROM strandline.migrations") > 0
        async with connected(server_url) as operator:
            await operator.execute(f'DROP DATABASE "{own}"')
