"""The judge of incidents is judged: it sees what fires, what does not, and what does not clear."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from incidents.promtool import Incident, lengths
from incidents.scrape import read

RULES = """
groups:
  - name: test
    rules:
      - alert: StrandlineDeep
        expr: water_level > 5
        for: 5m
      - alert: StrandlineRain
        expr: increase(drops_total[10m]) > 0
      - alert: StrandlineOld
        expr: water_age_seconds > 600
        for: 1m
      - alert: StrandlineGone
        expr: up{job="strandline"} == 0
        for: 3m
"""
CALM = {"water_level": 1.0, "drops_total": 4.0, "water_age_seconds": 1.0}


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "rules.yml"
    file.write_text(RULES)
    return file


def incident(*phases: Mapping[str, float] | None, grows: tuple[str, ...] = ()) -> Incident:
    """Before, during and after; None is a node that does not answer."""
    made = Incident({}, grows=grows)
    for number, (name, values) in enumerate(
        zip(["before", "during", "during", "after"], [*phases[:2], *phases[1:]], strict=True)
    ):
        made.phases.setdefault(name, []).append(
            read({"a": None if values is None else text(values)}, at=float(number))
        )
    return made


def text(values: Mapping[str, float]) -> str:
    kinds = {name: "counter" if name.endswith("_total") else "gauge" for name in values}
    return "".join(f"# TYPE {name} {kinds[name]}\n{name} {values[name]}\n" for name in values)


def test_what_fires_and_clears_is_accepted(rules: Path, tmp_path: Path) -> None:
    made = incident(CALM, {**CALM, "water_level": 9.0, "drops_total": 5.0}, CALM)
    made.judge("Deep", "Rain", rules=rules, folder=tmp_path)


@pytest.mark.parametrize("expected", [(), ("Deep",), ("Deep", "Old", "Rain")])
def test_more_or_less_than_was_expected_is_refused(
    expected: tuple[str, ...], rules: Path, tmp_path: Path
) -> None:
    made = incident(CALM, {**CALM, "water_level": 9.0, "drops_total": 5.0}, CALM)
    with pytest.raises(AssertionError, match=r"StrandlineRain(?s:.*)water_level"):
        made.judge(*expected, rules=rules, folder=tmp_path)


def test_what_does_not_clear_is_refused(rules: Path, tmp_path: Path) -> None:
    deep = {**CALM, "water_level": 9.0}
    with pytest.raises(AssertionError, match="StrandlineDeep"):
        incident(CALM, deep, deep).judge("Deep", rules=rules, folder=tmp_path)


def test_what_fires_beforehand_is_refused(rules: Path, tmp_path: Path) -> None:
    deep = {**CALM, "water_level": 9.0}
    with pytest.raises(AssertionError, match="StrandlineDeep"):
        incident(deep, deep, CALM).judge("Deep", rules=rules, folder=tmp_path)


def test_an_age_goes_on_growing_while_the_failure_lasts(rules: Path, tmp_path: Path) -> None:
    made = incident(CALM, {**CALM, "water_age_seconds": 3.0}, CALM)
    made.judge(rules=rules, folder=tmp_path)

    made.grows = ("water_age_seconds",)
    made.phases["during"] = [
        read({"a": text({**CALM, "water_age_seconds": age})}, at=age) for age in (2.0, 3.0)
    ]
    made.judge("Old", rules=rules, folder=tmp_path)


def test_a_node_that_does_not_answer_is_down_and_its_series_are_gone(
    rules: Path, tmp_path: Path
) -> None:
    incident(CALM, None, CALM).judge("Gone", rules=rules, folder=tmp_path)


def test_phases_are_held_until_no_rule_remembers_the_one_before(rules: Path) -> None:
    assert lengths(rules) == {"before": 900.0, "during": 1800.0, "after": 1500.0}
