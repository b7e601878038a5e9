"""The history that gitledger reads, folded in plain Python, is what git says."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import unquote_to_bytes

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parents[1])]  # examples/ is not installed

from git_repository import TEN, Repo, text  # noqa: E402
from plain_ledger import differences, fold  # noqa: E402

from examples.gitledger import git, history, truth  # noqa: E402
from examples.gitledger.history import Kind  # noqa: E402

LATIN = b"caf\xe9 \xff.txt"
ODD = [
    b"with space",
    b" lead and trail ",
    b"tab\there",
    b"new\nline",
    b"\nfirst",
    b":100644 colon",
    b"1\t2\tnumbers",
    b"\x01mark",
    b'quote"back\\slash',
    b"percent%25 %~2",
    b"-dash",
    "ünïcode/文件 📦.md".encode(),
    LATIN,
    b"\xed\xa0\x80surrogate",
    b"%s" % (b"long" * 60),
]


@pytest.fixture
def repo(tmp_path: Path) -> Repo:
    return Repo(tmp_path / "repo")


def kinds(repo: Repo) -> list[list[tuple[str, str, str]]]:
    """The changes of each commit as (kind, stream, path)."""
    return [
        [(str(change.kind), change.stream, change.path) for change in commit.changes]
        for commit in history.changes(repo.path)
    ]


# --- names


@pytest.mark.parametrize("name", ODD)
def test_a_name_is_told_in_text_that_can_be_turned_back(name: bytes) -> None:
    told = git.readable(name)

    assert unquote_to_bytes(told) == name
    assert told.encode("utf-8").decode("utf-8") == told


def test_two_names_are_never_told_alike() -> None:
    assert git.readable(b"\xff") == "%FF"
    assert git.readable(b"%FF") == "%25FF"


def test_odd_file_names_are_added_modified_moved_and_deleted(repo: Repo) -> None:
    first = repo.commit({name: text(number) for number, name in enumerate(ODD)})
    second = repo.commit({name: TEN + name for name in ODD}, first)
    third = repo.commit({b"deep/er/" + name: TEN + name for name in ODD}, second)
    assert differences(repo.path) == []
    repo.commit({LATIN: b"x"}, third)

    assert differences(repo.path) == []
    assert {len(changes) for changes in fold(history.changes(repo.path)).streams.values()} == {4, 5}


def test_a_long_path_has_a_stream_name_that_fits_an_index(repo: Repo) -> None:
    long = b"/".join([b"d\xc3\xa9" * 60] * 5)
    first = repo.commit({long + b"/a": TEN, long + b"/b": TEN * 2})
    repo.commit({long + b"/a": TEN * 2, b"short": TEN * 2}, first)

    streams = fold(history.changes(repo.path)).streams
    assert len(streams) == 2
    assert all(len(stream.encode()) <= history.MAX_KEY_BYTES for stream in streams)
    assert differences(repo.path) == []


def test_odd_authors_are_counted_as_git_counts_them(repo: Repo) -> None:
    authors = [
        "Zoë 文 <zoe@example.org>".encode(),
        b"Latin \xe9 <latin@example.org>",
        b"100% <per%cent@example.org>",
        b" <nameless@example.org>",
        b"No Mail <>",
        b'Quote "Q" O\'Neil <q@example.org>',
        b"tab\there <tab@example.org>",
        b"Zo\xeb <zoe2@example.org>",
        b"  spaces   inside  <s@example.org>",
        b"zoE <ZOE@example.org>",
        b"zoe <zoe@example.org>",
    ]
    before: list[str] = []
    for number, author in enumerate(authors):
        extra = b"encoding ISO-8859-1\n" if b"zoe2" in author else b""
        before = [repo.commit({b"a": text(number)}, *before, author=author, extra=extra)]

    assert differences(repo.path) == []
    assert "Zoë <zoe2@example.org>" in fold(history.changes(repo.path)).authors


def test_mailmap_unites_authors_as_in_shortlog(repo: Repo) -> None:
    mailmap = (
        b"Ada Lovelace <ada@example.org> <ada@old.example.org>\nAda Lovelace <ada@example.org>\n"
    )
    first = repo.commit({b"a": TEN}, author=b"ada <ada@old.example.org>")
    repo.commit({b".mailmap": mailmap}, first)

    assert differences(repo.path) == []
    assert set(fold(history.changes(repo.path)).authors) == {"Ada Lovelace <ada@example.org>"}


# --- one file's life


def test_a_rename_continues_the_stream_and_a_new_file_there_begins_another(repo: Repo) -> None:
    first = repo.commit({b"a": TEN})
    second = repo.commit({b"b": TEN + b"more\n"}, first)
    third = repo.commit({b"b": TEN, b"a": b"new\n"}, second)
    fourth = repo.commit({b"c": TEN, b"a": b"new\n"}, third)
    fifth = repo.commit({b"c": TEN, b"b": b"new\n"}, fourth)
    sixth = repo.commit({b"c": TEN, b"b": b"new\n", b"a": b"newest\n" * 9}, fifth)
    repo.commit({b"c": TEN, b"a": b"newest\n" * 9}, sixth)

    assert kinds(repo) == [
        [("added", "a", "a")],
        [("renamed", "a", "b")],
        [("modified", "a", "b"), ("added", "a%~2", "a")],
        [("renamed", "a", "c")],
        [("renamed", "a%~2", "b")],
        [("added", "a%~3", "a")],
        [("deleted", "a%~2", "b")],
    ]
    assert differences(repo.path) == []


def test_a_file_added_again_continues_the_stream_of_its_name(repo: Repo) -> None:
    first = repo.commit({b"a": TEN, b"k": b"k"})
    second = repo.commit({b"k": b"k"}, first)
    repo.commit({b"a": b"else\n", b"k": b"k"}, second)

    assert kinds(repo)[1:] == [[("deleted", "a", "a")], [("added", "a", "a")]]
    assert differences(repo.path) == []


def test_a_stream_left_in_a_commit_is_free_in_the_same_commit(repo: Repo) -> None:
    first = repo.commit({b"a": TEN})
    second = repo.commit({b"z": TEN}, first)
    repo.commit({b"a": b"unlike\n"}, second)

    assert kinds(repo)[2] == [("deleted", "a", "z"), ("added", "a", "a")]
    assert differences(repo.path) == []


def test_two_lives_may_end_at_the_same_path(repo: Repo) -> None:
    other = text(*range(50, 70))
    first = repo.commit({b"a": TEN, b"b": other})
    second = repo.commit({b"c": TEN, b"b": other}, first)
    third = repo.commit({b"b": other}, second)
    fourth = repo.commit({b"c": other}, third)
    repo.commit({}, fourth)

    assert kinds(repo)[1:] == [
        [("renamed", "a", "c")],
        [("deleted", "a", "c")],
        [("renamed", "b", "c")],
        [("deleted", "b", "c")],
    ]
    assert differences(repo.path) == []


def test_swapped_files_stay_where_they_are_and_are_modified(repo: Repo) -> None:
    other = text(*range(50, 70))
    first = repo.commit({b"a": TEN, b"b": other})
    repo.commit({b"a": other, b"b": TEN}, first)

    assert kinds(repo)[1] == [("modified", "a", "a"), ("modified", "b", "b")]
    assert differences(repo.path) == []


def test_a_rename_over_an_existing_file_ends_one_life_and_modifies_the_other(repo: Repo) -> None:
    first = repo.commit({b"a": TEN, b"b": text(77)})
    repo.commit({b"b": TEN}, first)

    assert kinds(repo)[1] == [("deleted", "a", "a"), ("modified", "b", "b")]
    assert differences(repo.path) == []


def test_a_copy_begins_a_stream_of_its_own(repo: Repo) -> None:
    first = repo.commit({b"a": TEN})
    second = repo.commit({b"a": TEN, b"b": TEN}, first)
    repo.commit({b"c": TEN, b"d": TEN, b"e": TEN}, second)

    assert kinds(repo)[1] == [("added", "b", "b")]
    assert differences(repo.path) == []


def test_a_file_becomes_a_directory_and_a_directory_a_file(repo: Repo) -> None:
    first = repo.commit({b"a": TEN, b"d/x": text(1, 2, 3), b"d/y": b"y"})
    second = repo.commit({b"a/a": TEN, b"d": text(1, 2, 3)}, first)
    repo.commit({b"a": TEN, b"d/d": text(1, 2, 3)}, second)

    assert differences(repo.path) == []


# --- what is not plain text


def test_modes_links_submodules_and_binary_files_are_followed(repo: Repo) -> None:
    link, program, module = "120000", "100755", "160000"
    binary = bytes(range(256)) * 40
    one, two = b"1" * 40, b"2" * 40
    hidden = b'[submodule "m"]\n\tpath = m\n\turl = ./m\n\tignore = all\n'
    first = repo.commit(
        {
            b"run": TEN,
            b"l": (link, b"run"),
            b"m": (module, one),
            b"b": binary,
            b"t": TEN,
            b"e": b"",
            b".gitmodules": hidden,
        }
    )
    second = repo.commit(
        {
            b"run": (program, TEN),
            b"l": (link, b"t"),
            b"m": (module, two),
            b"b": binary[1:],
            b"t": (link, b"run"),
            b"f": b"",
            b".gitmodules": hidden,
        },
        first,
    )
    third = repo.commit(
        {
            b"go": (program, TEN),
            b"l": TEN,
            b"m": b"now a file\n",
            b"c": binary[1:],
            b"t": (module, one),
        },
        second,
    )
    repo.commit(
        {b"go": binary, b"l": TEN[:-1], b"m": (link, b"no end"), b"c": TEN, b"t": b""}, third
    )

    assert differences(repo.path) == []
    commits = list(history.changes(repo.path))
    assert commits[1].changes[-1].kind is Kind.MODIFIED
    moved = [change for change in commits[1].changes if change.path == "m"]
    assert [change.blob for change in moved] == [two.decode()]
    assert [change.added for change in commits[0].changes if change.path == "b"] == [None]
    assert [change.mode for change in commits[1].changes if change.path == "run"] == [program]


# --- shapes of history


def test_one_commit_is_a_history(repo: Repo) -> None:
    only = repo.commit({b"a": TEN})

    [commit] = history.changes(repo.path)
    assert (commit.hash, commit.parents, commit.is_mainline) == (only, (), True)
    assert (commit.subject, commit.week) == ("A subject", "2024-W09")
    assert commit.committed_at == datetime(2024, 3, 1, tzinfo=UTC)
    assert differences(repo.path) == []


def test_empty_trees_and_empty_commits_are_told(repo: Repo) -> None:
    first = repo.commit({})
    second = repo.commit({}, first)
    third = repo.commit({b"a": TEN}, second)
    repo.commit({b"a": TEN}, third)

    assert [len(changes) for changes in kinds(repo)] == [0, 0, 1, 0]
    assert differences(repo.path) == []


def test_merges_bring_the_work_beside_the_mainline_as_one(repo: Repo) -> None:
    base = repo.commit({b"a": TEN, b"b": TEN})
    side = repo.commit({b"a": TEN + b"side\n", b"b": TEN}, base, author=b"Bo <bo@example.org>")
    main = repo.commit({b"a": b"main\n" + TEN, b"c": TEN}, base)
    back = repo.commit({b"a": b"main\n" + TEN + b"side\n", b"c": TEN}, side, main)
    more = repo.commit({b"a": b"more\n" + TEN + b"side\n", b"c": TEN}, back)
    evil = repo.commit({b"a": b"main\n" + TEN + b"evil\n", b"x": TEN}, main, more)
    third = repo.commit({b"z": b"z\n"})
    octopus = repo.commit({b"a": TEN, b"z": b"z\n"}, evil, side, third, more)
    same = repo.commit({b"a": TEN, b"z": b"z\n"}, octopus, octopus, third)
    repo.commit({b"a": TEN + b"end\n"}, same)

    assert differences(repo.path) == []
    told = {commit.hash: commit for commit in history.changes(repo.path)}
    assert len(told) == history.commit_count(repo.path) == 10
    assert [told[name].is_mainline for name in (base, side, back, third)] == [
        True,
        False,
        False,
        False,
    ]
    assert (told[evil].is_merge, told[evil].added) == (True, 0)
    assert {change.path for change in told[evil].changes} == {"a", "x"}
    assert told[side].changes == ()
    assert told[side].added == 1
    order = list(told)
    assert all(
        order.index(parent) < order.index(commit.hash)
        for commit in told.values()
        for parent in commit.parents
    )


def test_clocks_that_go_wrong_do_not_disturb_the_order(repo: Repo) -> None:
    first = repo.commit({b"a": text(1)}, time=b"1700000000 +0000")
    second = repo.commit({b"a": text(2)}, first, time=b"1 -1200")
    third = repo.commit({b"a": text(3)}, second, time=b"1704067199 -0800")  # 2023-12-31T23:59:59Z
    fourth = repo.commit({b"a": text(4)}, third, time=b"99999999999999999999 +0000")
    fifth = repo.commit({b"a": text(5)}, fourth, time=b"never")
    repo.commit({b"a": text(6)}, fifth, time=b"4102444800 +1400")

    weeks = [commit.week for commit in history.changes(repo.path)]
    assert weeks == ["2023-W46", "1970-W01", "2023-W52", "1970-W01", "1970-W01", "2099-W53"]
    assert {"2023-W52", "2099-W53"} <= set(truth.weeks(repo.path))


def test_grafts_and_replacements_are_not_believed(repo: Repo) -> None:
    first = repo.commit({b"a": text(1)})
    second = repo.commit({b"a": text(1, 2)}, first)
    third = repo.commit({b"a": text(1, 2, 3)}, second)
    (repo.path / "info").mkdir(exist_ok=True)
    (repo.path / "info" / "grafts").write_text(f"{third}\n")
    repo.git("replace", second, first)

    assert [commit.hash for commit in history.changes(repo.path)] == [first, second, third]
    assert differences(repo.path) == []


def test_a_shallow_clone_begins_where_it_was_cut(repo: Repo, tmp_path: Path) -> None:
    before: list[str] = []
    for number in range(6):
        before = [repo.commit({b"a": text(*range(number)), b"b": TEN}, *before)]
    shallow = tmp_path / "shallow"
    repo.git("clone", "-q", "--bare", "--depth=3", f"file://{repo.path}", str(shallow))

    assert history.commit_count(shallow) == 3
    assert differences(shallow) == []


def test_a_checkout_is_read_from_its_folders_and_its_git_folder(repo: Repo, tmp_path: Path) -> None:
    first = repo.commit({b"src/a": TEN, b"b": TEN})
    repo.commit({b"src/c": TEN, b"b": TEN}, first)
    checkout = tmp_path / "checkout"
    repo.git("clone", "-q", str(repo.path), str(checkout))
    (checkout / "src" / "uncommitted").write_text("not history")

    for place in (checkout, checkout / "src", checkout / ".git"):
        assert differences(place) == []
        assert set(truth.files(place)) == {"src/c", "b"}


def test_a_history_is_told_up_to_the_commit_asked_for(repo: Repo) -> None:
    first = repo.commit({b"a": TEN})
    second = repo.commit({b"b": TEN}, first)
    repo.commit({b"c": TEN}, second)

    ledger = fold(history.changes(repo.path, at=second))

    assert ledger.files == truth.files(repo.path, at=second)
    assert history.commit_count(repo.path, at=second) == 2
    assert [commit.hash for commit in history.changes(repo.path, limit=2)] == [first, second]
