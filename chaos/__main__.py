"""Harms a cluster and checks what it made of it: ``python -m chaos [--short] [--minutes N] ...``.

Prints a table of faults, and writes it as JSON where ``--out`` says. Exit code 0: no violation (or,
in a control group, that there were some); 1 otherwise.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chaos import results
from chaos.database import fetchval
from chaos.faults import FAULTS
from chaos.field import Field
from chaos.run import Run, say
from chaos.settings import SETTINGS
from chaos.unfenced import REMOVED
from strandline.testing.servers import Server

OUT = Path(__file__).resolve().parents[1] / "bench" / "results" / "chaos.json"
CAPTION = (
    "seed",
    "group",
    "nodes",
    "mode",
    "events",
    "jobs",
    "acknowledged",
    "checks",
    "looks",
    "seconds",
    "postgresql",
    "python",
    "machine",
    "load",
)
ZOMBIES = ("freeze_in_batch",)  # what a control group suffers: the epoch alone protects from it
ENOUGH = 42  # faults of a short run
WRITERS, STREAMS, PACE = 2, 6, 0.06  # processes, streams of each, seconds between appends of one


def main() -> None:
    """Run what the command line says."""
    options = _options()
    sys.exit(asyncio.run(_main(options)))


async def _main(options: argparse.Namespace) -> int:
    began = time.monotonic()
    run, folders = await _run(options)
    found, violations = run.rows(), run.violations()
    is_good = _judge(options, len(run.blows), len(violations))
    facts = _facts(options, run, time.monotonic() - began)
    controls: dict[str, Any] = {}
    if options.control and is_good:
        for fence in REMOVED:
            controls[fence], folder = await _control(options, fence)
            folders.append(folder)
        is_good = all(one["violations"] for one in controls.values())
    if controls:
        facts["control"] = controls
    caption = ", ".join(f"{key} {facts[key]}" for key in CAPTION)
    results.show(found, caption, violations)
    for fence, one in controls.items():
        weak = "" if one["violations"] else ": THE CHAOS IS TOO WEAK"
        print(f"control group {fence}: {one['violations']} violations, as there must be{weak}")
    if options.out:
        results.write(options.out, found, facts)
        print(f"written: {options.out}")
    if is_good and not options.keep:
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"logs: {', '.join(map(str, folders))}")
    return 0 if is_good else 1


async def _run(options: argparse.Namespace) -> tuple[Run, list[Path]]:
    """One run on a server of its own, and where it lay."""
    folder = Path(tempfile.mkdtemp(prefix="strandline-chaos-", dir=options.folder))
    folder.chmod(0o755)  # the server's account must get to its data
    say(f"seed {options.seed}, {options.fence or 'fenced'}; {folder}")
    server = Server(folder / "server")
    await asyncio.to_thread(server.start)
    field = Field(folder, server, options.nodes, fence=options.fence, mode=options.mode)
    try:
        await field.open(WRITERS, STREAMS, PACE)
        size = "short" if options.short else "long"
        run = Run(field, options.seed, _goes_on(options), only=options.only, size=size)
        await run.go()
        await run.leave()
        run.server_version = str(await fetchval(field.url, "SHOW server_version")).split()[0]
    finally:
        await field.close()
        await asyncio.to_thread(field.server.stop, "immediate")
    return run, [folder]


async def _control(options: argparse.Namespace, fence: str) -> tuple[dict[str, Any], Path]:
    """A few zombies without the fence: what they do must be found."""
    changed = {"fence": fence, "only": ZOMBIES, "faults": 3, "nodes": 4, "short": True}
    run, (folder,) = await _run(argparse.Namespace(**{**vars(options), **changed}))
    violations = run.violations()
    facts = {
        "injected": len(run.blows),
        "violations": len(violations),
        "invariants": sorted({one.invariant for one in violations}),
    }
    return facts, folder


def _judge(options: argparse.Namespace, injected: int, violations: int) -> bool:
    if options.fence:
        if violations == 0:
            print(f"the chaos is too weak: {options.fence}, and nothing went wrong")
        return violations > 0
    if not injected:
        print("nothing was injected")
    return violations == 0 and injected > 0


def _goes_on(options: argparse.Namespace) -> Callable[[int, int], bool]:
    """Whether there is another round: a short run is one cycle, and more if that were too few."""
    most = options.faults or 10**9
    if options.short:
        least = options.faults or ENOUGH
        return lambda cycle, injected: injected < most and (cycle == 0 or injected < least)
    until = time.monotonic() + 60 * options.minutes
    return lambda cycle, injected: time.monotonic() < until and injected < most


def _facts(options: argparse.Namespace, run: Run, seconds: float) -> dict[str, Any]:
    return {
        "seed": options.seed,
        "group": options.fence or "fenced",
        "nodes": options.nodes,
        "mode": options.mode,
        "injected": len(run.blows),
        "violations": len(run.violations()),
        "events": run.checked_events,
        "jobs": run.checked_jobs,
        "acknowledged": run.oracle.acknowledged,
        "checks": run.checks,
        "looks": run.field.watch.looks,
        "seconds": round(seconds),
        "postgresql": run.server_version,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "load": [round(one, 1) for one in os.getloadavg()],
        "settings": SETTINGS,
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument("--short", action="store_true", help="about 90 s, at least 40 faults")
    minutes = float(os.environ.get("MINUTES") or 10)
    parser.add_argument("--minutes", type=float, default=minutes, help="default: MINUTES, or 10")
    parser.add_argument("--seed", type=int, default=None, help="makes the schedule; default random")
    parser.add_argument("--only", type=_names, default=(), metavar="FAULT,...", help=_known())
    parser.add_argument("--faults", type=int, default=0, help="stop after so many")
    parser.add_argument("--nodes", type=int, default=5, help="nodes that are kept running")
    parser.add_argument("--mode", choices=("cluster", "solo"), default="cluster")
    parser.add_argument(
        "--unfenced",
        action="store_const",
        dest="fence",
        const="unfenced",
        default="",
        help="control group: checkpoints are moved by anybody; must go wrong",
    )
    parser.add_argument(
        "--without-epoch",
        action="store_const",
        dest="fence",
        const="without_epoch",
        help="control group: checkpoints ask for the position only; must go wrong",
    )
    parser.add_argument(
        "--control",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="control groups after the run; default: in complete runs",
    )
    parser.add_argument("--out", type=Path, help=f"where to write; complete runs: {OUT}")
    parser.add_argument(
        "--folder", help="where logs and data go; default: the folder for temporary files"
    )
    parser.add_argument("--keep", action="store_true", help="keep logs and data")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(10**6)
    complete = not (options.only or options.fence or options.faults or options.mode == "solo")
    options.out = options.out or (OUT if complete and not options.short else None)
    if options.control is None:
        options.control = complete and not options.short
    return options


def _names(text: str) -> tuple[str, ...]:
    given = text.split(",")
    unknown = [name for name in given if name not in FAULTS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(FAULTS)}")
    return tuple(given)


def _known() -> str:
    return "only these of " + ", ".join(FAULTS)


if __name__ == "__main__":
    main()
