"""Runs one workload of one system in this process: ``python -m bench.step`` with a job on stdin."""

from __future__ import annotations

import asyncio
import json
import sys

import uvloop

from bench.harness import Place, Sizes, find_workloads


def main() -> None:
    """Read the job, run it, write its measures as the last line of the output."""
    job = json.load(sys.stdin)
    workload = find_workloads(job["system"])[job["workload"]]
    place = Place(job["url"], Sizes(**job["sizes"]))
    # Every system whose code is asynchronous gets the fast loop, the limit too.
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        measures = runner.run(workload(place))
    print(json.dumps(measures))


if __name__ == "__main__":
    main()
