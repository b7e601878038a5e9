"""Which keys wait is read in steps through the index: none is left out, and none that nobody would try."""

from __future__ import annotations

import random

from letterbox import fragile_app, letter_rows
from tally import connected

from strandline.daemon import letters

INSERT = """
    INSERT INTO strandline.dead_letters
           (label, shard, tenant, key, position, stream, version, type, status, category)
    SELECT label, label || ':all', tenant, key, position, key, 1, 'ticked', status, category
      FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::text[])
        AS r(label, tenant, key, position, status, category)
"""


async def test_every_parked_key_is_found_and_those_that_nobody_would_try_are_asked_for(
    database_url: str,
) -> None:
    chance = random.Random(7)
    rows: list[tuple[str, str, str, int, str, str | None]] = []
    parked: set[tuple[str, str]] = set()
    stuck: set[tuple[str, str]] = set()
    position = 0
    names = [f"k{number}" for number in range(300)] + ["", "Ä", "z/", "a'b"]
    for tenant in ("default", "other"):
        for key in names:
            statuses = [
                chance.choice(["parked", "parked", "skipped", "resolved"])
                for _ in range(chance.choice([1, 1, 2, 5, 49, 50, 51, 130]))
            ]
            first = True
            for status in statuses:
                position += 1
                category = chance.choice(["apply", None]) if status == "parked" else "apply"
                rows.append(("odd:v1", tenant, key, position, status, category))
                if status == "parked" and key:
                    parked.add((tenant, key))
                    if first and category is None:
                        stuck.add((tenant, key))
                    first = False
    rows += [("odd:v10", "default", f"x{number}", number, "parked", None) for number in range(9)]
    async with fragile_app(database_url) as app, connected(database_url) as other:
        await other.execute(INSERT, *(list(column) for column in zip(*rows, strict=True)))

        found = await app.pools.work.run(letters.parked_keys("odd:v1"))
        assert len(found) == len(parked)
        assert set(found) == parked
        asked = [row for row in await letter_rows(database_url) if row["retry_at"] is not None]
        assert {(row["tenant"], row["key"]) for row in asked} == stuck
        assert len(asked) == len(stuck), "of each the first letter"
        assert {row["label"] for row in asked} == {"odd:v1"}
        assert await app.pools.work.run(letters.parked_keys("none:v1")) == []
