"""Every python block of README and docs runs, page by page, and prints what the page shows."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from blocks import blocks_of  # noqa: E402

ROOT = Path(__file__).parents[2]
RUNNER = Path(__file__).with_name("run_page.py")
PAGES = [
    page
    for page in [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    ]
    if page.exists() and "```python" in page.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run_and_print_what_it_shows(page: Path, database_url: str) -> None:
    blocks = [one for one in blocks_of(page.read_text(encoding="utf-8")) if not one.no_run]
    environment = {**os.environ, "STRANDLINE_DATABASE_URL": database_url}

    done = subprocess.run(
        [sys.executable, str(RUNNER), str(page)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    printed = json.loads(done.stdout.splitlines()[-1])
    for block, output in zip(blocks, printed, strict=True):
        if block.shown is None:
            assert not output, f"{page}:{block.line} prints what the page does not show: {output}"
        else:
            same = doctest.OutputChecker().check_output(block.shown, output, doctest.ELLIPSIS)
            assert same, f"{page}:{block.line} shows\n{block.shown}\nbut prints\n{output}"


def test_the_tutorial_shows_the_app_that_all_pages_use() -> None:
    start = ROOT / "docs/start"
    shown = blocks_of((start / "ten-minutes.md").read_text(encoding="utf-8"))[0]

    assert shown.code == (start / "bank.py").read_text(encoding="utf-8")
