"""The proxies of a run, in a process of their own: ``python -m chaos.relay``, orders on standard input.

Orders and answers are JSON, one a line. ``{"do": "open", "name": ..., "url": ...}`` makes a proxy and
answers its URL; every other order names a proxy, or ``*`` for all, and a method of ``Proxy``.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from strandline.testing.faults import Proxy


async def obey(proxies: dict[str, Proxy], facts: dict[str, Any]) -> Any:
    """Do what *facts* say."""
    do, name = facts.pop("do"), facts.pop("name")
    if do == "open":
        proxy = proxies[name] = await Proxy(facts["url"]).__aenter__()
        return proxy.url
    if do == "close":
        await proxies.pop(name).__aexit__(None, None, None)
        return None
    chosen = list(proxies.values()) if name == "*" else [proxies[name]]
    if do == "ports":
        return [port for proxy in chosen for port in proxy.ports]
    for proxy in chosen:
        if do == "swallow_answer_to":
            proxy.swallow_answer_to(facts["words"].encode())
        else:
            getattr(proxy, do)(**facts)
    return None


async def main() -> None:
    """Obey until standard input ends."""
    proxies: dict[str, Proxy] = {}
    orders = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    while line := await orders.readline():
        try:
            answer = {"answer": await obey(proxies, json.loads(line))}
        except Exception as error:  # it goes to whoever gave the order
            answer = {"error": repr(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
