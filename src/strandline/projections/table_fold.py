"""Composes the fragments that make table.sql's fold into the fold of one table.

``l`` is a line (an event under a rule), ``g`` a key with what its lines came to, ``old`` its row so
far, ``x`` where it was reset, ``w1`` the event that set a column last. A *place* orders lines: the
position, and the lane behind it where one event has several rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from strandline.postgres.statements import quoted
from strandline.projections.column_types import constant_sql, safe_literal
from strandline.projections.event_fields import Kind
from strandline.projections.slice import Slice
from strandline.projections.table_declaration import Line, Table
from strandline.projections.table_rules import Change, Column, How, is_text
from strandline.projections.table_values import POSITION

Build = Callable[[Line], str | None]

LONGEST_NAME = 1000  # bytes of a row's name; an index entry of the letters cannot have 2700


@dataclass(frozen=True, slots=True)
class Within:
    """The rows that a build of a part is about: of one tenant, or of that tenant by their names."""

    tenant: str | None = None
    names: tuple[str, ...] = ()


EVERY_ROW = Within()


class Fold:
    """The fragments of one table, found by ``fragments``."""

    def __init__(self, table: Table, within: Within = EVERY_ROW) -> None:
        self.table = table
        self.within = within
        self.lines = table.lines
        self.lanes = 1 + max(line.lane for line in table.lines)
        self.changing = [line for line in table.lines if not line.delete]
        self.ending = [line for line in table.lines if line.delete]
        self.key_names = [f"k{n}" for n in range(1, len(table.keys) + 1)]
        self.line_values: dict[str, str] = {}  # expression → name, as the other two
        self.aggregates: dict[str, str] = {}
        self.resets: dict[str, str] = {}
        self.resetting: set[int] = set()
        self.winners: list[str] = []
        self.places: dict[str, str] = {}

    def fragments(self) -> dict[str, str]:
        """What stands for the names in the statement ``fold_events``."""
        keys = self.table.keys
        made_keys = [
            f"{self._key(one)} AS {name}" for one, name in zip(keys, self.key_names, strict=True)
        ]
        if self.ending:
            self._reset("ended", self.ending)
        results = [f"g.{name}" for name in self.key_names]
        results += [self._result(column) for column in self.table.values]
        line_keys = ", ".join(f"l.{name}" for name in self.key_names)
        names = [quoted(one.name) for one in (*keys, *self.table.values)]
        return {
            "kept": "MATERIALIZED" if self.resets else "NOT MATERIALIZED",
            "place": "e.position" if self.lanes == 1 else f"e.position * {self.lanes} + lane.lane",
            "rule": self._rule(),
            "lanes": self._lane_source(),
            "types": self._types(),
            "line_values": _comma([*made_keys, *_named(self.line_values)]),
            "line_keys": line_keys,
            "has_key": self._has_key(),
            "resets": ", ".join(_named(self.resets)) or "true",
            "resetting": _is(sorted(self.resetting)) if self.resetting else "true",
            "reset_join": self._reset_join(),
            "after_end": " AND (x.ended IS NULL OR l.place >= x.ended)" if self.ending else "",
            "alive": "coalesce(max(l.place) > max(x.ended), true)" if self.ending else "true",
            "anew": "max(x.ended) IS NOT NULL" if self.ending else "false",
            "aggregates": _comma(_named(self.aggregates)),
            "winners": "".join(self.winners),
            "same_key": self._same_key(),
            "columns": ", ".join(names),
            "key_columns": ", ".join(quoted(one.name) for one in keys),
            "results": ", ".join(results),
            "on_conflict": self._on_conflict(),
        }

    def slice(self, part: Slice) -> str:
        """The condition that a line's row is this fold's: asked before any other value is read."""
        return self.mine(part, self._types(), [self._key(one) for one in self.table.keys])

    def mine(self, part: Slice, types: str, keys: Sequence[str]) -> str:
        """The condition that the row under *keys* is in *part*, and within what is built."""
        within, found = self.within, in_slice(part, types, keys)
        if within.tenant is not None:
            found += f"\n       AND e.tenant = {safe_literal(within.tenant)}"
        if within.names:
            mine = f"{row_name(self.table.keys, keys)} = ANY ({array(within.names)})"
            found += f"\n       AND CASE WHEN e.type = ANY ({types}) THEN {mine} ELSE false END"
        return found

    def named(self, number: int, *, spared: bool = False) -> str:
        """The condition that a line's row is named in the parameters *number* and the next."""
        return named_rows(number, self._types(), self._name(), spared=spared)

    def touched(self) -> dict[str, str]:
        """What stands for the names in statements about the rows that events touch."""
        keyed = " AND ".join(f"({self._key(one)}) IS NOT NULL" for one in self.table.keys)
        return {
            "types": self._types(),
            "lanes": self._lane_source(),
            "rule": self._rule(),
            "row": self._name(),
            "keyed": keyed,
        }

    def _rule(self) -> str:
        return self._by_rule(lambda line: str(line.number), "e") or "0"

    def _name(self) -> str:
        return row_name(self.table.keys, [self._key(one) for one in self.table.keys])

    def _types(self) -> str:
        return array(name for line in self.lines for name in line.names)

    def _key(self, column: Column) -> str:
        made = self._by_rule(
            lambda line: line.keys[column.name].sql(line.cls, column.type, "e"), "e"
        )
        return made or "NULL"

    def _lane_source(self) -> str:
        if self.lanes == 1:
            return ""
        numbers = ", ".join(f"({lane})" for lane in range(self.lanes))
        return f" CROSS JOIN (VALUES {numbers}) AS lane(lane)"

    def _has_key(self) -> str:
        named = [f"l.{name} IS NOT NULL" for name in self.key_names]
        return " AND ".join(["l.rule IS NOT NULL", *named] if self.lanes > 1 else named)

    def _same_key(self) -> str:
        pairs = zip(self.table.keys, self.key_names, strict=True)
        return " AND ".join(f"t.{quoted(one.name)} = g.{name}" for one, name in pairs)

    def _reset_join(self) -> str:
        if not self.resets:
            return ""
        same = " AND ".join(f"x.{name} = l.{name}" for name in ["tenant", *self.key_names])
        return f" LEFT JOIN reset x ON {same}"

    def _on_conflict(self) -> str:
        names = [quoted(one.name) for one in self.table.values]
        if not names:
            return "NOTHING"
        return "UPDATE SET " + ", ".join(f"{name} = excluded.{name}" for name in names)

    def _by_rule(self, build: Build, row: str, lane: str = "lane.lane") -> str | None:
        """One expression that is, for each line, what *build* answers for its rule."""
        lanes = []
        for number in range(self.lanes):
            mine = [line for line in self.lines if line.lane == number]
            made = {line: build(line) for line in mine}
            lanes.append(_case(f"{row}.type", made, all_types=number == 0))
        if self.lanes == 1:
            return lanes[0]
        cases = [f"WHEN {number} THEN {one}" for number, one in enumerate(lanes) if one is not None]
        return f"CASE {lane} {' '.join(cases)} END" if cases else None

    def _result(self, column: Column) -> str:
        """The column's new value: where it starts, then what was done to it."""
        by_line = {
            line.number: (line, line.changes[column.name])
            for line in self.changing
            if column.name in line.changes
        }
        setting = [line for line, change in by_line.values() if change.how is How.SET]
        doing = {line: change for line, change in by_line.values() if change.how is not How.SET}
        start = self._default(column, f"old.{quoted(column.name)}")
        if not by_line:
            return start
        guard = ""
        if setting:
            start = self._set(column, setting, start)
            if doing:
                guard = self._set_anew(setting)
        return self._done(column, doing, start, guard) if doing else start

    def _default(self, column: Column, found: str) -> str:
        if column.default is None:
            return found
        return f"coalesce({found}, {constant_sql(column.default, column.type)})"

    def _set_anew(self, setting: list[Line]) -> str:
        """Lines that set the column end what was done to it before; the condition for the rest."""
        name = self._reset(f"s{len(self.resets)}", setting)
        return f"(x.{name} IS NULL OR l.place > x.{name})"

    def _set(self, column: Column, setting: list[Line], start: str) -> str:
        """The value that was set last, else *start*."""
        place = self._aggregate(f"max(l.place){_filter([self._unless_all(setting)])}")
        values = {line: line.changes[column.name] for line in setting}
        if all(one.value == POSITION for one in values.values()):
            found = f"{self._position_of(place)}::{column.type.cast}"
        else:
            found = self._won(column, values, place)
        found = self._default(column, found)
        if len(setting) == len(self.changing):
            return found
        return f"CASE WHEN {place} IS NULL THEN {start} ELSE {found} END"

    def _done(self, column: Column, doing: dict[Line, Change], start: str, guard: str) -> str:
        how = next(iter(doing.values())).how
        if all(one.how is How.COUNT for one in doing.values()):
            count = self._aggregate(f"count(*){_filter([self._unless_all(list(doing)), guard])}")
            if column.required:
                return f"({start} + {count})::{column.type.sql}"
            return f"coalesce({start} + {count}, {start}, nullif({count}, 0))::{column.type.sql}"
        value = self._line_value(column, doing)
        if how is How.FIRST:
            place = self._aggregate(f"min(l.place){_filter([f'{value} IS NOT NULL', guard])}")
            return f"coalesce({start}, {self._won(column, doing, place)})"
        if how in (How.LEAST, How.GREATEST):
            collation = ' COLLATE "C"' if is_text(column) else ""
            made = "min" if how is How.LEAST else "max"
            found = self._aggregate(f"{made}({value}{collation}){_filter([guard])}")
            return f"{how}({start}{collation}, {found})"
        total = self._aggregate(f"sum({value}){_filter([guard])}")
        if column.required:
            return f"({start} + coalesce({total}, 0))::{column.type.sql}"
        return f"coalesce({start} + {total}, {start}, {total})::{column.type.sql}"

    def _line_value(self, column: Column, doing: Mapping[Line, Change]) -> str:
        """A value of each line, read where the event is read."""

        def build(line: Line) -> str | None:
            change = doing.get(line)
            if change is None:
                return None
            made = change.value.sql(line.cls, column.type, "e")
            return f"-{made}" if change.negative else made

        made = self._by_rule(build, "e") or "NULL"
        return "l." + self.line_values.setdefault(made, f"v{len(self.line_values) + 1}")

    def _won(self, column: Column, changes: Mapping[Line, Change], place: str) -> str:
        """The value from the event at *place*; only such events are read again."""
        if place not in self.places:
            self.places[place] = name = f"w{len(self.places) + 1}"
            self.winners.append(
                f"\n  LEFT JOIN {{schema}}.events {name} ON {name}.position = {self._position_of(place)}"
                f" AND {name}.position > $1 AND {name}.position <= $2"
            )

        def build(line: Line) -> str | None:
            change = changes.get(line)
            return change.value.sql(line.cls, column.type, self.places[place]) if change else None

        return self._by_rule(build, self.places[place], f"({place} % {self.lanes})") or "NULL"

    def _reset(self, name: str, lines: list[Line]) -> str:
        numbers = [line.number for line in lines]
        self.resetting.update(numbers)
        return self.resets.setdefault(f"max(l.place){_filter([_is(numbers)])}", name)

    def _unless_all(self, lines: list[Line]) -> str:
        """The condition that a line is one of *lines*; empty when every line is."""
        if len(lines) == len(self.lines):
            return ""
        return _is(line.number for line in lines)

    def _position_of(self, place: str) -> str:
        return place if self.lanes == 1 else f"({place} / {self.lanes})"

    def _aggregate(self, made: str) -> str:
        return "g." + self.aggregates.setdefault(made, f"a{len(self.aggregates) + 1}")


def in_slice(part: Slice, types: str, keys: Iterable[str]) -> str:
    """The condition that the row under *keys* of an event's tenant is in *part*; empty for all.

    Equal keys hash alike, however they are written. CASE, since the planner may ask conditions in
    any order, and a key need not be readable in events of other types. Checkpoints depend on this
    expression: it may never change.
    """
    if part.parts == 1:
        return ""
    code = f"hash_record_extended(ROW(e.tenant, {', '.join(keys)}), 0) & 9223372036854775807"
    mine = f"({code}) % {part.parts} = {part.part - 1}"
    return f"\n       AND CASE WHEN e.type = ANY ({types}) THEN {mine} ELSE false END"


def row_name(columns: Sequence[Column], keys: Sequence[str]) -> str:
    """What a row is called where it is parked: its key columns as a JSON array.

    Equal keys have equal names, however they are written and whatever the session's settings are.
    Dead letters depend on this expression.
    """
    plain = [_plain(column, key) for column, key in zip(columns, keys, strict=True)]
    name = f"jsonb_build_array({', '.join(plain)})::text"
    return (
        f"CASE WHEN octet_length({name}) <= {LONGEST_NAME} THEN {name}"
        f" ELSE left({name}, 100) || '... ' || md5({name}) END"
    )


def _plain(column: Column, key: str) -> str:
    if column.type.kind is Kind.DECIMAL:
        return f"trim_scale({key})"
    return f"({key}) AT TIME ZONE 'UTC'" if column.type.kind is Kind.DATETIME else key


def named_rows(number: int, types: str, name: str, *, spared: bool = False) -> str:
    """The condition that a row's tenant and *name* are in the parameters *number* and the next.

    With *spared* they are not among them. CASE, as in ``in_slice``; the subquery depends on no
    line, so that it is hashed once.
    """
    given = f"unnest(${number}::text[], ${number + 1}::text[]) AS n(tenant, name)"
    among = f"{'NOT IN' if spared else 'IN'} (SELECT n.tenant, n.name FROM {given})"
    mine = f"(e.tenant, {name}) {among}"
    return f"\n       AND CASE WHEN e.type = ANY ({types}) THEN {mine} ELSE false END"


def array(names: Iterable[str]) -> str:
    """An SQL array of texts."""
    return f"ARRAY[{', '.join(safe_literal(name) for name in dict.fromkeys(names))}]::text[]"


def _case(subject: str, made: Mapping[Line, str | None], *, all_types: bool) -> str | None:
    """*made* by the event's stored name; without a CASE where it is the same for all."""
    names: dict[str, list[str]] = {}
    for line, expression in made.items():
        if expression is not None:
            names.setdefault(expression, []).extend(line.names)
    if not names:
        return None
    if len(names) == 1 and None not in made.values() and all_types:
        return next(iter(names))
    cases = [f"WHEN {subject} {_among(some)} THEN {one}" for one, some in names.items()]
    return f"CASE {' '.join(cases)} END"


def _among(names: list[str]) -> str:
    texts = [safe_literal(name) for name in names]
    return f"= {texts[0]}" if len(texts) == 1 else f"IN ({', '.join(texts)})"


def _is(numbers: Iterable[int]) -> str:
    return f"l.rule IN ({', '.join(map(str, numbers))})"


def _filter(conditions: Iterable[str]) -> str:
    joined = " AND ".join(one for one in conditions if one)
    return f" FILTER (WHERE {joined})" if joined else ""


def _named(columns: Mapping[str, str]) -> list[str]:
    return [f"{expression} AS {name}" for expression, name in columns.items()]


def _comma(parts: Iterable[str]) -> str:
    return "".join(f", {part}" for part in parts)
