"""What metrics say of jobs that really run, fail and wait, and what a desk says of them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tally import holds

import strandline as sl
from strandline.errors import InvalidDefinition, InvalidInput, JobNotFound, NotFound
from strandline.telemetry.metrics import Metrics

QUICK: dict[str, Any] = {
    "pulse": "loop",
    "pulse_interval": 0.1,
    "node_name": "shop-1",
    "job_poll_interval": 0.1,
}


def jobs_app(url: str, **settings: Any) -> sl.App:
    app = sl.App("jobs", url, **{**QUICK, **settings})
    app.queue("slow", concurrency=3, at_most=5)

    @app.job(queue="slow", max_attempts=1)
    async def fail(why: str) -> None:
        raise ValueError(why)

    @app.job
    async def work(number: int) -> int:
        return number

    @app.cron("0 9 1 1 *", name="yearly")
    @app.job
    async def report(fire_time: datetime) -> str:
        return fire_time.isoformat()

    return app


async def test_a_node_tells_what_it_fetched_ran_and_recorded(database_url: str) -> None:
    sdk = pytest.importorskip("opentelemetry.sdk.metrics")
    export = pytest.importorskip("opentelemetry.sdk.metrics.export")
    reader = export.InMemoryMetricReader()
    meter = sdk.MeterProvider(metric_readers=[reader]).get_meter("test")
    app = jobs_app(database_url)
    told = Metrics(app.signals, sources=app._readings, meter=meter)

    def now() -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {}
        for one in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
            for point in one.data.data_points:
                key = "/".join(v for k, v in dict(point.attributes).items() if k != "node")
                value = point.value if hasattr(point, "value") else point.count
                found.setdefault(one.name, {})[key] = value
        return found

    async with app:
        told.start()
        for number in range(3):
            await app.enqueue(app.kinds.get("work"), number)
        await app.enqueue(app.kinds.get("fail"), "broken")
        await app.start()
        await holds(lambda: now()["strandline_jobs_completed_total"] == {"": 3})
        await holds(lambda: now().get("strandline_job_attempts_total") == {"default": 3, "slow": 1})
        found = now()

        assert found["strandline_jobs_enqueued_total"] == {"default": 3, "slow": 1}
        assert found["strandline_jobs_claimed_total"] == {"default": 3, "slow": 1}
        assert found["strandline_jobs_not_completed_total"] == {"slow/fail/dead": 1}
        assert found["strandline_job_run_seconds_total"]["default"] >= 0
        assert found["strandline_job_claim_seconds"]["default"] >= 1
        assert found["strandline_job_wait_seconds"]["default"] >= 1
        assert found["strandline_job_flush_seconds"][""] >= 1
        assert found["strandline_job_slots"] == {"default": 100, "slow": 3}
        assert found["strandline_jobs_running"] == {"default": 0, "slow": 0}
        assert found["strandline_jobs_fenced_total"] == {"": 0}
        await holds(lambda: "strandline_jobs_dead_tuples" in now())
        told.stop()


async def test_the_desk_looks_and_steers(database_url: str) -> None:
    async with jobs_app(database_url) as app:
        work, fail = app.kinds.get("work"), app.kinds.get("fail")
        waiting = await app.enqueue(work.call(1).with_(tags=["bill"], delay=600))
        await app.enqueue(work, 2)
        await app.enqueue(fail, "broken")

        assert [one.id for one in await app.jobs.list(tag="bill")] == [waiting.id]
        assert (await app.jobs.get(waiting.id)).state == "scheduled"
        assert {one.kind for one in await app.jobs.list(kind=work)} == {"work"}
        assert await app.jobs.retry(waiting.id) == 1
        assert (await app.jobs.get(waiting.id)).state == "available"
        done = await app.jobs.cancel(kind=work, reason="enough")
        assert (done.done, done.asked) == (2, 0)
        assert (await app.jobs.get(waiting.id)).reason == "enough"
        assert [(one.queue, one.count) for one in await app.jobs.counts()] == [
            *(("default", 2), ("slow", 1)),
        ]
        with pytest.raises(JobNotFound):
            await app.jobs.get(-1)
        for refused in (app.jobs.retry, app.jobs.cancel, app.jobs.discard):
            with pytest.raises(InvalidInput, match="which jobs"):
                await refused()  # type: ignore[operator]  # the three have nothing else in common


async def test_what_code_says_of_a_queue_yields_to_what_an_operator_sets(database_url: str) -> None:
    async with jobs_app(database_url) as app:
        declared = await app.queues.get("slow")
        await app.queues.set("slow", at_most=9)
    async with jobs_app(database_url) as app:
        kept = await app.queues.get("slow")
        await app.queues.forget("slow")
        with pytest.raises(NotFound):
            await app.queues.get("slow")
    async with jobs_app(database_url) as app:
        again = await app.queues.get("slow")
        with pytest.raises(InvalidDefinition, match="declared already"):
            app.queue("slow")
        with pytest.raises(InvalidDefinition, match="at_most"):
            app.queue("other", at_most=0)

    assert [(one.concurrency, one.at_most, one.set_by) for one in (declared, kept, again)] == [
        (3, 5, "code"),
        (3, 9, "operator"),
        (3, 5, "code"),
    ]


async def test_a_schedule_is_run_out_of_turn_and_its_job_is_told_the_moment(
    database_url: str,
) -> None:
    async with jobs_app(database_url) as app:
        (one,) = await app.schedules.list()
        number = await app.schedules.run(one.name)
        job = await app.jobs.get(number)
        soon = await app.schedules.next(one.name, 2)

    assert (one.name, one.spec, job.kind) == ("yearly", "0 9 1 1 *", "report")
    assert str(datetime.now(UTC).year) in job.args
    assert [(at.month, at.day, at.hour) for at in soon] == [(1, 1, 9), (1, 1, 9)]
