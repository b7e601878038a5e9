"""What a type checker says of code that enqueues."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CODE = """
from typing import assert_type

import strandline as sl
from strandline import Call, JobRef

app = sl.App("typed")


@app.job
async def send(to: str, times: int = 1) -> str:
    return to * times


@app.job(queue="images")
def resize(image: int) -> list[int]:
    return [image]


async def right() -> None:
    assert_type(await send("ada"), str)
    assert_type(resize(7), list[int])
    assert_type(send.call("ada", times=2).with_(priority=1), Call[str])
    assert_type(await app.enqueue(send, "ada"), JobRef[str])
    assert_type(await app.enqueue(resize.call(7)), JobRef[list[int]])
    assert_type(await (await send.enqueue("ada")).result(), str)
    async with app.transaction() as tx:
        assert_type(await tx.enqueue(send, "ada"), JobRef[str])


async def wrong() -> None:
    await app.enqueue(send, 7)  # wrong
    await app.enqueue(send, "ada", time=2)  # wrong
    await app.enqueue(send)  # wrong
    send.call("ada", priority=1)  # wrong
    await resize.enqueue("seven")  # wrong
"""


def test_a_type_checker_finds_wrong_arguments_before_anything_runs(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    code = tmp_path / "typed.py"
    code.write_text(CODE, encoding="utf-8")
    words = [sys.executable, "-m", "mypy", "--strict", "--no-pretty", str(code)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)

    found = [line for line in done.stdout.splitlines() if ": error: " in line]
    lines = [number for number, line in enumerate(CODE.splitlines(), 1) if "# wrong" in line]
    assert [int(line.split(":")[1]) for line in found] == lines, done.stdout + done.stderr
