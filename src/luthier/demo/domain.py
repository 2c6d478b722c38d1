"""What the demo task's databases are made of: columns, tables, and the values they may hold."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """A column and what may stand in it.

    ``kind`` says what can be asked: a "label" names the row, a "category" repeats over rows; "year",
    "measure" and "amount" are numbers, the last of which can be added up. All but categories are
    unique in their table, so that no order has ties.
    """

    name: str
    kind: str
    values: tuple[str, ...]

    @property
    def is_number(self) -> bool:
        """Whether the values are numbers, and stand in SQL without quotes."""
        return self.kind in ("year", "measure", "amount")

    @property
    def sql_type(self) -> str:
        """What SQLite stores."""
        if not self.is_number:
            return "TEXT"
        return "REAL" if "." in self.values[0] else "INTEGER"


@dataclass(frozen=True)
class Table:
    """A table: ``name`` is the plural of ``thing``; its label, "name" or "title", comes first."""

    name: str
    thing: str
    columns: tuple[Column, ...]

    @property
    def label(self) -> Column:
        """The column that names the row."""
        return self.columns[0]

    def of_kind(self, *kinds: str) -> list[Column]:
        """The columns of these kinds."""
        return [column for column in self.columns if column.kind in kinds]


@dataclass(frozen=True)
class Domain:
    """A database to be: one table, or one whose rows each belong to a row of ``parent``."""

    name: str
    table: Table
    parent: Table | None = None

    @property
    def tables(self) -> list[Table]:
        """The table, then its parent."""
        return [self.table] if self.parent is None else [self.table, self.parent]


def table(name: str, thing: str, *columns: Column) -> Table:
    """A table with these columns, the label first."""
    return Table(name, thing, columns)


def label(name: str, firsts: str, seconds: str) -> Column:
    """A label made of one word of each list."""
    pairs = [f"{first} {second}" for first in firsts.split(", ") for second in seconds.split(", ")]
    return Column(name, "label", tuple(pairs))


def category(name: str, values: str) -> Column:
    """A category with these values."""
    return Column(name, "category", tuple(values.split(", ")))


def year(name: str, low: int, high: int) -> Column:
    """A year from ``low`` to ``high``."""
    return Column(name, "year", tuple(map(str, range(low, high + 1))))


def measure(name: str, low: int, high: int, step: int = 1) -> Column:
    """A whole number from ``low`` to ``high`` that it makes no sense to add up."""
    return Column(name, "measure", tuple(map(str, range(low, high + 1, step))))


def amount(name: str, low: int, high: int, step: int = 1) -> Column:
    """A whole number from ``low`` to ``high`` that can be added up."""
    return Column(name, "amount", tuple(map(str, range(low, high + 1, step))))


def price(name: str, low: int, high: int) -> Column:
    """An amount of money with cents, from ``low`` to ``high`` in whole units."""
    return Column(
        name, "amount", tuple(f"{whole}.{c}" for whole in range(low, high) for c in (25, 95))
    )


def person() -> Column:
    """The name of a person."""
    return label(
        "name",
        "Alice, Bruno, Clara, Daniel, Emma, Felix, Grace, Henry, Ivy, Jonas, Laura, Martin",
        "Baker, Carter, Dawson, Fisher, Hughes, Keller, Mason, Porter, Reed, Turner, Walsh, Young",
    )
