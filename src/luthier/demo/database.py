"""Fill a domain's tables with rows, and write them as an SQL script."""

from dataclasses import dataclass
from random import Random

from luthier.demo.domain import Column, Domain, Table

Row = dict[str, str]


@dataclass(frozen=True)
class Database:
    """A domain and the rows of each of its tables by the table's name; every value is text."""

    domain: Domain
    rows: dict[str, list[Row]]

    @property
    def schema(self) -> str:
        """One line per table, as a prompt shows it: ``books(id, title, genre)``."""
        return "\n".join(
            f"{table.name}({', '.join(self.rows[table.name][0])})" for table in self.domain.tables
        )

    @property
    def script(self) -> str:
        """The SQL that creates the tables and inserts their rows."""
        return "\n".join(self._script(table) for table in self.domain.tables)

    def _script(self, table: Table) -> str:
        types = {column.name: column.sql_type for column in table.columns}
        rows = self.rows[table.name]
        # The id and the link to the parent are no columns of the table's own.
        columns = [f"{name} {types.get(name, 'INTEGER')}" for name in rows[0] if name != "id"]
        lines = [
            ", ".join(
                f"'{value}'" if types.get(name) == "TEXT" else value for name, value in row.items()
            )
            for row in rows
        ]
        values = ",\n  ".join(f"({line})" for line in lines)
        return (
            f"CREATE TABLE {table.name} (id INTEGER PRIMARY KEY, {', '.join(columns)});\n"
            f"INSERT INTO {table.name} VALUES\n  {values};\n"
        )


def fill(domain: Domain, rng: Random) -> Database:
    """Draw the rows: 14 to 20 for the table, 8 to 10 for its parent."""
    rows = {domain.table.name: _rows(domain.table, rng.randint(14, 20), rng)}
    if domain.parent is not None:
        parents = _rows(domain.parent, rng.randint(8, 10), rng)
        rows[domain.parent.name] = parents
        for row in rows[domain.table.name]:
            _insert_after_label(row, f"{domain.parent.thing}_id", rng.choice(parents)["id"])
    return Database(domain, rows)


def _rows(table: Table, count: int, rng: Random) -> list[Row]:
    columns = {"id": [str(number) for number in range(1, count + 1)]}
    columns |= {column.name: _values(column, count, rng) for column in table.columns}
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def _values(column: Column, count: int, rng: Random) -> list[str]:
    if column.kind == "category":
        return rng.choices(column.values, k=count)
    return rng.sample(column.values, count)


def _insert_after_label(row: Row, name: str, value: str) -> None:
    number, label, *others = row.items()
    row.clear()
    row.update([number, label, (name, value), *others])
