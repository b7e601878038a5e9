"""Where settings come from, and which values are refused."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from strandline.errors import InvalidSetting
from strandline.settings import Settings, load


def test_arguments_win_over_environment_and_that_over_toml(tmp_path: Path) -> None:
    toml = tmp_path / "pyproject.toml"
    toml.write_text("[tool.strandline]\npage_events = 1\nschema = 't'\nwork_connections = 3\n")
    environment = {"STRANDLINE_PAGE_EVENTS": "2", "STRANDLINE_SCHEMA": "e", "OTHER": "x"}

    found = load({"page_events": 4}, environment=environment, toml=toml)

    assert (found.page_events, found.schema, found.work_connections) == (4, "e", 3)
    assert found.control_connections == Settings().control_connections


def test_an_argument_of_none_leaves_the_choice_to_the_others() -> None:
    assert load({"schema": None}, environment={"STRANDLINE_SCHEMA": "e"}).schema == "e"


def test_a_file_of_its_own_may_have_the_table_without_tool(tmp_path: Path) -> None:
    toml = tmp_path / "strandline.toml"
    toml.write_text("[strandline]\nfailure_pause = 1\n")

    found = load(environment={}, toml=toml)

    assert found.failure_pause == 1.0
    assert isinstance(found.failure_pause, float)
    assert load(environment={}, toml=tmp_path / "missing.toml") == Settings()


@pytest.mark.parametrize(
    ("text", "value"), [("on", True), ("0", False), ("YES", True), ("no", False)]
)
def test_flags_are_words_in_the_environment(text: str, value: bool) -> None:
    found = load(environment={"STRANDLINE_MIGRATE_AT_START": text})

    assert found.migrate_at_start is value


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("page_events", 0, "must be at least 1"),
        ("page_events", "many", "not a int"),
        ("failure_pause", -1, "must be at least 0"),
        ("migrate_at_start", "perhaps", "not a bool"),
        ("schema", "", "1 to 48 bytes"),
        ("schema", "ü" * 25, "1 to 48 bytes"),
        ("schema", 5, "not a text"),
        ("pages", 1, "unknown; known are"),
        ("stop_timeout", "nan", "must be at least"),
    ],
)
def test_a_value_that_cannot_work_is_named_with_the_reason(
    name: str, value: Any, reason: str
) -> None:
    with pytest.raises(InvalidSetting, match=f"setting {name}=.*{reason}") as caught:
        load({name: value}, environment={})

    assert caught.value.name == name


def test_a_toml_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    toml = tmp_path / "broken.toml"
    toml.write_text("[tool.strandline\n")

    with pytest.raises(InvalidSetting, match=r"broken\.toml"):
        load(environment={}, toml=toml)


def test_an_unknown_name_in_toml_is_refused(tmp_path: Path) -> None:
    toml = tmp_path / "pyproject.toml"
    toml.write_text("[tool.strandline]\npage_event = 1\n")

    with pytest.raises(InvalidSetting, match="page_event=1: unknown"):
        load(environment={}, toml=toml)


def test_every_setting_has_a_reason() -> None:
    for one in fields(Settings):
        assert len(one.metadata["reason"]) > 10, one.name
