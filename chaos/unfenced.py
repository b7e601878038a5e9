"""Takes the fence out of a running node's statements, for control groups.

A chaos run proves something only if it fails where the protection is missing. Here that is tried:
the SQL of the checkpoints is changed in the memory of the node, never in strandline's files.

* ``without_epoch``: a checkpoint is moved by whoever finds it at the right position.
* ``unfenced``: by anybody, from anywhere.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

# what a statement asks of the row it moves → what asks nothing, and still takes the parameter
CONDITIONS = {
    "owner": (r"\bowner = (\$\d+)(?:::uuid)?", r"\1::uuid IS NOT NULL"),
    "epoch": (r"\bepoch = (\$\d+)(?:::bigint)?", r"\1::bigint IS NOT NULL"),
    "position": (r"\bposition = (\$\d+)(?:::bigint)?", r"\1::bigint IS NOT NULL"),
}
REMOVED = {"without_epoch": ("owner", "epoch"), "unfenced": ("owner", "epoch", "position")}
NAMES = ("READ_CLAIM", "MOVE", "COMMIT_DOCUMENTS")


def apply(which: str) -> None:
    """Patch this process as *which* says; nothing for an empty text."""
    if not which:
        return
    from strandline.daemon import checkpoint, document_batch

    for name in NAMES:
        statement = getattr(checkpoint, name)
        changed = dataclasses.replace(statement, text=unfence(statement.text, which), rendered={})
        for module in (checkpoint, document_batch):
            if hasattr(module, name):
                setattr(module, name, changed)


def unfence(text: str, which: str) -> str:
    """*text* without the conditions that *which* removes.

    Raises:
        ValueError: One of them is not there: the control group would prove nothing.
    """
    head, where, tail = _parts(text)
    for condition in REMOVED[which]:
        pattern, replacement = CONDITIONS[condition]
        where, found = re.subn(pattern, replacement, where)
        if not found and not (condition == "position" and "SELECT epoch" in text):
            raise ValueError(f"no condition on {condition} to remove in: {text}")
    return head + where + tail


def _parts(text: str) -> tuple[str, str, str]:
    """Before the fence's WHERE, the WHERE, behind it: SET position = $5 must stay."""
    found: Any = re.search(r"WHERE name = \$1.*?(?=RETURNING|;|\Z)", text, re.DOTALL)
    if found is None:
        raise ValueError(f"no fence in: {text}")
    return text[: found.start()], found.group(), text[found.end() :]
