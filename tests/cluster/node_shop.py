"""An App whose node misbehaves: ``node_shop:app``, as the environment variable ``SHOP`` says."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import strandline as sl

SHOP = dict(word.split("=") for word in os.environ.get("SHOP", "").split())

app = sl.App("node-shop", log_level="INFO")


@app.event("ticked")
@dataclass(frozen=True)
class Ticked:
    number: int = 0


@dataclass
class Seen:
    numbers: list[int] = field(default_factory=list)


def misbehave(how: str) -> Any:
    """As it says: a coroutine to wait for, or nothing more."""
    if how == "raise":
        raise RuntimeError("the hook failed")
    if how == "sleep":
        time.sleep(120)
    if how == "regex":
        re.match(r"(a+)+$", "a" * 40 + "b")
    if how == "hang":
        return asyncio.Event().wait()
    if how == "swallow":
        return swallow()
    if how == "exit":
        sys.exit(9)
    return asyncio.sleep(0)


async def swallow() -> None:
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            print("swallowed", flush=True)


@app.projection("seen")
class Numbers(sl.SingleStream[Seen]):
    @sl.apply
    def ticked(self, seen: Seen, event: Ticked) -> None:
        seen.numbers.append(event.number)


@app.subscription("slow")
async def notify(batch: sl.EventBatch) -> None:
    print("batch", flush=True)
    await misbehave(SHOP.get("batch", ""))


for number, how in enumerate(SHOP.get("hooks", "").split(",")):

    def hook(how: str = how) -> Any:
        return misbehave(how)

    hook.__name__ = f"number_{number}"
    app.on_stop(hook)

if "import" in SHOP:
    print("importing", flush=True)
    misbehave(SHOP["import"]) if SHOP["import"] == "sleep" else time.sleep(float(SHOP["import"]))
