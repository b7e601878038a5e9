"""Stored documents: by id, by ids, by condition, with the declared indexes."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pydantic
import pytest
from tally import connected

from strandline.app import App
from strandline.errors import (
    DocumentNotFound,
    InvalidDefinition,
    InvalidInput,
    UndecodableEvent,
)
from strandline.projections.documents import Documents
from strandline.projections.handlers import apply
from strandline.projections.single_stream import SingleStream


@dataclass(frozen=True)
class Moved:
    owner: str
    city: str = "Graz"
    rooms: int = 1
    tags: tuple[str, ...] = ()


@dataclass
class Address:
    city: str = ""


@dataclass
class House:
    owner: str = ""
    rooms: int = 0
    address: Address = field(default_factory=Address)
    tags: list[str] = field(default_factory=list)


class Houses(SingleStream[House]):
    indexes = ("owner", "address.city", "*")

    @apply
    def moved(self, house: House, event: Moved) -> House:
        return House(event.owner, event.rooms, Address(event.city), list(event.tags))


def house_app(url: str) -> App:
    app = App("houses", url)
    app.event("moved")(Moved)
    app.projection("houses")(Houses)
    return app


async def furnished(app: App) -> None:
    await app.append("h1", Moved("Ada", rooms=3, tags=("big", "old")))
    await app.append("h2", Moved("Bo", "Wien", 1))
    await app.append("h3", Moved("Ada", "Wien", 2, ("old",)))
    await app.append("h1", Moved("Cy", rooms=9), tenant="other")
    await app.catch_up()


async def test_documents_are_found_by_id_and_ids(database_url: str) -> None:
    async with house_app(database_url) as app:
        await furnished(app)

        assert await app.get(Houses, "h2") == House("Bo", 1, Address("Wien"))
        assert await app.find("houses", "nowhere") is None
        assert list(await app.find_many(Houses, ["h3", "nowhere", "h1", "h3"])) == ["h3", "h1"]
        assert await app.find_many(Houses, []) == {}
        with pytest.raises(DocumentNotFound, match="houses:v1 has no document 'nowhere'"):
            await app.get(Houses, "nowhere")


async def test_documents_of_another_tenant_are_not_there(database_url: str) -> None:
    async with house_app(database_url) as app:
        await furnished(app)

        assert (await app.get(Houses, "h1", tenant="other")).owner == "Cy"
        assert [name for name, _ in await app.query(Houses, tenant="other")] == ["h1"]
        assert await app.find(Houses, "h2", tenant="other") is None
        assert await app.count(Houses, tenant="third") == 0


@pytest.mark.parametrize(
    ("where", "arguments", "expected"),
    [
        (None, (), ["h1", "h2", "h3"]),
        ({}, (), ["h1", "h2", "h3"]),
        ({"owner": "Ada"}, (), ["h1", "h3"]),
        ({"owner": "Ada", "address.city": "Wien"}, (), ["h3"]),
        ({"rooms": 3}, (), ["h1"]),
        ({"tags": ["old"]}, (), ["h1", "h3"]),
        ({"address": {"city": "Wien"}, "owner": "Bo"}, (), ["h2"]),
        ({"missing": "x"}, (), []),
        ("(data->>'rooms')::int >= $1", (2,), ["h1", "h3"]),
        ("data->>'owner' = $2 AND (data->>'rooms')::int < $1", (3, "Ada"), ["h3"]),
        ({"owner": "'; DROP TABLE x; --"}, (), []),
    ],
)
async def test_documents_are_found_by_condition(
    database_url: str, where: Any, arguments: tuple[Any, ...], expected: list[str]
) -> None:
    async with house_app(database_url) as app:
        await furnished(app)

        found = await app.query(Houses, where, *arguments)

        assert [name for name, _ in found] == expected
        assert await app.count(Houses, where, *arguments) == len(expected)


async def test_a_query_may_order_and_limit(database_url: str) -> None:
    async with house_app(database_url) as app:
        await furnished(app)

        found = await app.query(Houses, order_by="(data->>'rooms')::int DESC", limit=2)

        assert [name for name, _ in found] == ["h1", "h3"]


async def test_a_condition_that_cannot_be_asked_is_refused(database_url: str) -> None:
    async with house_app(database_url) as app:
        with pytest.raises(InvalidInput, match="only texts can be compared under a path"):
            await app.query(Houses, {"address.city": 5})
        with pytest.raises(asyncpg.UndefinedColumnError):
            await app.query(Houses, "nothing = 1")


@pytest.mark.parametrize(
    ("where", "condition"),
    [
        ({"owner": "Ada"}, "(data ->> 'owner'::text) = 'Ada'::text"),
        ({"address.city": "Wien"}, "(data #>> '{address,city}'::text[]) = 'Wien'::text"),
        ({"rooms": 3}, "data @> '{\"rooms\": 3}'::jsonb"),
    ],
)
async def test_a_condition_uses_the_declared_index(
    database_url: str, where: dict[str, Any], condition: str
) -> None:
    app = house_app(database_url)
    async with app, connected(database_url) as other:
        documents: Documents[Any] = app.requests.documents(Houses)
        call = next(documents.query(where, (), tenant="default"))
        await other.execute(FILL)

        plan = await other.fetch("EXPLAIN " + call.statement.sql("strandline"), *call.arguments)

        text = "\n".join(row[0] for row in plan)
        assert condition in text and "Index Cond" in text, text


FILL = """
    INSERT INTO strandline.doc_houses_v1 (tenant, id, data, version, position)
    SELECT 'default', 'h' || n, jsonb_build_object('owner', 'o' || n, 'rooms', n, 'address',
           jsonb_build_object('city', 'c' || n)), 1, n FROM generate_series(1, 5000) AS n;
    ANALYZE strandline.doc_houses_v1
"""


async def test_a_field_that_is_no_path_cannot_be_indexed(database_url: str) -> None:
    app = App("houses", database_url)
    app.event("moved")(Moved)
    bad = type("Bad", (Houses,), {"indexes": ("owner'); DROP TABLE x; --",)})
    app.projection("bad")(bad)

    with pytest.raises(InvalidDefinition, match="is not a field like"):
        await app.open()
    assert not app.is_open


class Person(pydantic.BaseModel):
    name: str = ""
    born: datetime | None = None


class People(SingleStream[Person]):
    @apply
    def moved(self, person: Person, event: Moved) -> Person:
        return Person(name=event.owner, born=datetime(2030, 1, 1, tzinfo=UTC))


async def test_a_document_may_be_a_pydantic_model(database_url: str) -> None:
    app = house_app(database_url)
    app.projection("people")(People)
    async with app:
        await furnished(app)

        assert await app.get(People, "h2") == Person(
            name="Bo", born=datetime(2030, 1, 1, tzinfo=UTC)
        )


async def test_a_document_that_no_longer_fits_its_class_says_what_to_do(database_url: str) -> None:
    async with house_app(database_url) as app, connected(database_url) as other:
        await furnished(app)
        await other.execute("UPDATE strandline.doc_houses_v1 SET data = '{\"owner\": 5}'")

        with pytest.raises(UndecodableEvent, match="needs a new version of the projection"):
            await app.get(Houses, "h1")


async def test_a_new_version_is_built_beside_the_old_one(database_url: str) -> None:
    class Counted(SingleStream[House]):
        @apply
        def moved(self, house: House, event: Moved) -> None:
            house.rooms += 100

    async with house_app(database_url) as old:
        await furnished(old)
        new = App("houses", database_url)
        new.event("moved")(Moved)
        new.projection("houses", version=2)(Counted)
        async with new:
            await new.catch_up()

            assert (await new.get("houses", "h2")).rooms == 100
            assert (await old.get("houses", "h2")).rooms == 1


async def test_live_folds_travel_in_time_and_need_no_table(database_url: str) -> None:
    app = App("houses", database_url)
    app.event("moved")(Moved)
    app.projection("houses", lifecycle="live")(Houses)
    async with app:
        await app.append("h1", [Moved("Ada"), Moved("Bo"), Moved("Cy")])

        assert (await app.live(Houses, "h1")).owner == "Cy"
        assert (await app.live(Houses, "h1", version=2)).owner == "Bo"
        assert await app.live(Houses, "h1", at=datetime(2000, 1, 1, tzinfo=UTC)) is None
        assert await app.live(Houses, "none") is None
        with pytest.raises(InvalidDefinition, match=r"is live: ask app\.live"):
            await app.get(Houses, "h1")


async def test_a_live_fold_of_a_long_stream_needs_several_pages(database_url: str) -> None:
    app = house_app(database_url)
    async with app:
        await app.append("h1", [Moved(str(number)) for number in range(2500)])

        assert (await app.live(Houses, "h1")).owner == "2499"
        assert (await app.live(Houses, "h1", version=1001)).owner == "1000"
