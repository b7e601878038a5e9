"""What metrics say of nodes that really run, lose their shards and stop."""

from __future__ import annotations

from typing import Any

import pytest
from tally import fill, holds, tally_app

from strandline.app import App
from strandline.errors import CheckpointMoved
from strandline.telemetry.catalogue import CATALOGUE
from strandline.telemetry.metrics import Metrics

sdk = pytest.importorskip("opentelemetry.sdk.metrics")
export = pytest.importorskip("opentelemetry.sdk.metrics.export")

SHARDS = {"versions:v1:all", "positions:v1:all"}


class Collected:
    """The metrics of one app."""

    def __init__(self, app: App) -> None:
        self.reader = export.InMemoryMetricReader()
        meter = sdk.MeterProvider(metric_readers=[self.reader]).get_meter("test")
        self.app = app
        self.metrics = Metrics(app.signals, sources=self._sources, meter=meter)
        self.metrics.start()

    def _sources(self) -> dict[str, Any]:
        return dict(self.app._readings())

    def now(self) -> dict[str, dict[str, float]]:
        """By name: value by the values of the attributes other than the node."""
        found: dict[str, dict[str, float]] = {}
        data = self.reader.get_metrics_data()
        for one in data.resource_metrics[0].scope_metrics[0].metrics:
            for point in one.data.data_points:
                attributes = dict(point.attributes)
                assert attributes.pop("node") == self.app.node_name
                value = point.value if hasattr(point, "value") else point.count
                for name, shown in attributes.items():
                    known = CATALOGUE[one.name].values_of(name)
                    assert not known or shown in known, f"{one.name}: {name}={shown}"
                found.setdefault(one.name, {})["/".join(attributes.values())] = value
        return found


async def test_a_node_tells_its_leadership_shards_and_pools(database_url: str) -> None:
    app = tally_app(
        database_url,
        pulse="loop",
        pulse_interval=0.1,
        node_name="shop-1",
        survey_interval=0.1,
    )
    async with app:
        told = Collected(app)
        await app.start()
        await holds(lambda: told.now()["strandline_shards"]["running"] == 2)
        last = await fill(app, 50)
        await holds(lambda: told.now()["strandline_shard_position"] == dict.fromkeys(SHARDS, last))
        level = {f"{one.removesuffix(':all')}/{one}": 0 for one in SHARDS}
        await holds(lambda: told.now().get("strandline_shard_lag_events") == level)
        await holds(lambda: told.now()["strandline_high_water_position"] == {"": last})
        found = told.now()

        assert found["strandline_leader"] == {"": 1}
        assert found["strandline_leader_epoch"] == {"": 1}
        assert found["strandline_elections_total"]["won"] == 1
        assert 0 < found["strandline_lease_trust_remaining_seconds"][""] < 60
        assert found["strandline_events_appended_total"] == {"": 50}
        assert found["strandline_events_processed_total"] == {"versions:v1": 50, "positions:v1": 50}
        assert found["strandline_batch_seconds"]["versions:v1"] >= 1
        assert found["strandline_listener_connected"] == {"": 1}
        assert not any(found["strandline_loop_seconds_since_success"].values())
        assert {"agent", "mark", "listener"} <= set(found["strandline_loop_seconds_since_success"])
        assert set(found["strandline_skipped_events_total"].values()) == {0}
        assert found["strandline_claims_total"] == {"": 3}
        assert found["strandline_moves_total"]["placed"] == 3
        assert found["strandline_unplaced_work"] == {"": 0}
        assert found["strandline_ownership_lost_total"] == dict.fromkeys(SHARDS, 0)
        assert found["strandline_tick_seconds"][""] > 0
        assert found["strandline_last_tick_age_seconds"][""] < 5
        assert found["strandline_pool_limit_connections"] == {"work": 8, "control": 2}

        await app.stop()
        found = told.now()
        assert found["strandline_releases_total"] == {"": 3}
        assert found["strandline_lease_lost_total"] == {"leader": 0}
        assert found["strandline_shutdowns_total"] == {
            "clean": 1,
            "degraded": 0,
            "forced": 0,
        }
        assert found["strandline_shutdown_step_seconds"]["leave/ok"] == 1
        assert "strandline_leader" not in found
        told.metrics.stop()


async def test_a_shard_that_another_node_takes_raises_the_metric_to_alert_on(
    database_url: str,
) -> None:
    loser = tally_app(database_url, mode="solo")
    async with loser:
        told = Collected(loser)
        await loser.start()
        await holds(lambda: told.now()["strandline_shards"]["running"] == 2)
        assert told.now()["strandline_ownership_lost_total"] == dict.fromkeys(SHARDS, 0)

        async with tally_app(database_url, mode="solo") as winner:
            await winner.start()
            await fill(winner, 50)
            await holds(
                lambda: told.now()["strandline_ownership_lost_total"] == dict.fromkeys(SHARDS, 1)
            )

        assert told.now()["strandline_fenced_writes_total"] == dict.fromkeys(SHARDS, 1)
        assert told.now()["strandline_batch_failures_total"].keys() == {
            f"{shard}/{CheckpointMoved.__name__}" for shard in SHARDS
        }
        told.metrics.stop()


@pytest.mark.parametrize("pulse", ["process", "thread", "loop"])
async def test_loops_that_leadership_begins_are_the_apps_too(pulse: str, database_url: str) -> None:
    """News of leadership come from a process or thread that knows nothing of apps."""
    app = tally_app(database_url, pulse=pulse, pulse_interval=0.1)
    before = {"listener", "notifier", "leak watch"}
    async with app:
        assert before <= {one.kind for one in app.loops.statistics()}
        await app.start()
        leads = {"balancing", "pruning", "survey", "agent", "reconciler"}

        def missing() -> set[str]:
            return leads - {one.kind for one in app.loops.statistics()}

        await holds(lambda: not missing())
        assert not any(one.is_dead for one in app.loops.statistics())
    assert app.loops.statistics() == ()
