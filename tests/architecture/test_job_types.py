"""What type checkers know about jobs: arguments, results, options."""

from __future__ import annotations

from pathlib import Path

from mypy import api

PROGRAM = """
from typing import assert_type
import strandline as sl
from strandline import sync
from strandline.jobs.flow_ref import FlowRef
from strandline.jobs.job import Call

app = sl.App("typed")
blocking = sync.App("typed")

@app.job
async def send(to: str, copies: int = 1) -> int:
    return copies

@app.job(queue="cpu", executor="process")
def resize(image: int) -> str:
    return ""

@blocking.job(max_attempts=3)
async def late() -> None: ...

async def use(tx: sl.Transaction, stx: sync.Transaction) -> None:
    assert_type(send.call("a", copies=2), Call[int])
    assert_type(resize.call(1).with_(delay=5), Call[str])
    assert_type(await send("a"), int)
    assert_type(resize(1), str)
    assert_type(await app.enqueue(send, "a"), sl.JobRef[int])
    assert_type(await app.enqueue(resize.call(1)), sl.JobRef[str])
    assert_type(await send.enqueue("a"), sl.JobRef[int])
    assert_type(await send.call("a").enqueue(), sl.JobRef[int])
    assert_type(await tx.enqueue(send, to="a"), sl.JobRef[int])
    assert_type(await (await tx.enqueue(resize, 1)).result(), str)
    assert_type(await app.enqueue(sl.chain(send.call("a"), resize.call(1))), FlowRef)
    assert_type(blocking.enqueue(late), sync.JobRef[None])
    assert_type(stx.enqueue(send.call("a")).result(timeout=1), int)
    await app.enqueue_many(send.call(str(n)) for n in range(3))
    send.call(1)  # E
    send.call("a", other=1)  # E
    await app.enqueue(send, 1)  # E
    await app.enqueue(resize)  # E
    resize.call(1).with_(delay="soon")  # E
"""


def test_type_checkers_know_arguments_and_results(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    cache = Path(__file__).parents[2] / ".mypy_cache"

    out, errors, _ = api.run(["--strict", "--cache-dir", str(cache), str(program)])

    found = {int(line.split(":")[1]) for line in out.splitlines() if ": error:" in line}
    wanted = {n for n, line in enumerate(PROGRAM.splitlines(), 1) if line.endswith("# E")}
    assert found == wanted, out + errors
