"""Incidents of connections: each alert fires when it really happens, and clears."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tally import Ticked, fill

from incidents.faults import careless
from incidents.scrape import is_led
from strandline.errors import PoolExhausted


async def test_a_pool_whose_connections_are_all_held(play: Any) -> None:
    async with play("an exhausted pool") as stage:
        app = await stage.node(work_connections=2, acquire_timeout=0.3)
        await fill(app, 10)
        await stage.before(is_led)

        over = asyncio.Event()
        held = [asyncio.create_task(careless(app, over)) for _ in range(2)]
        with pytest.raises(PoolExhausted):
            while True:
                await app.append("refused", Ticked())
        await stage.during(lambda now: now.has("strandline_pool_exhausted_total", pool="work"))

        over.set()
        await asyncio.gather(*held)
        await stage.after(is_led)
        await stage.judge("PoolExhausted", may=("BatchesFailing",))


async def test_a_transaction_that_is_not_closed(play: Any) -> None:
    async with play("a leaked transaction") as stage:
        app = await stage.node(leak_after=0.3)
        await fill(app, 10)
        await stage.before(is_led)

        over = asyncio.Event()
        held = asyncio.create_task(careless(app, over))
        await stage.during(lambda now: now.has("strandline_leaked_transactions_total", pool="work"))

        over.set()
        await held
        await stage.after(is_led)
        await stage.judge("TransactionLeaked")
