"""The app that is harmed, with its jobs; what must come of them is told in ``job_oracle.py``.

Every job carries a token. What it did it writes down in tables of the checker.
"""

from __future__ import annotations

import asyncio
import random

import strandline as sl
from chaos.bank import Deposited, Withdrawn, app
from chaos.job_oracle import EVERY, QUEUE

FAILS = 0.05  # of all attempts of a job that may
AGAIN = sl.Retry(max_attempts=100, first=0.1, longest=0.5)


@app.job(queue=QUEUE, retry=AGAIN, keep="all")
async def settle(token: str, seconds: float) -> None:
    """Take some time, fail now and then, and say that it ran."""
    await asyncio.sleep(seconds)
    if random.random() < FAILS:
        raise RuntimeError("a service is away")
    job = sl.current()
    async with app.transaction() as tx:
        await tx.execute(
            "INSERT INTO chaos.runs VALUES ($1, $2, $3, chaos.tag())", token, job.id, job.attempt
        )


@app.job(queue=QUEUE, retry=AGAIN, keep="all")
async def book(token: str) -> None:
    """Do something that must happen once."""
    job = sl.current()
    async with job.completing() as tx:
        await tx.execute("INSERT INTO chaos.effects VALUES ($1, $2)", token, job.id)


@app.job(queue=QUEUE, retry=AGAIN, ordered=True, key=lambda key, number: key)
async def step(key: str, number: int) -> None:
    """One of many, in order."""
    async with sl.current().completing() as tx:
        await tx.execute("INSERT INTO chaos.steps (key, number) VALUES ($1, $2)", key, number)


@app.job(queue=QUEUE, retry=AGAIN)
async def pay(stream: str, number: int) -> None:
    """Follow one event, once."""
    async with sl.current().completing() as tx:
        await tx.execute("INSERT INTO chaos.paid VALUES ($1, $2)", stream, number)


@app.subscription("payer", types=[Deposited, Withdrawn])
async def payer(batch: sl.EventBatch, tx: sl.Transaction) -> None:
    """Enqueue in the transaction of the checkpoint."""
    for event in batch:
        if event.data.number % EVERY == 0:
            await tx.enqueue(pay.call(event.stream, event.data.number))
