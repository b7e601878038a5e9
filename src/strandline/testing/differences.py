"""Says how two values differ, line by line, whatever kind of object they are."""

from __future__ import annotations

import difflib
import json
from typing import Any

import msgspec


def same(found: Any, expected: Any, what: str) -> None:
    """Do nothing if they are equal.

    Raises:
        AssertionError: They are not; the message shows expected (-) and found (+) lines.
    """
    __tracebackhide__ = True
    if found == expected:
        return
    wanted, got = words(expected).splitlines(), words(found).splitlines()
    if wanted == got:  # equal as JSON: the classes differ
        raise AssertionError(f"{what}: expected {expected!r}, found {found!r}")
    lines = [line for line in difflib.ndiff(wanted, got) if not line.startswith("?")]
    raise AssertionError(f"{what} is not as expected (-), but (+):\n" + "\n".join(lines))


def words(value: Any) -> str:
    """*value* with the names of its fields, one a line."""
    return json.dumps(_plain(value), indent=2, ensure_ascii=False, default=repr)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, str | int | float):
        return value
    dump = getattr(value, "model_dump", None)
    try:
        fields = dump(mode="json") if dump is not None else msgspec.to_builtins(value)
    except (TypeError, ValueError):
        return repr(value)
    if isinstance(fields, dict):
        return {"is a": type(value).__name__, **_plain(fields)}
    return fields
