"""``strandline.sync`` has the same methods with the same parameters; only ``await`` is missing."""

from __future__ import annotations

import inspect
import re
from typing import Any

import pytest

import strandline
from strandline import sync

PAIRS = [(strandline.App, sync.App), (strandline.Transaction, sync.Transaction)]

# What the blocking twin lacks on purpose. An entry that is no longer true fails.
LACKS = {
    "App": {
        "start": "a node is asynchronous",
        "stop": "a node is asynchronous",
        "run": "a node is asynchronous",
        "is_running": "a node is asynchronous",
        "statistics": "of the node",
        "node_id": "of the node",
        "node_name": "of the node",
        "health": "of the node",
        "on_stop": "of the node",
        "at_rest": "for what empties read models, which is asynchronous",
        "catch_up": "runs projections, as a node does",
        "rebuild": "runs projections, as a node does",
        "rebuilds": "for those who run nodes; `strandline projections rebuilds` shows it",
        "plan_rebuild": "for those who run nodes: `strandline projections rebuild --dry-run`",
        "verify": "runs projections, as a node does",
        "heal": "runs projections, as a node does",
        "unhealed": "for those who run nodes; `strandline doctor` tells it",
        "cancel_rebuild": "for those who run nodes: `strandline projections cancel`",
        "request_build": "what the faces of the asynchronous app share",
        "ended_build": "what the faces of the asynchronous app share",
        "definition_of": "what the faces of the asynchronous app share",
        "refuse_paused": "what the faces of the asynchronous app share",
        "usual_action": "what the faces of the asynchronous app share",
        "retire": "for those who run nodes: `strandline projections retire`, or App.retire",
        "rewind": "for those who run nodes: `strandline projections rewind`, or App.rewind",
        "letters": "for those who run nodes, as `strandline letters`",
        "progress": "for those who run nodes; `strandline projections list` shows it",
        "highest_position": "for those who run or test nodes",
        "import_events": "streams by binary COPY, which only asyncpg does here",
        "read_all": "an asynchronous iterator; scripts over the whole log are asynchronous",
        "writing": "a block of transaction(): live, decide, append with expected",
        "archive": "rare: `strandline streams archive`, or App.archive",
        "unarchive": "rare, as archive",
        "find_many": "query answers several",
        "count": "len(query(...)), or fetch in a transaction",
        "append_prepared": "what the faces of the asynchronous app share",
        "pools": "has one pool of its own",
        "store": "no group commit: appends of threads do not meet",
        "waiting": "polls",
        "opened_runtime": "of the node",
        "on_job": "of the node",
        "job_middleware": "of the node",
        "cron": "of the node: declare it on the asynchronous app, and share its registry",
        "schedule": "of the node, as cron",
        "queue": "of the node, as cron",
        "jobs": "for those who run nodes; `strandline jobs`",
        "queues": "for those who run nodes; `strandline queues`",
        "schedules": "for those who run nodes; `strandline cron`",
        "enqueuer": "no group commit: jobs of threads do not meet",
        "intake": "what the faces of the asynchronous app share",
        "results": "what the faces of the asynchronous app share",
        "wakes": "what the faces of the asynchronous app share",
    },
    "Transaction": {},
}
SAME_BUT_CALLED = {"__aenter__": "__enter__", "__aexit__": "__exit__"}
# Parameters that one of them has alone, and why.
OWN_PARAMETERS = {
    "App.__init__": {"registry": "shares the declarations of an asynchronous app"},
    "App.enqueue_many": {"calls": "no asynchronous iterables"},
    "Transaction.enqueue_many": {"calls": "no asynchronous iterables"},
}


@pytest.mark.parametrize(("one", "twin"), PAIRS, ids=lambda cls: cls.__module__)
def test_the_twin_has_every_method_but_those_it_lacks_on_purpose(one: type, twin: type) -> None:
    missing = _public(one) - _public(twin)

    assert missing == set(LACKS[one.__name__])


@pytest.mark.parametrize(("one", "twin"), PAIRS, ids=lambda cls: cls.__module__)
def test_the_twin_has_nothing_of_its_own(one: type, twin: type) -> None:
    assert _public(twin) - _public(one) == set()


@pytest.mark.parametrize(("one", "twin"), PAIRS, ids=lambda cls: cls.__module__)
def test_shared_methods_take_the_same_and_answer_the_same(one: type, twin: type) -> None:
    names = {name: name for name in _public(one) & _public(twin)}
    if one is strandline.App:
        names |= {"__init__": "__init__"} | SAME_BUT_CALLED

    different = {}
    for name, other in sorted(names.items()):
        own = OWN_PARAMETERS.get(f"{one.__name__}.{name}", {})
        left, right = _signature(one, name, own), _signature(twin, other, own)
        if left != right:
            different[name] = (left, right)

    assert different == {}


def _public(cls: type) -> set[str]:
    return {name for name, _ in inspect.getmembers_static(cls) if not name.startswith("_")}


def _signature(cls: type, name: str, own: dict[str, str]) -> Any:
    member = inspect.getattr_static(cls, name)
    if isinstance(member, property):
        return "property"
    function = inspect.unwrap(member)
    if not inspect.isfunction(function):
        return "attribute"
    signature = inspect.signature(function)
    kept = [
        (one.name, one.kind.name, str(one.annotation), repr(one.default))
        for one in signature.parameters.values()
        if one.name not in own
    ]
    answer = re.sub(r"\b(?:Async)?Iterator\b", "Iterator", str(signature.return_annotation))
    return kept, answer
