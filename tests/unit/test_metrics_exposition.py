"""The page that Prometheus reads: right numbers, sound text, from any thread, of a node that changes."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from strandline.settings import Settings
from strandline.telemetry.catalogue import CATALOGUE
from strandline.telemetry.metrics import Metrics
from strandline.telemetry.prometheus import exposition
from strandline.telemetry.signals import Signals

prometheus_client = pytest.importorskip("prometheus_client")
from prometheus_client.openmetrics.parser import (  # noqa: E402 - it may be missing
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse  # noqa: E402

OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"
Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


@dataclass
class Agent:
    shard: str
    position: int = 7
    state: str = "running"


@dataclass
class Daemon:
    agents: tuple[Agent, ...]
    mark: int = 9
    letters: tuple[Any, ...] = ()


def started(**facts: Any) -> tuple[Signals, Metrics]:
    signals = Signals()
    metrics = Metrics(signals, sources=lambda: {"node": "shop-1", **facts})
    metrics.start()
    return signals, metrics


def samples(page: bytes, parser: Any = parse) -> Samples:
    found: Samples = {}
    for family in parser(page.decode()):
        for one in family.samples:
            found.setdefault(one.name, {})[tuple(sorted(one.labels.items()))] = one.value
    return found


def tell_a_little(signals: Signals) -> None:
    signals.tell("shard_claimed", shard="orders:v1:all", epoch=1)
    signals.tell("batch_committed", shard="orders:v1:all", events=3, seconds=0.02)
    signals.tell("tick", seconds=0.004)
    signals.tell("tick", seconds=99.0)


def test_the_page_has_the_numbers_with_all_their_labels() -> None:
    signals, metrics = started(daemon=Daemon((Agent("orders:v1:all"),)))
    tell_a_little(signals)

    page, kind = metrics.exposition()
    found = samples(page)

    node = ("node", "shop-1")
    assert kind.startswith("text/plain; version=0.0.4")
    assert found["strandline_batches_total"] == {(node, ("shard", "orders:v1:all")): 1}
    assert found["strandline_events_processed_total"] == {(node, ("projection", "orders:v1")): 3}
    assert found["strandline_shard_position"] == {(node, ("shard", "orders:v1:all")): 7}
    assert found["strandline_tick_seconds_count"] == {(node,): 2}
    assert found["strandline_tick_seconds_sum"] == {(node,): pytest.approx(99.004)}
    buckets = found["strandline_tick_seconds_bucket"]
    assert buckets[(("le", "0.0025"), node)] == 0
    assert buckets[(("le", "0.005"), node)] == 1
    assert buckets[(("le", "5.0"), node)] == 1
    assert buckets[(("le", "+Inf"), node)] == 2
    (build,) = found["strandline_build_info"]
    assert {name for name, _ in build} == {"node", "version", "python"}


def test_the_same_page_is_told_as_openmetrics_to_whoever_asks_for_it() -> None:
    signals, metrics = started()
    tell_a_little(signals)

    page, kind = metrics.exposition(OPENMETRICS)

    assert kind.startswith("application/openmetrics-text; version=1.0.0")
    assert page.endswith(b"# EOF\n")
    mine = {
        name: found
        for name, found in samples(page, parse_openmetrics).items()
        if name.startswith("strandline_")
    }
    plain = samples(metrics.exposition()[0])
    assert mine == {name: plain[name] for name in mine}
    assert len(mine) > 20


def test_every_family_is_of_the_kind_the_catalogue_says() -> None:
    signals, metrics = started(daemon=Daemon((Agent("orders:v1:all"),)))
    tell_a_little(signals)

    kinds = {
        family.name: family.type
        for family in parse(metrics.exposition()[0].decode())
        if family.name.startswith("strandline_")
    }

    told = {one.name.removesuffix("_total"): one.kind for one in CATALOGUE.values()}
    assert kinds.items() <= told.items()
    assert "counter" in kinds.values()


def test_promtool_finds_nothing_to_blame() -> None:
    tool = shutil.which("promtool")
    if tool is None:
        assert not os.environ.get("CI"), "promtool is missing: apt-get install prometheus"
        pytest.skip("promtool is missing")
    signals, metrics = started(daemon=Daemon((Agent("orders:v1:all"),)))
    tell_a_little(signals)
    page = metrics.exposition()[0] + _each_gauge(page=metrics.exposition()[0])

    done = subprocess.run(
        [tool, "check", "metrics"], input=page, capture_output=True, check=False, timeout=30
    )

    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def _each_gauge(page: bytes) -> bytes:
    """A family for each metric that is not on *page*, so that all names and helps are looked at."""
    lines = []
    for one in CATALOGUE.values():
        if f"# TYPE {one.name} ".encode() not in page and one.kind != "histogram":
            labels = ",".join(f'{name}="x"' for name in ("node", *one.attributes))
            lines += [f"# HELP {one.name} {one.meaning}", f"# TYPE {one.name} {one.kind}"]
            lines += [f"{one.name}{{{labels}}} 1"]
    return "\n".join([*lines, ""]).encode()


def test_a_value_may_hold_any_text() -> None:
    signals, metrics = started()
    hard = 'quote" back\\slash\nline é 漢 {a="b"}'
    signals.tell("jobs_enqueued", queue=hard, count=2)

    for accept, parser in (("", parse), (OPENMETRICS, parse_openmetrics)):
        found = samples(metrics.exposition(accept)[0], parser)
        assert found["strandline_jobs_enqueued_total"] == {
            (("node", "shop-1"), ("queue", hard)): 2,
        }


def test_an_unknown_accept_gets_plain_text() -> None:
    _, metrics = started()

    for accept in ("", "*/*", "text/html", "application/json;q=x", "ä,,;;="):
        assert metrics.exposition(accept)[1].startswith("text/plain")


def test_numbers_of_the_process_are_there_and_the_programs_own_registry_is_left_alone() -> None:
    _, metrics = started()
    before = prometheus_client.generate_latest()

    page = samples(metrics.exposition()[0])

    assert page["process_start_time_seconds"][()] > 0
    assert b"strandline" not in before + prometheus_client.generate_latest()


def test_the_page_can_be_read_while_everything_changes() -> None:
    """The ops port reads in a thread of its own, while the loop claims shards and commits."""
    agents: dict[str, Agent] = {"a": Agent("a:v1:all")}
    signals = Signals()
    metrics = Metrics(
        signals,
        sources=lambda: {"node": "n", "daemon": Daemon(tuple(map(_same, agents.values())))},
    )
    metrics.start()
    over = threading.Event()
    seen: list[Samples] = []

    def read() -> None:
        while not over.is_set() or not seen:
            seen.append(samples(metrics.exposition()[0]))

    readers = [threading.Thread(target=read) for _ in range(2)]
    for one in readers:
        one.start()
    for number in range(3_000):
        agents[f"{number}"] = Agent(f"p{number}:v1:all")
        if number > 50:
            del agents[f"{number - 50}"]
        signals.tell("batch_committed", shard="orders:v1:all", events=1, seconds=0.001)
    over.set()
    for one in readers:
        one.join(timeout=30)

    last = samples(metrics.exposition()[0])
    assert last["strandline_batches_total"] == {(("node", "n"), ("shard", "orders:v1:all")): 3_000}
    assert seen


def _same(agent: Agent) -> Agent:
    return agent


def test_a_picture_that_changed_under_the_hands_is_taken_again() -> None:
    tries = iter((None, RuntimeError("changed"), RuntimeError("changed")))  # the first: start

    def now() -> dict[str, Any]:
        error = next(tries, None)
        if error is not None:
            raise error
        return {"node": "n", "daemon": Daemon((Agent("a:v1:all"),))}

    metrics = Metrics(Signals(), sources=now)
    metrics.start()

    assert metrics.readings("strandline_shard_position")


def test_one_picture_serves_one_page() -> None:
    looks = 0

    def now() -> dict[str, Any]:
        nonlocal looks
        looks += 1
        return {"node": "n", "daemon": Daemon((Agent("a:v1:all", position=looks),))}

    metrics = Metrics(Signals(), sources=now)
    metrics.start()
    before = looks

    pages = [samples(metrics.exposition()[0]) for _ in range(3)]

    assert looks == before + 3
    shown = [next(iter(page["strandline_shard_position"].values())) for page in pages]
    assert shown == [before + 1, before + 2, before + 3]


def test_a_gauge_with_too_many_series_shows_the_first_and_says_so() -> None:
    signals = Signals()
    daemon = Daemon(tuple(Agent(f"p:v1:{number}/40") for number in range(40)))
    metrics = Metrics(
        signals, sources=lambda: {"daemon": daemon}, settings=Settings(series_limit=10)
    )
    metrics.start()

    page = samples(metrics.exposition()[0])

    assert len(page["strandline_shard_position"]) == 10
    dropped = page["strandline_series_dropped_total"]
    assert dropped[(("metric", "strandline_shard_position"), ("node", ""))] == 30


def test_with_metrics_off_nothing_is_heard_and_only_the_process_is_shown() -> None:
    signals = Signals()
    metrics = Metrics(
        signals,
        sources=lambda: {"daemon": Daemon((Agent("a:v1:all"),))},
        settings=Settings(metrics=False),
    )
    metrics.start()

    tell_a_little(signals)

    assert signals.listeners == []
    assert not any(name.startswith("strandline") for name in samples(metrics.exposition()[0]))
    assert "process_cpu_seconds_total" in samples(metrics.exposition()[0])


def test_counters_are_still_told_after_the_end_and_gauges_are_not() -> None:
    signals, metrics = started(daemon=Daemon((Agent("orders:v1:all"),)))
    tell_a_little(signals)

    metrics.stop()
    tell_a_little(signals)
    page = samples(metrics.exposition()[0])

    assert list(page["strandline_batches_total"].values()) == [1]
    assert "strandline_shard_position" not in page
    metrics.start()
    tell_a_little(signals)
    page = samples(metrics.exposition()[0])
    assert list(page["strandline_batches_total"].values()) == [2]
    assert "strandline_shard_position" in page


def test_one_page_may_show_several_apps() -> None:
    first, second = Signals(), Signals()
    one = Metrics(first, sources=lambda: {"node": "one"})
    other = Metrics(second, sources=lambda: {"node": "two"})
    one.start()
    other.start()
    first.tell("brake", due=1)

    page = samples(exposition([one, other])[0])

    assert page["strandline_brakes_total"] == {(("node", "one"),): 1, (("node", "two"),): 0}
