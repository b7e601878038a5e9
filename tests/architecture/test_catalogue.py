"""Every metric that is told is in the catalogue, and every one of the catalogue is told."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

import strandline
from strandline.cluster.shutdown_report import Result, Status
from strandline.daemon.letters import PARKED, SKIPPED
from strandline.postgres.blocking import NAME
from strandline.postgres.pools import Pools
from strandline.projections.failure_policy import Category
from strandline.settings import Settings
from strandline.telemetry.catalogue import ATTRIBUTES, CATALOGUE, GROUPS, Metric
from strandline.telemetry.metrics import LOCAL
from strandline.telemetry.readings import READERS
from strandline.telemetry.rules import BEGIN_AT, RULES, Rule

SOURCE = Path(strandline.__file__).parent
TELEMETRY = SOURCE / "telemetry"
UNITS = {"s": "seconds", "By": "bytes"}
NOT_FOR_LABELS = {"stream", "event", "job", "tenant", "id", "position", "le", "quantile", "job_id"}
METRICS = sorted(CATALOGUE.values(), key=lambda one: one.name)


def rules() -> Iterator[tuple[str, Rule]]:
    for notice, several in RULES.items():
        for rule in several:
            yield notice, rule


def strings(*, outside: set[Path]) -> set[str]:
    """Every string that stands in the source."""
    return {
        node.value
        for path in SOURCE.rglob("*.py")
        if path not in outside
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def test_every_metric_has_one_source_and_every_source_a_metric() -> None:
    counted = {rule.metric for _, rule in rules()}

    assert counted | set(READERS) | LOCAL == set(CATALOGUE)
    assert not counted & set(READERS)
    assert not LOCAL & (counted | set(READERS))
    assert {name for names in BEGIN_AT.values() for name in names} <= counted


@pytest.mark.parametrize("metric", METRICS, ids=lambda one: one.name)
def test_a_metric_is_fed_as_its_kind_is(metric: Metric) -> None:
    counted = metric.name in {rule.metric for _, rule in rules()}

    if metric.kind == "gauge":
        assert not counted, "a gauge is read when somebody collects"
    if metric.kind == "histogram":
        assert counted, "a histogram is told"


def test_every_notice_that_is_counted_is_told_somewhere() -> None:
    told = strings(outside={TELEMETRY / "rules.py", TELEMETRY / "metrics.py"})

    assert {notice for notice in (*RULES, *BEGIN_AT) if notice not in told} == set()


def test_no_other_name_of_a_metric_stands_in_the_source() -> None:
    """A name that is written down and misspelt would never be told, and never be missed."""
    families = tuple({one.name.split("_")[1] for one in METRICS})
    found = {
        one
        for text in strings(outside=set())
        for one in re.findall(r"\bstrandline_[a-z_]+\b", text)
        if one.removeprefix("strandline_").startswith(families)
    }
    shown = {
        one + suffix
        for one in CATALOGUE
        for suffix in ("", "_bucket", "_count", "_sum")
        if not suffix or CATALOGUE[one].kind == "histogram"
    }

    assert {one for one in found if one not in shown and not one.endswith("_")} <= NO_METRICS


NO_METRICS = {
    "strandline_app",  # variables of a context
    "strandline_node",
    "strandline_loops",
}


@pytest.mark.parametrize("metric", METRICS, ids=lambda one: one.name)
def test_a_name_says_kind_and_unit_as_prometheus_wants_it(metric: Metric) -> None:
    name = metric.name.removesuffix("_total")

    assert re.fullmatch(r"strandline_[a-z]+(_[a-z]+)*", metric.name)
    assert metric.name.endswith("_total") == (metric.kind == "counter")
    assert not name.endswith(("_count", "_sum", "_bucket", "_created", "_gauge", "_counter"))
    for unit, word in UNITS.items():
        if unit == metric.unit:
            assert word in name.split("_"), f"{metric.name} is in {word}"
        else:
            assert word not in name.split("_"), f"{metric.name} is not in {word}"
    assert bool(metric.bounds) == (metric.kind == "histogram")
    assert list(metric.bounds) == sorted(set(metric.bounds))
    assert metric.meaning
    assert not metric.meaning.endswith(".")


@pytest.mark.parametrize("metric", METRICS, ids=lambda one: one.name)
def test_every_label_is_an_attribute_and_none_has_a_value_for_each_stream_or_job(
    metric: Metric,
) -> None:
    assert "node" not in metric.attributes, "every series has it"
    assert len(set(metric.attributes)) == len(metric.attributes)
    assert set(metric.attributes) <= set(ATTRIBUTES)
    assert not set(metric.attributes) & NOT_FOR_LABELS
    assert set(metric.values) <= set(metric.attributes)


@pytest.mark.parametrize(
    ("notice", "rule"), list(rules()), ids=lambda one: one if isinstance(one, str) else one.metric
)
def test_a_rule_gives_only_values_that_its_metric_knows(notice: str, rule: Rule) -> None:
    metric = CATALOGUE[rule.metric]

    for label, value in (rule.fixed or {}).items():
        assert label in metric.attributes, notice
        assert not metric.values_of(label) or value in metric.values_of(label), notice


def test_attributes_have_one_name_and_one_key_each() -> None:
    keys = [one.key for one in ATTRIBUTES.values()]

    assert sorted({one for one in keys if keys.count(one) > 1}) == []
    for name, one in ATTRIBUTES.items():
        assert one.name == name
        assert re.fullmatch(r"[a-z][a-z_]*", name), "a label of Prometheus and a field of a record"
        assert re.fullmatch(r"[a-z]+([._][a-z]+)*", one.key), one.key
        assert one.meaning, name
        assert not one.values or one.example in one.values, name


def test_what_a_label_can_be_is_what_the_code_tells() -> None:
    def known(metric: str, label: str) -> set[str]:
        return set(CATALOGUE[f"strandline_{metric}"].values_of(label))

    letters = {one.value for one in Category} - {Category.DATABASE, Category.OWNERSHIP}
    pools = Pools.to("postgresql:///x", Settings())
    assert known("shutdowns_total", "result") == set(get_args(Result))
    assert known("shutdown_step_seconds", "status") == set(get_args(Status)) - {"running"}
    assert known("letters_written_total", "status") == {PARKED, SKIPPED}
    assert known("letters_written_total", "category") == letters | {"waiting"}
    assert known("skipped_events_total", "class") == letters | {"forced_gap"}
    assert known("pool_connections", "pool") == {pools.work.name, pools.control.name, NAME}


def test_every_metric_stands_in_one_group() -> None:
    grouped = [one.name for group in GROUPS.values() for one in group]

    assert sorted(grouped) == sorted(CATALOGUE)
