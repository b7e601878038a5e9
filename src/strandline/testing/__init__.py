"""For tests of applications: databases, scenarios, a clock, faults, servers, nodes, leak checks.

The parts are imported when first asked for: the pytest plugin beside them is loaded by every run of
pytest where strandline is installed, and must cost nothing there.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from strandline.testing.app_scenario import AppScenario, app_scenario
    from strandline.testing.clock import ManualClock
    from strandline.testing.database import fresh_database
    from strandline.testing.faults import Proxy
    from strandline.testing.leaks import no_leaks
    from strandline.testing.nodes import NodeProcess
    from strandline.testing.scenario import Scenario, scenario
    from strandline.testing.servers import Server

__all__ = [
    "AppScenario",
    "ManualClock",
    "NodeProcess",
    "Proxy",
    "Scenario",
    "Server",
    "app_scenario",
    "fresh_database",
    "no_leaks",
    "scenario",
]

_HOMES = {
    "AppScenario": "app_scenario",
    "ManualClock": "clock",
    "NodeProcess": "nodes",
    "Proxy": "faults",
    "Scenario": "scenario",
    "Server": "servers",
    "fresh_database": "database",
    "no_leaks": "leaks",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(f"{__name__}.{_HOMES.get(name, name)}"), name)
    globals()[name] = found  # or the module `scenario` stays there under the function's name
    return found
