"""README is short, links lead somewhere, and tests that are named exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [
    README,
    *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "changes/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FENCED = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\((?P<target>[^)\s]+)\)")
NAMED_TEST = re.compile(r"`(?P<name>test_\w+)`")
TEST = re.compile(r"^(?:async )?def (?P<name>test_\w+)", re.MULTILINE)
WORDS = 500
ADR_WORDS = 600  # about a page


def test_the_readme_has_at_most_500_words() -> None:
    words = len(README.read_text(encoding="utf-8").split())

    assert words <= WORDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_page_lead_to_files(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    broken = []
    for found in LINK.finditer(text):
        target, _, anchor = found["target"].partition("#")
        if target.startswith(("http://", "https://")):
            continue
        file = (page.parent / target).resolve() if target else page
        if not file.exists() or (anchor and anchor not in _anchors(file)):
            broken.append(found["target"])

    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_tests_that_a_page_names_exist(page: Path) -> None:
    source = "\n".join(
        one.read_text(encoding="utf-8") for one in (ROOT / "tests").rglob("test_*.py")
    )
    files = {one.stem for one in (ROOT / "tests").rglob("test_*.py")}
    named = {one["name"] for one in NAMED_TEST.finditer(page.read_text(encoding="utf-8"))}

    assert {one for one in named if f"def {one}(" not in source and one not in files} == set()


def test_every_scenario_is_claimed_beside_others() -> None:
    claimed = "\n".join(
        page.read_text(encoding="utf-8") for page in (ROOT / "docs/compare").glob("*.md")
    )
    scenarios = [
        one["name"]
        for file in (ROOT / "tests/scenarios").glob("test_*.py")
        for one in TEST.finditer(file.read_text(encoding="utf-8"))
    ]

    assert len(scenarios) > 50
    assert [one for one in scenarios if f"`{one}`" not in claimed] == []


def test_every_claim_about_read_models_names_a_test_and_says_who_is_better() -> None:
    text = (ROOT / "docs/compare/marten.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    claims = [row for row in rows if len(row) == 5 and row[4].strip() not in ("test", "---")]

    assert len(claims) > 50
    assert [row[0] for row in claims if row[3].strip() not in ("+", "−", "=")] == []
    assert [row[0] for row in claims if not NAMED_TEST.search(row[4])] == []


def test_every_claim_about_jobs_names_a_test_and_says_who_is_better() -> None:
    text = (ROOT / "docs/compare/jobs.md").read_text(encoding="utf-8")
    rows = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in row] for row in rows]
    claims = [row for row in cells if len(row) == 9 and row[8] not in ("test", "---")]

    assert len(claims) > 70
    assert [row[0] for row in claims if row[7] not in ("+", "−", "=")] == []
    assert [row[0] for row in claims if not NAMED_TEST.search(row[8])] == []


def test_every_page_is_reached_from_the_index() -> None:
    seen = set()
    waiting = [ROOT / "docs/README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        for found in LINK.finditer(page.read_text(encoding="utf-8")):
            target = found["target"].partition("#")[0]
            if target and "://" not in target and (page.parent / target).exists():
                waiting.append((page.parent / target).resolve())

    assert set((ROOT / "docs").rglob("*.md")) - seen == set()


@pytest.mark.parametrize(
    "page", sorted((ROOT / "docs/adr").glob("0*.md")), ids=lambda page: page.stem
)
def test_a_decision_fits_a_page_and_has_its_four_parts(page: Path) -> None:
    text = page.read_text(encoding="utf-8")

    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [
        "Question",
        "What we measured or read",
        "Decision",
        "What would change our mind",
    ]
    assert len(text.split()) <= ADR_WORDS


def _anchors(file: Path) -> set[str]:
    if file.suffix != ".md":
        return set()
    headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one).strip().lower().replace(" ", "-") for one in headings}
