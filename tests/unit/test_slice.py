"""Slices: names of shards, and which slice a key is in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from strandline.app import App
from strandline.errors import InvalidDefinition
from strandline.projections.handlers import apply
from strandline.projections.single_stream import SingleStream
from strandline.projections.slice import WHOLE, parsed, slices

LABELS = st.from_regex(r"[a-z][a-z0-9_]{0,5}(:v[1-9])?", fullmatch=True)


@given(label=LABELS, parts=st.integers(1, 40), data=st.data())
def test_a_shards_name_tells_its_label_and_its_slice(label: str, parts: int, data: Any) -> None:
    one = data.draw(st.sampled_from(slices(parts)))

    assert parsed(one.shard(label)) == (label, one)


def test_names_of_shards() -> None:
    assert WHOLE.shard("orders:v2") == "orders:v2:all"
    assert [one.shard("notifier") for one in slices(2)] == ["notifier:1/2", "notifier:2/2"]


@pytest.mark.parametrize(
    "name", ["orders", "orders:", "orders:0/2", "orders:3/2", "o:1/1", "o:x/2"]
)
def test_what_is_no_shards_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"no shard's name|invalid literal"):
        parsed(name)


@given(tenant=st.text(max_size=5), key=st.text(max_size=20), parts=st.integers(1, 60))
def test_every_key_is_in_exactly_one_slice(tenant: str, key: str, parts: int) -> None:
    assert sum(one.holds(tenant, key) for one in slices(parts)) == 1


@pytest.mark.parametrize("parts", [2, 3, 8, 10, 16, 64])
@pytest.mark.parametrize("shape", ["{}", "customer-{:06}", "{:08x}", "eu/{}/orders"])
def test_numbered_keys_spread_evenly(parts: int, shape: str) -> None:
    keys = [shape.format(number) for number in range(200 * parts)]

    found = Counter(one.part for key in keys for one in slices(parts) if one.holds("default", key))

    assert len(found) == parts
    assert max(found.values()) < 300
    assert min(found.values()) > 120


def test_the_slice_of_a_key_never_changes() -> None:
    """Checkpoints in databases depend on it."""
    found = [
        next(one.part for one in slices(8) if one.holds(tenant, key))
        for tenant, key in [("default", "ada"), ("default", "bo"), ("t2", "ada"), ("", "é\0")]
    ]

    assert found == [7, 2, 4, 8]


@dataclass(frozen=True)
class Ticked:
    number: int = 0


@dataclass
class Seen:
    count: int = 0


class Counts(SingleStream[Seen]):
    @apply
    def ticked(self, seen: Seen, event: Ticked) -> None:
        seen.count += 1


def app() -> App:
    made = App("slices", "postgresql:///nowhere")
    made.event("ticked")(Ticked)
    return made


@pytest.mark.parametrize("shards", [0, -1, 1001, True, 1.5, "8", None])
def test_a_number_of_shards_that_cannot_be_is_refused(shards: Any) -> None:
    async def notify(batch: Any) -> None: ...

    with pytest.raises(InvalidDefinition, match="is not 1 to 1000"):
        app().projection("counts", shards=shards)(Counts)
    with pytest.raises(InvalidDefinition, match="is not 1 to 1000"):
        app().subscription("notifier", shards=shards)(notify)


@pytest.mark.parametrize("lifecycle", ["inline", "live"])
def test_what_no_node_runs_cannot_be_cut(lifecycle: str) -> None:
    app().projection("counts", lifecycle=lifecycle)(Counts)
    with pytest.raises(InvalidDefinition, match="shards=2 is for what nodes run"):
        app().projection("counts", lifecycle=lifecycle, shards=2)(Counts)


def test_an_app_knows_the_labels_and_shards_that_its_nodes_run() -> None:
    made = app()
    made.projection("counts", version=3, shards=2)(Counts)
    made.projection("live", lifecycle="live")(type("Live", (Counts,), {}))

    @made.subscription("notifier")
    async def notify(batch: Any) -> None: ...

    assert made.registry.labels() == ["counts:v3", "notifier"]
    assert made.registry.shards() == ["counts:v3:1/2", "counts:v3:2/2", "notifier:all"]
    assert made.registry.labels_of([notify, Counts, "live"]) == ["notifier", "counts:v3"]
    assert made.registry.label(notify) == "notifier"
