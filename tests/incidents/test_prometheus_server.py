"""A real Prometheus scrapes a real node: an alert fires, and is resolved when the failure is over.

The rules are the shipped ones, with every duration a hundredth of what it is.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml
from tally import fill

from incidents.faults import opened
from incidents.nodes import free_port
from incidents.promtool import program, rules_file
from incidents.scrape import asked, is_level

QUICKER = 100
DURATION = re.compile(r"(?<=\[)[\dsmhd]+(?=[\]:])|(?<=offset )[\dsmhd]+")
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
LEAST = 3.0  # seconds of a range: of fewer than two scrapes there is no increase


async def test_a_real_prometheus_fires_and_resolves(play: Any) -> None:
    async with play("a held mark") as stage:
        app = await stage.node(stale_after=0.3)
        await fill(app, 20)
        await stage.before(is_level)
        async with prometheus(stage.folder, app.ops.url) as server:
            await server.sees(lambda found: found == {}, scraped=True)

            report = await opened(stage.url, "held")
            await fill(app, 5)
            await server.sees(lambda found: found.get("StrandlineHighWaterStale") == "firing")

            await report.execute("ROLLBACK")
            await report.close()
            await server.sees(lambda found: found == {})


class Server:
    """A Prometheus that runs."""

    def __init__(self, url: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.url = url
        self._process = process
        self._log = log

    async def ask(self, path: str) -> Any:
        """What its API answers; None if it does not."""
        code, text = await asked(self.url, path)
        return json.loads(text)["data"] if code == 200 else None

    async def alerts(self) -> dict[str, str] | None:
        """Name of each alert that is pending or fires → which of both."""
        found = await self.ask("/api/v1/alerts")
        if found is None:
            return None
        return {one["labels"]["alertname"]: one["state"] for one in found["alerts"]}

    async def sees(self, what: Any, *, scraped: bool = False, timeout: float = 40.0) -> None:
        """Wait until *what* holds of its alerts, and the node was *scraped* if that is said."""
        deadline = time.monotonic() + timeout
        while True:
            found = await self.alerts()
            up = (
                (await self.ask("/api/v1/query?query=up==1"))
                if scraped and found is not None
                else None
            )
            if found is not None and what(found) and (not scraped or (up and up["result"])):
                return
            assert time.monotonic() < deadline, (
                f"its alerts: {found}\n{self._log.read_text()[-2000:]}"
            )
            assert self._process.poll() is None, self._log.read_text()[-4000:]
            await asyncio.sleep(0.1)


@asynccontextmanager
async def prometheus(folder: Path, target: str) -> AsyncIterator[Server]:
    """A Prometheus that scrapes *target* each second, with rules that are quicker."""
    binary = program("prometheus")
    (folder / "rules.yml").write_text(quicker(rules_file().read_text(encoding="utf-8")))
    (folder / "prometheus.yml").write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": [str(folder / "rules.yml")],
                "scrape_configs": [
                    {
                        "job_name": "strandline",
                        "static_configs": [{"targets": [urlsplit(target).netloc]}],
                    }
                ],
            }
        )
    )
    port, log = free_port(), folder / "prometheus.log"
    with log.open("wb") as where:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=where,
            stderr=where,
        )
    try:
        yield Server(f"http://127.0.0.1:{port}", process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(process.wait, 10)
        except subprocess.TimeoutExpired:
            process.kill()


def quicker(rules: str) -> str:
    """The same rules in a hundredth of the time; what they measure is left as it is."""
    tree = yaml.safe_load(rules)
    for rule in (rule for group in tree["groups"] for rule in group["rules"]):
        for wait in {"for", "keep_firing_for"} & rule.keys():
            rule[wait] = f"{max(1, round(_seconds(rule[wait]) / QUICKER))}s"
        rule["expr"] = DURATION.sub(
            lambda found: f"{max(LEAST, _seconds(found[0]) / QUICKER):.0f}s", rule["expr"]
        )
    return str(yaml.safe_dump(tree))


def _seconds(duration: str) -> float:
    return sum(float(n) * UNITS[unit] for n, unit in re.findall(r"(\d+)([smhd])", duration))
