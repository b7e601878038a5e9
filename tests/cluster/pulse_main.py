"""An app that has a pulse and nothing else: run as a process, told by lines what to do to itself.

    python pulse_main.py URL KIND OPTIONS

It prints its news, one JSON object a line. What it can be told: ``sleep 3`` blocks its event loop,
``gil 3`` blocks every thread, ``fork`` leaves a child with all its pipes, ``exit``, ``abrupt``,
``raise`` and ``exec`` end it without a word, ``close`` ends its event loop only, ``leave`` is the
way it should be.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import sys
import time
from dataclasses import replace
from uuid import UUID

from pulses import QUICK

from strandline.cluster.node import Identity
from strandline.cluster.pulse import News, Pulse


def say(**facts: object) -> None:
    print(json.dumps({"at": time.time(), **facts}), flush=True)


def hold_the_gil(seconds: float) -> None:
    """One call in C after the other is no good: one call has to last."""
    digits = 100_000
    while True:
        number = 7 ** int(digits * 1.2)
        began = time.monotonic()
        str(number)
        took = time.monotonic() - began
        if took > 0.05:
            break
        digits *= 2
    number = 7 ** int(digits * 1.2 * (seconds / took) ** 0.5)
    str(number)


async def main(url: str, kind: str, options: str) -> None:
    loop = asyncio.get_running_loop()
    told: asyncio.Queue[str] = asyncio.Queue()
    loop.add_reader(0, lambda: told.put_nowait(sys.stdin.readline().strip()))
    facts = json.loads(options)
    identity = Identity(UUID(facts.pop("id")), facts.pop("name", "main"), pid=os.getpid())

    def hear(news: News) -> None:
        say(news=news.kind, **{k: v for k, v in news.facts.items() if k != "at"})

    pulse = Pulse(identity, replace(QUICK, url=url, **facts), kind, hear)
    await pulse.start(timeout=15)
    pulse.ready()
    side = getattr(pulse._host, "_process", None)
    say(started=True, side=side.pid if side else 0)
    while True:
        what, _, rest = (await told.get()).partition(" ")
        match what:
            case "sleep":
                time.sleep(float(rest))
            case "gil":
                hold_the_gil(float(rest))
            case "fork":
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
            case "leave":
                say(left=await pulse.leave("told to", "", timeout=5))
                await pulse.stop(timeout=5)
                return
            case "stop":
                await pulse.stop(timeout=2)
                return
            case "exit":
                sys.exit(0)
            case "abrupt":
                os._exit(3)
            case "raise":
                raise RuntimeError("a mistake in the app")
            case "exec":
                os.execv("/bin/sleep", ["/bin/sleep", "60"])
            case "close":
                return
        say(did=what)


if __name__ == "__main__":
    sys.set_int_max_str_digits(0)
    faulthandler.enable()
    asyncio.run(main(*sys.argv[1:]))
    if os.environ.get("STAYS"):
        time.sleep(60)
