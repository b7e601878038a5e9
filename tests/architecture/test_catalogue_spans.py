"""What is spanned stands in the catalogue, and what stands there is spanned."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from strandline.telemetry.catalogue import ATTRIBUTES, SPANS

SOURCE = Path(__file__).parents[2] / "src/strandline"
MAKES = {"span", "record"}
OPTIONS = {"links", "parent", "began", "failure"}  # arguments, not attributes
SETS = re.compile(r"(^|\.)(span|stop|found)$")  # what ``set`` is called on
FIXED = {"database"}  # set by the module itself, on each span that lists it


@dataclass(frozen=True)
class Made:
    """One place that makes spans."""

    place: str
    name: str
    attributes: frozenset[str]


def trees() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if "trac" in text or "spanned" in text:
            yield str(path.relative_to(SOURCE)), ast.parse(text)


def keywords(call: ast.Call) -> frozenset[str]:
    assert all(one.arg for one in call.keywords), "attributes are written out, never **given"
    return frozenset(one.arg for one in call.keywords if one.arg and one.arg not in OPTIONS)


def made() -> list[Made]:
    found = []
    for place, tree in trees():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                continue
            of = node.func.value
            if not (isinstance(of, ast.Name) and of.id == "tracing" and node.func.attr in MAKES):
                continue
            name = node.args[0]
            assert isinstance(name, ast.Constant), (
                f"{place}:{node.lineno}: a span's name is literal"
            )
            found.append(Made(f"{place}:{node.lineno}", str(name.value), keywords(node)))
    return found


def set_later() -> dict[str, frozenset[str]]:
    """Attributes by the place where they are set on a span under way."""
    found: dict[str, frozenset[str]] = {}
    for place, tree in trees():
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "set"
                and not node.args
                and SETS.search(ast.unparse(node.func.value))
            ):
                found[f"{place}:{node.lineno}"] = keywords(node)
    return found


MADE = made()


@pytest.mark.parametrize("one", MADE, ids=lambda one: one.place)
def test_every_span_that_is_made_is_in_the_catalogue_with_its_attributes(one: Made) -> None:
    assert one.name in SPANS
    assert one.attributes <= set(SPANS[one.name].attributes)


def test_every_span_of_the_catalogue_is_made() -> None:
    assert {one.name for one in MADE} == set(SPANS)


def test_every_attribute_that_is_set_later_belongs_to_a_span() -> None:
    known = {name for one in SPANS.values() for name in one.attributes}
    assert len(set_later()) > 5  # it finds them
    assert {
        place: sorted(names - known) for place, names in set_later().items() if names - known
    } == {}


def test_every_attribute_of_a_span_is_set_somewhere() -> None:
    later = frozenset().union(*set_later().values())
    for name, span in SPANS.items():
        at_once = frozenset().union(*(one.attributes for one in MADE if one.name == name))
        assert set(span.attributes) - FIXED - at_once - later == set(), name


def test_every_attribute_of_a_span_is_described() -> None:
    for span in SPANS.values():
        assert set(span.attributes) <= set(ATTRIBUTES)


def test_names_and_keys_are_those_of_opentelemetry_or_our_own() -> None:
    standard = {"error.type", "db.system.name", "service.version", "process.runtime.version"}
    for span in SPANS.values():
        assert re.fullmatch(r"strandline(\.[a-z_]+)+", span.name)
        assert span.meaning.strip()
        keys = [ATTRIBUTES[name].key for name in span.attributes]
        assert len(set(keys)) == len(keys)
        for key in keys:
            assert key in standard or re.fullmatch(r"strandline(\.[a-z_]+)+", key), key


def test_a_span_says_what_follows_from_what() -> None:
    for span in SPANS.values():
        if span.parent.startswith("strandline."):
            assert span.parent in SPANS
        if span.role == "consumer" and span.links:
            assert span.parent
