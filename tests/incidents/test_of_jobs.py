"""Incidents of jobs: each alert fires when it really happens, and clears."""

from __future__ import annotations

from typing import Any

from incidents.scrape import Scrape
from strandline.app import App


def jobs_app(url: str, **settings: Any) -> App:
    """An app whose jobs fail, or take no end."""
    app = App("shop", url, **{"job_poll_interval": 0.1, **settings})

    @app.job(max_attempts=1)
    async def charge(number: int) -> None:
        if number < 0:
            raise ValueError("the card was refused")

    app.charge = charge  # type: ignore[attr-defined]  # for the test
    return app


def is_led(scrape: Scrape) -> bool:
    return scrape.value("strandline_leader") == 1


async def test_a_job_whose_attempts_are_used_up(play: Any) -> None:
    async with play("a dead job") as stage:
        app = await stage.node(make=jobs_app)
        await app.enqueue(app.charge, 1)
        await stage.before(lambda now: is_led(now) and now.has("strandline_jobs_completed_total"))

        await app.enqueue(app.charge, -1)
        await stage.during(
            lambda now: (
                now.has("strandline_jobs_not_completed_total", outcome="dead")
                and now.has("strandline_dead_jobs")
            )
        )
        await stage.after(is_led)
        await stage.judge("JobsDead")
