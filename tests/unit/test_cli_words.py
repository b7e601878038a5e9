"""How the commands write: texts, numbers, settings, places."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from strandline import errors
from strandline.cli import output, reference
from strandline.cli.command import exit_code
from strandline.cli.config import hidden
from strandline.cli.locate import find_app
from strandline.cli.main import app
from strandline.errors import SetupError

DOCS = Path(__file__).parents[2] / "docs"


def run(*words: str, **environment: str | None) -> tuple[int, str, str]:
    environment = {"STRANDLINE_DATABASE_URL": None, "STRANDLINE_APP": None, **environment}
    done = CliRunner().invoke(app, list(words), env=environment)
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (59, "59 s"),
        (250, "4 min 10 s"),
        (7260, "2 h 1 min"),
        (183600, "2 d 3 h"),
        (-3, "0.0 s"),
    ],
)
def test_a_duration_has_two_units_at_the_most(seconds: float, text: str) -> None:
    assert output.duration(seconds) == text


def test_text_from_the_database_cannot_steer_the_terminal() -> None:
    assert output.plain("a\x1b[31mb\nc\u202ed") == "a\\u001b[31mb\\u000ac\\u202ed"


def test_times_are_written_in_utc() -> None:
    assert output.moment(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)) == "2026-01-02 03:04:05"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("postgresql://me:secret@h/x", "postgresql://me:***@h/x"),
        ("postgresql://me:a:b@h,i/x", "postgresql://me:***@h,i/x"),
        ("postgresql://h/x?password=secret&a=b", "postgresql://h/x?password=***&a=b"),
        ("postgresql://me@h/x", "postgresql://me@h/x"),
        ("host=h password=secret", "host=h password=***"),
        (5, 5),
    ],
)
def test_passwords_are_hidden(value: object, shown: object) -> None:
    assert hidden(value) == shown


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.UnknownProjection("x"), 2),
        (errors.InvalidStream("x"), 2),
        (errors.ServerNotStarted("x"), 3),
        (errors.DocumentNotFound("x"), 4),
        (errors.DuplicateEvent("x"), 5),
        (errors.OwnershipLost("x"), 5),
        (errors.UnknownEventType("x"), 1),
        (ValueError("x"), 1),
    ],
)
def test_the_exit_code_tells_the_kind_of_error(error: Exception, code: int) -> None:
    assert exit_code(error) == code


def test_config_tells_where_each_value_comes_from(tmp_path: Path) -> None:
    toml = tmp_path / "settings.toml"
    toml.write_text("[tool.strandline]\nstop_timeout = 7\n")

    code, out, _ = run(
        *("config", "--toml", str(toml), "--schema", "mine", "--json"),
        STRANDLINE_DATABASE_URL="postgresql://me:secret@h/x",
    )

    rows = {row["name"]: row for row in json.loads(out)}
    assert code == 0
    assert rows["schema"] | {"reason": ""} == {
        "name": "schema",
        "value": "mine",
        "source": "argument",
        "default": "strandline",
        "reason": "",
    }
    assert rows["database_url"]["source"] == "environment"
    assert "secret" not in out
    assert (rows["stop_timeout"]["value"], rows["stop_timeout"]["source"]) == (7, f"TOML ({toml})")
    assert rows["page_events"]["source"] == "default"
    assert all(row["reason"] for row in rows.values())


def test_a_wrong_value_in_the_environment_is_an_error_of_usage() -> None:
    code, out, err = run("config", STRANDLINE_PAGE_EVENTS="many")

    assert (code, out) == (2, "")
    assert err == "error: setting page_events='many': not a int\n"


def test_looking_never_makes_a_server(tmp_path: Path) -> None:
    code, out, err = run("events", "list", STRANDLINE_EMBEDDED_DIR=str(tmp_path / "none"))

    assert (code, out) == (2, "")
    assert "no database" in err
    assert "strandline up" in err
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("nowhere.at_all:app", "no module 'nowhere'"),
        ("shops:missing", "it has shops:first, shops:second"),
        ("shops", "does not say which App"),
        ("shops:number", "is a builtins.int, not an App"),
        ("shops:App", "is the class App, not an App"),
        ("empty:app", "has no App at its top level"),
        ("broken:app", "ZeroDivisionError: division by zero"),
        ("broken:app", "broken.py:1"),
        ("needs:app", "No module named 'not_installed_here'"),
        ("shops.py:first", "write the module, e.g. shops:first"),
        ("some thing", "is not MODULE:APP"),
    ],
)
def test_a_wrong_app_is_explained(
    reference: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "shops.py").write_text(
        "from strandline import App\nfirst, second, number = App('a'), App('b'), 5\n"
    )
    (tmp_path / "empty.py").write_text("")
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "needs.py").write_text("import not_installed_here\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("shops", "empty", "broken", "needs"):
        monkeypatch.delitem(sys.modules, name, raising=False)

    with pytest.raises(SetupError) as caught:
        find_app(reference)

    assert said in str(caught.value)


def test_a_module_with_one_app_needs_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "one_shop.py").write_text("import strandline as sl\nshop = sl.App('one')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    assert find_app("one_shop").name == "one"


def test_the_reference_is_made_from_the_commands() -> None:
    page = (DOCS / "reference" / "cli.md").read_text(encoding="utf-8")

    assert page == reference.markdown(), "run `python -m strandline.cli.reference > ...cli.md`"


def test_help_is_there_without_a_database() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "strandline", "--help"], capture_output=True, text=True, check=True
    )

    for name in ("node", "up", "migrate", "streams", "events", "projections", "gaps", "doctor"):
        assert name in done.stdout


def test_the_version_is_told() -> None:
    code, out, _ = run("--version")

    assert (code, out.count(".")) == (0, 2)


def test_completion_is_offered() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "strandline"],
        env={
            "_STRANDLINE_COMPLETE": "complete_bash",
            "COMP_WORDS": "strandline pro",
            "COMP_CWORD": "1",
            "PATH": "/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.stdout.split() == ["projections"]
