"""Fenced python blocks of a page, each with the output that the page shows for it."""

from __future__ import annotations

import re
from dataclasses import dataclass

FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>[\w+-]*)(?P<mark>[^\n]*)\n(?P<body>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A python block. ``no_run`` is the reason why it is not run, or empty."""

    line: int
    code: str
    shown: str | None
    no_run: str


def blocks_of(text: str) -> list[Block]:
    """The python blocks of a page; a ``text`` block right after one shows its output."""
    fences = list(FENCE.finditer(text))
    found = []
    for number, fence in enumerate(fences):
        if fence["language"] != "python":
            continue
        mark = fence["mark"].strip()
        reason = mark.removeprefix("no-run").strip(" :") if mark.startswith("no-run") else ""
        if mark and not reason:
            raise ValueError(f"```python {mark}: say why after `no-run:`")
        following = fences[number + 1] if number + 1 < len(fences) else None
        between = text[fence.end() : following.start()] if following else "-"
        shown = (
            following["body"]
            if following and following["language"] == "text" and not between.strip()
            else None
        )
        line = text.count("\n", 0, fence.start()) + 1
        found.append(Block(line, fence["body"], shown, reason))
    return found
