"""Table projections: declared as columns and rules, executed as sets inside PostgreSQL.

    @app.projection("balances", version=1)
    class Balances(sl.Table):
        account = sl.column(UUID, key="account")
        balance = sl.column(int, default=0)
        events = sl.column(int, default=0)
        last = sl.column(int)
        rules = (
            sl.on(AccountOpened, events=sl.count(), last=sl.POSITION),
            sl.on(MoneyDeposited, balance=sl.add("amount"), events=sl.count(), last=sl.POSITION),
            sl.on(MoneyWithdrawn, balance=sl.subtract("amount"), events=sl.count(), last=sl.POSITION),
            sl.on(AccountClosed, delete=True),
        )

Nothing passes through Python: events are read, folded and stored by one statement a page. The rules:

* One row per tenant and key. An event whose key is null, or has no such field, is passed over by
  that rule. Rules apply in the order of positions, those of one event in the order written.
* A field that is missing in the JSON is what the class declares as its default; else it is null.
* Setting null gives the column its default, NULL without one. add, least, greatest and first pass
  null over. A column that starts NULL and is added to starts from the first value added.
* A value that cannot be cast to the column's type fails as ``ApplyFailed``. Of values that are set,
  only those that stay at the end of a page are read.
* Sums of floats may differ in the last digits with the size of pages; take int or Decimal for money.
* Upcasters are Python and cannot run here: an event with one cannot have its fields read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from strandline.errors import InvalidDefinition
from strandline.events.codec import EventTypes
from strandline.projections.projection import Lifecycle, Projection
from strandline.projections.table_rules import (
    Change,
    Column,
    Declared,
    How,
    Rule,
    as_change,
    declared_column,
    refuse_change,
    refuse_mix,
)
from strandline.projections.table_values import Value


@dataclass(frozen=True, slots=True, eq=False)
class Line:
    """A rule for one event class.

    Attributes:
        number: From 1, in the order written.
        lane: How many rules for the same class come before it: an event is read once for each lane.
    """

    number: int
    lane: int
    cls: type[Any]
    names: tuple[str, ...]
    delete: bool
    keys: dict[str, Value]
    changes: dict[str, Change]


class Table(Projection):
    """A table of your own columns, filled by rules; see the module's example.

    Attributes:
        rules: What events do, made by ``sl.on``.
        indexes: Columns to index besides the key, e.g. ``("balance", "country, city")``.
    """

    kind: ClassVar[str] = "table"
    rules: ClassVar[Sequence[Rule]] = ()
    _declared: ClassVar[dict[str, Declared]] = {}

    columns_of_table: tuple[Column, ...]
    lines: tuple[Line, ...]

    def __init_subclass__(cls, **options: Any) -> None:
        """Take the columns out of the class: one may be called ``name`` or ``version``."""
        super().__init_subclass__(**options)
        own = {name: one for name, one in vars(cls).items() if isinstance(one, Declared)}
        for name in own:
            delattr(cls, name)
        cls._declared = {**cls._declared, **own}

    @property
    def table(self) -> str:
        """See ``Projection``."""
        return f"table_{self.name}_v{self.version}"

    @property
    def keys(self) -> tuple[Column, ...]:
        """The key columns."""
        return tuple(one for one in self.columns_of_table if one.key is not None)

    @property
    def values(self) -> tuple[Column, ...]:
        """The columns that are not keys."""
        return tuple(one for one in self.columns_of_table if one.key is None)

    @property
    def event_classes(self) -> tuple[type[Any], ...]:
        """The event classes it handles."""
        return tuple(dict.fromkeys(line.cls for line in self.lines))

    def bind(self, types: EventTypes, names: Mapping[str, Any] | None) -> None:
        """See ``Projection``.

        Raises:
            InvalidDefinition: A column or rule cannot work; the message says which and why.
        """
        what = f"projection {self.name!r}"
        if self.lifecycle is Lifecycle.LIVE:
            raise InvalidDefinition(f"{what}: a table is stored; it is inline or async, not live")
        try:
            self.columns_of_table = tuple(
                declared_column(name, one) for name, one in self._declared.items()
            )
            if not self.keys:
                raise InvalidDefinition(
                    'no key: say which row an event belongs to, as sl.column(str, key="field")'
                )
            self._check_indexes()
            self.lines = self._lines(types)
            self._check_mixes()
        except InvalidDefinition as error:
            raise InvalidDefinition(f"{what}: {error}") from None

    def _lines(self, types: EventTypes) -> tuple[Line, ...]:
        lines: list[Line] = []
        lanes: dict[type[Any], int] = {}
        for rule in self.rules:
            if not isinstance(rule, Rule) or not rule.events:
                raise InvalidDefinition("rules are made by sl.on(EventClass, ...)")
            for cls in rule.events:
                lane = lanes[cls] = lanes.get(cls, -1) + 1
                try:
                    lines.append(self._line(rule, cls, types, (len(lines) + 1, lane)))
                except InvalidDefinition as error:
                    name = getattr(cls, "__name__", repr(cls))
                    raise InvalidDefinition(f"on {name}: {error}") from None
        if not lines:
            raise InvalidDefinition("no rules: say what events do, as rules = (sl.on(...), ...)")
        return tuple(lines)

    def _line(self, rule: Rule, cls: type[Any], types: EventTypes, number: tuple[int, int]) -> Line:
        if cls not in types.names:
            raise InvalidDefinition(
                "it is not a registered event: decorate it with @app.event first"
            )
        unknown = set(rule.given) - {one.name for one in self.columns_of_table}
        if unknown:
            known = ", ".join(one.name for one in self.columns_of_table)
            raise InvalidDefinition(f"no column {min(unknown)!r}; the columns: {known}")
        keys = {one.name: self._key(one, rule, cls) for one in self.keys}
        changes = {}
        for column in self.values:
            if column.name in rule.given:
                if rule.delete:
                    raise InvalidDefinition(f"{column.name}: the row is deleted, nothing is set")
                changes[column.name] = self._change(column, rule, cls)
        read = [*keys.values(), *(one.value for one in changes.values())]
        stored = types.stored_names(cls)
        upcast = types.upcast_names.intersection(stored)
        if upcast and any(one.reads_data for one in read):
            raise InvalidDefinition(
                f"events stored as {min(upcast)!r} have an upcaster, which cannot run inside"
                " PostgreSQL: use sl.SingleStream, sl.MultiStream or sl.Sql"
            )
        return Line(*number, cls, stored, rule.delete, keys, changes)

    def _key(self, column: Column, rule: Rule, cls: type[Any]) -> Value:
        change = as_change(rule.given.get(column.name, column.key))
        try:
            if change.how is not How.SET:
                raise InvalidDefinition("a key is taken from the event, nothing is done to it")
            change.value.check(cls, column.type)
        except InvalidDefinition as error:
            raise InvalidDefinition(f"key {column.name!r}: {error}") from None
        return change.value

    def _change(self, column: Column, rule: Rule, cls: type[Any]) -> Change:
        change = as_change(rule.given[column.name])
        try:
            refuse_change(column, change, cls)
        except InvalidDefinition as error:
            raise InvalidDefinition(f"column {column.name!r}: {error}") from None
        return change

    def _check_mixes(self) -> None:
        for column in self.values:
            changes = [
                line.changes[column.name] for line in self.lines if column.name in line.changes
            ]
            try:
                refuse_mix(column, changes)
            except InvalidDefinition as error:
                raise InvalidDefinition(f"column {column.name!r}: {error}") from None

    def _check_indexes(self) -> None:
        known = {one.name for one in self.columns_of_table}
        if isinstance(self.indexes, str):
            raise InvalidDefinition(f"indexes is a tuple, as in indexes = ({self.indexes!r},)")
        for index in self.indexes:
            unknown = [name for name in index_columns(index) if name not in known]
            if unknown:
                raise InvalidDefinition(f"index {index!r}: no column {unknown[0]!r}")


def index_columns(index: str | Sequence[str]) -> list[str]:
    """The columns of an index written ``"country, city"`` or ``("country", "city")``."""
    return [name.strip() for name in (index.split(",") if isinstance(index, str) else index)]
