"""Alerts, runbooks and the dashboard name what there is; every alert fires when it should, and only then."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from strandline.telemetry import alerts, grafana
from strandline.telemetry.catalogue import CATALOGUE, LOG_EVENTS, Metric

TESTS = Path(__file__).parents[1] / "alerts"
RUNBOOKS = Path(__file__).parents[2] / "docs/operate/runbooks"
APP = Path(alerts.__file__).parents[1] / "app"
SECTIONS = ["Meaning", "Look", "Cure", "If it comes back"]
SCRAPED = {"job", "cluster", "instance", "node"}  # labels of every series
SUFFIXES = ("_bucket", "_sum", "_count")
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load(alerts.PATH.read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
NAMES = [rule["alert"] for rule in RULES]


# ---- rules


def test_prometheus_accepts_the_rules() -> None:
    done = _promtool("check", "rules", str(alerts.PATH))

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", sorted(one.name for one in TESTS.glob("*.yml")))
def test_alerts_fire_when_they_should_and_clear(file: str) -> None:
    done = _promtool("test", "rules", str(TESTS / file))

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_alert_is_seen_quiet_then_firing_then_quiet(name: str) -> None:
    looks = [look for _, part in _parts() for look in part if _fires(part, name)]
    moments = sorted((_minutes(one["eval_time"]), bool(one["exp_samples"])) for one in looks)

    assert moments, f"no test in tests/alerts expects {name}"
    assert any(fires for _, fires in moments)
    assert not moments[0][1], "it is not seen to be quiet at first"
    assert not moments[-1][1], "it is not seen to clear"


def test_an_alert_that_waits_is_tested_before_its_time_is_up() -> None:
    for rule in RULES:
        wait = _minutes(rule.get("for", "0s"))
        for _, part in _parts():
            if wait >= 1 and _fires(part, rule["alert"]):
                first = min(_minutes(one["eval_time"]) for one in part if one["exp_samples"])
                quiet = [_minutes(one["eval_time"]) for one in part if not one["exp_samples"]]
                assert first > min(quiet) + wait, f"{rule['alert']}: quiet, then at once firing"


def test_rules_name_metrics_and_labels_of_the_catalogue() -> None:
    for rule in RULES:
        _check(rule["expr"], rule["alert"])


def test_texts_name_labels_that_the_alert_has() -> None:
    for rule in RULES:
        kept = set(re.findall(r"\w+", " ".join(re.findall(r"by \(([^)]*)\)", rule["expr"]))))
        used = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        if rule["alert"] != "StrandlineNodeDown":  # keeps all labels of `up`
            assert used <= kept, f"{rule['alert']} has no label {used - kept}"


def test_rules_work_with_several_clusters_in_one_prometheus() -> None:
    for rule in RULES:
        assert not re.search(r"\b(?:sum|max|min|count) ?\(", rule["expr"]), rule["alert"]
        for aggregated in re.findall(r"\b(?:sum|max|min) by \(([^)]*)\)", rule["expr"]):
            assert aggregated.startswith("job, cluster"), rule["alert"]


def test_every_alert_says_what_a_person_needs() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for rule in RULES:
        told = rule["annotations"]
        assert rule["alert"].startswith(alerts.PREFIX)
        assert set(rule["labels"]) == {"severity"}
        assert rule["labels"]["severity"] in ("page", "ticket", "info")
        assert set(told) == {"summary", "description", "command", "runbook_url"}
        assert all(told.values())
        assert len(told["summary"]) < 100
        assert told["command"].startswith("strandline ")


def test_the_texts_of_alerts_come_out_as_sentences(tmp_path: Path) -> None:
    shown = _rendered(tmp_path)

    assert set(shown) == set(NAMES)
    for name, text in shown.items():
        assert not re.search(r"<no value>|<error|%!|\{\{|\d\.\d{4}", text), f"{name}: {text}"


def test_what_the_package_reads_of_the_rules_is_what_stands_there() -> None:
    read = [(a.name, a.severity, a.pending, a.summary, a.command) for a in alerts.alerts()]

    assert read == [
        (
            rule["alert"],
            rule["labels"]["severity"],
            rule.get("for", ""),
            rule["annotations"]["summary"],
            rule["annotations"]["command"],
        )
        for rule in RULES
    ]


def test_runbooks_are_linked_wherever_they_are_kept() -> None:
    moved = yaml.safe_load(alerts.text(runbooks="https://wiki.example/books/"))
    links = [rule["annotations"]["runbook_url"] for g in moved["groups"] for rule in g["rules"]]

    assert links == [f"https://wiki.example/books/{one.runbook}.md" for one in alerts.alerts()]
    assert alerts.RUNBOOKS not in alerts.text(runbooks="https://wiki.example")


# ---- runbooks


@pytest.mark.parametrize("stem", [one.runbook for one in alerts.alerts()])
def test_every_alert_has_a_runbook(stem: str) -> None:
    text = (RUNBOOKS / f"{stem}.md").read_text(encoding="utf-8")

    urgency = next(one.severity for one in alerts.alerts() if one.runbook == stem)
    assert f"*{urgency}*" in text.split("## ")[0], "the page tells another urgency than the rule"
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    for section in SECTIONS:
        body = text.split(f"## {section}\n")[1].split("\n## ")[0]
        assert len(body.split()) > 5, f"{stem}: nothing stands below {section}"


def test_every_runbook_belongs_to_an_alert() -> None:
    known = {one.runbook for one in alerts.alerts()}

    assert {one.stem for one in RUNBOOKS.glob("*.md")} - known == set()


def test_the_command_of_an_alert_can_be_typed_and_stands_in_its_runbook() -> None:
    for one in alerts.alerts():
        text = (RUNBOOKS / f"{one.runbook}.md").read_text(encoding="utf-8")
        assert one.command in text, f"{one.runbook}.md does not tell `{one.command}`"
        _parse(one.command)


@pytest.mark.parametrize("page", ["alerts", *(f"runbooks/{a.runbook}" for a in alerts.alerts())])
def test_commands_of_runbooks_can_be_typed(page: str) -> None:
    text = (RUNBOOKS.parent / f"{page}.md").read_text(encoding="utf-8")

    for line in _commands(text):
        _parse(line)


@pytest.mark.parametrize("stem", [one.runbook for one in alerts.alerts()])
def test_runbooks_name_what_there_is(stem: str) -> None:
    text = (RUNBOOKS / f"{stem}.md").read_text(encoding="utf-8")

    for query in re.findall(r"`([^`]*strandline_\w+[^`]*)`", text):
        _check(query, stem)
    for event in re.findall(r"log event\s+`(\w+)`", text):
        assert event in LOG_EVENTS
    for check in re.findall(r"check `(\w+)`", text):
        assert f'"{check}"' in _health(), f"{stem}: there is no health check {check}"
    for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", text):
        assert (RUNBOOKS / link).is_file(), f"{stem} links to {link}"


def test_a_command_that_is_not_there_would_be_found() -> None:
    for line in ("strandline nodes evaporate", "strandline nodes list --colour", "strandline nix"):
        with pytest.raises(AssertionError, match=re.escape(line)):
            _parse(line)


# ---- dashboard


def test_every_metric_is_on_the_dashboard() -> None:
    shown = {
        _metric(name).name
        for _, panel in _panels()
        for target in panel["targets"]
        for name in re.findall(r"strandline_\w+", target["expr"])
    }

    assert shown == set(CATALOGUE)


def test_queries_of_the_dashboard_name_metrics_and_labels_of_the_catalogue() -> None:
    for expression in _queries():
        _check(expression, expression)


def test_prometheus_accepts_the_queries_of_the_dashboard(tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard:query:{number}", "expr": _filled(expression)}
        for number, expression in enumerate(_queries())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))

    done = _promtool("check", "rules", str(file))

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_is_what_grafana_imports() -> None:
    made = json.loads(grafana.text(title="Shop"))
    panels = [panel for _, panel in _panels(made)]
    rows = [one for one in made["panels"] if one["type"] == "row"]

    assert made["title"] == "Shop"
    ids = [one["id"] for one in [*panels, *rows]]
    assert len(set(ids)) == len(ids)
    for panel in panels:
        assert {"type", "title", "datasource", "gridPos", "targets", "fieldConfig"} <= set(panel)
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        letters = [one["refId"] for one in panel["targets"]]
        assert letters and len(set(letters)) == len(letters)
    assert [one["name"] for one in made["templating"]["list"]] == [
        *("datasource", "job", "node", "projection")
    ]


def test_panels_of_a_row_do_not_lie_on_each_other() -> None:
    taken: dict[tuple[str, int, int], str] = {}
    for row, panel in _panels():
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= grafana.COLUMNS
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert taken.setdefault((row, x, y), panel["title"]) == panel["title"]


# ---- what they need


@cache
def _tool() -> str:
    found = shutil.which("promtool")
    if found is None and not os.environ.get("CI"):
        pytest.skip("promtool is not installed (Debian package prometheus)")
    assert found, "promtool is not installed (Debian package prometheus)"
    return found


def _promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [_tool(), *words], capture_output=True, text=True, check=False, timeout=100
    )


@cache
def _health() -> str:
    return "".join(one.read_text(encoding="utf-8") for one in APP.glob("*.py"))


@cache
def _parts() -> list[tuple[str, list[dict[str, Any]]]]:
    """Looks of all files that go together: those at one job."""
    found: dict[str, list[dict[str, Any]]] = {}
    for file in sorted(TESTS.glob("*.yml")):
        for test in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"]:
            for look in test["promql_expr_test"]:
                found.setdefault(look["expr"], []).append(look)
    return list(found.items())


def _fires(part: list[dict[str, Any]], alert: str) -> bool:
    return any(
        f'alertname="{alert}"' in sample["labels"]
        for look in part
        for sample in look["exp_samples"]
    )


def _minutes(text: str) -> float:
    return float(text[:-1]) * {"s": 1 / 60, "m": 1.0, "h": 60.0}[text[-1]]


def _metric(name: str) -> Metric:
    stem = next((name.removesuffix(one) for one in SUFFIXES if name.endswith(one)), name)
    found = CATALOGUE.get(name) or CATALOGUE.get(stem)
    assert found, f"{name} is not in the catalogue"
    return found


def _check(expression: str, where: str) -> None:
    """Every metric, label and label value in *expression* is known."""
    metrics = []
    for name, selector in re.findall(r"\b(strandline_\w+)(?:\{([^}]*)\})?", expression):
        metric = _metric(name)
        metrics.append(metric)
        for label, values in re.findall(r'(\w+)!?=~?"([^"]*)"', selector):
            assert label in {*SCRAPED, *metric.attributes}, f"{where}: {name} has no label {label}"
            known = () if label in SCRAPED else metric.values_of(label)
            if known and "$" not in values:
                assert set(values.split("|")) <= set(known), f"{where}: {label} is never {values}"
    known = {*SCRAPED, "le", *(one for metric in metrics for one in metric.attributes)}
    for labels in re.findall(r"\b(?:by|on) \(([^)]*)\)", expression):
        used = set(re.findall(r"\w+", labels))
        assert used <= known, f"{where}: no metric has the labels {used - known}"


def _rendered(folder: Path) -> dict[str, str]:
    """What promtool says instead of the nothing that is expected: all texts as people see them."""
    given = yaml.safe_load(TESTS.joinpath("nodes.yml").read_text(encoding="utf-8"))
    series = [
        one
        for file in sorted(TESTS.glob("*.yml"))
        for one in yaml.safe_load(file.read_text(encoding="utf-8"))["tests"][0]["input_series"]
    ]
    looks = [{"eval_time": _when(name), "alertname": name, "exp_alerts": []} for name in NAMES]
    test = {
        **given,
        "rule_files": [str(alerts.PATH)],
        "tests": [{"interval": "30s", "input_series": series, "alert_rule_test": looks}],
    }
    file = folder / "texts.yml"
    file.write_text(json.dumps(test), encoding="utf-8")
    told = _promtool("test", "rules", str(file)).stderr
    return {
        name: text
        for name, text in re.findall(
            r"alertname: (\w+), time: .*?got:(.*?)(?=\n    alertname|\Z)", told, re.DOTALL
        )
        if "Annotations" in text
    }


def _when(alert: str) -> str:
    """A moment at which *alert* is expected to fire."""
    return next(
        str(look["eval_time"]) for _, part in _parts() for look in part if _fires([look], alert)
    )


def _panels(made: dict[str, Any] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    for one in (made or grafana.dashboard())["panels"]:
        if one["type"] == "row":
            yield from ((one["title"], inner) for inner in one["panels"])
        else:
            yield "", one


def _queries() -> list[str]:
    made = grafana.dashboard()
    found = [target["expr"] for _, panel in _panels(made) for target in panel["targets"]]
    asked = [one["query"]["query"] for one in made["templating"]["list"] if "node" in one["name"]]
    asked = [re.sub(r"label_values\((.*), \w+\)", r"\1", one) for one in asked]
    return [*found, *asked, *(one["expr"] for one in made["annotations"]["list"])]


def _filled(expression: str) -> str:
    expression = expression.replace("$__rate_interval", "1m")
    return re.sub(r"\$(job|node|projection)", ".*", expression)


def _commands(text: str) -> list[str]:
    """What of a page is typed: lines of its ``sh`` blocks, and code in its sentences."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = [*"".join(blocks).splitlines(), *re.findall(r"`([^`]+)`", rest)]
    return [one for one in map(str.strip, lines) if one.startswith("strandline ")]


@cache
def _tree() -> Any:
    import typer

    from strandline.cli.main import app

    return typer.main.get_command(app)


def _parse(line: str) -> None:
    """Parse a command line with the real command tree, without running it."""
    words = shlex.split(re.sub(r"\b(PID|ID)\b", "4711", line), comments=True)[1:]
    command = _tree()
    while inner := getattr(command, "commands", None):
        assert words and words[0] in inner, f"{line}: there is no such command"
        command = inner[words.pop(0)]
    try:
        command.make_context(command.name, words)
    except Exception as error:  # of click, which typer may bring under a name of its own
        raise AssertionError(f"{line}: {error}") from error
