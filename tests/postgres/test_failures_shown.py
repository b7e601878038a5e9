"""What the command line tells of a shard that pauses."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from commands import rows, run
from poisoned import TABLES, Step, poisoned_app
from tally import connected, holds

from strandline.app import App
from strandline.projections.failure_policy import ErrorPolicy

TESTS = str(Path(__file__).parents[1])


async def pause_everything(url: str) -> None:
    """Let every shard meet a poison event, and pause there for a minute."""
    async with connected(url) as operator:
        await operator.execute(TABLES)
    app = poisoned_app(url, on_error=ErrorPolicy(apply="pause"), failure_pause=60, mode="solo")
    async with app:
        await app.append("s1", [Step(1), Step(2, poison=True)])
        await app.start()
        await holds(lambda: all_pause(app))
        # as a node that is killed leaves it
        for agent in app._node.daemon.agents.values():  # type: ignore[union-attr]
            agent.cut()


async def all_pause(app: App) -> bool:
    return all(row.state == "paused" for row in await app.progress())


def test_a_paused_shard_is_listed_with_reason_event_handler_and_next_try(
    database_url: str, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(TESTS)
    monkeypatch.syspath_prepend(str(Path(TESTS, "cluster")))
    asyncio.run(pause_everything(database_url))
    try:
        text, _ = run(database_url, "projections", "list", "poisoned_node:app", width=200)
        found = {
            row["name"]: row
            for row in rows(database_url, "projections", "list", "poisoned_node:app")
        }
    finally:
        sys.modules.pop("poisoned_node", None)

    steps = found["steps"]
    assert (steps["state"], steps["category"], steps["phase"]) == ("paused", "apply", "apply")
    assert (steps["attempts"], steps["pauses"]) == (4, 1)
    assert steps["next_at"] is not None
    facts = steps["failure"]
    assert (facts["position"], facts["stream"], facts["version"]) == (2, "s1", 2)
    assert (facts["type"], facts["cause"]) == ("step", "ValueError('cannot digest 2')")
    assert "steps:v1 paused: ApplyFailed: steps:v1 at position 2: ValueError" in text
    assert "apply in apply: event at position 2, type step, stream s1 version 2" in text
    assert "Steps.step" in text
    assert "4 tries failed, pause 1: next try in" in text
