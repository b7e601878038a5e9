"""The faults, by what they harm."""

from __future__ import annotations

from chaos.blow import Fault
from chaos.faults import lines, operators, processes, recovery, servers, work

FAULTS: dict[str, Fault] = {
    one.name: one
    for one in (
        *processes.ALL,
        *lines.ALL,
        *servers.ALL,
        *work.ALL,
        *operators.ALL,
        *recovery.ALL,
    )
}
