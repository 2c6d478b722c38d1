"""The kinds of question in the demo task: how each is asked and the SQL that answers it."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from random import Random

from luthier.demo.database import Database


@dataclass(frozen=True)
class Template:
    """One kind of question: the SQL that answers it and the ways to ask it.

    Both are filled from the same slots (see ``draw_slots``). One that ``joins`` needs two tables.
    """

    name: str
    difficulty: str
    sql: str
    phrasings: tuple[str, ...]
    joins: bool = False


TEMPLATES = (
    Template(
        "lookup",
        "easy",
        "SELECT {fact} FROM {table} WHERE {label} = '{name}'",
        (
            "What is the {fact} of the {thing} {name}?",
            "Give the {fact} of the {thing} {name}.",
            "Find the {fact} for the {thing} called {name}.",
        ),
    ),
    Template(
        "where",
        "easy",
        "SELECT {shown} FROM {table} WHERE {category} = '{value}'",
        (
            "List the {shown} of every {thing} whose {category} is {value}.",
            "What is the {shown} of each {thing} with the {category} {value}?",
            "Show the {shown} for all {things} whose {category} is {value}.",
        ),
    ),
    Template(
        "count",
        "easy",
        "SELECT COUNT(*) FROM {table} WHERE {category} = '{value}'",
        (
            "How many {things} have the {category} {value}?",
            "Count the {things} whose {category} is {value}.",
            "What is the number of {things} with the {category} {value}?",
        ),
    ),
    Template(
        "distinct",
        "easy",
        "SELECT DISTINCT {category} FROM {table}",
        (
            "List each different {category} of the {things} once.",
            "What are the distinct values of {category} among the {things}?",
            "Which different values of {category} do the {things} have?",
        ),
    ),
    Template(
        "compare",
        "medium",
        "SELECT {label} FROM {table} WHERE {number} {sign} {limit}",
        (
            "List the {label} of every {thing} whose {number} is {beyond} {limit}.",
            "What is the {label} of each {thing} with the {number} {beyond} {limit}?",
            "Find the {things} whose {number} is {beyond} {limit} and show the {label}.",
        ),
    ),
    Template(
        "between",
        "medium",
        "SELECT {label} FROM {table} WHERE {number} BETWEEN {low} AND {high}",
        (
            "List the {label} of every {thing} whose {number} is between {low} and {high}.",
            "What is the {label} of each {thing} with the {number} from {low} to {high}?",
            "Which {things} have the {number} between {low} and {high}? Show the {label}.",
        ),
    ),
    Template(
        "like",
        "medium",
        "SELECT {label} FROM {table} WHERE {label} LIKE '{pattern}'",
        (
            "List the {label} of every {thing} whose {label} {matches}.",
            "Which {things} have a {label} that {matches}?",
            "Find each {label} of the {things} that {matches}.",
        ),
    ),
    Template(
        "order",
        "medium",
        "SELECT {label} FROM {table} ORDER BY {number} {direction}",
        (
            "List the {label} of all {things} by {number}, {most} first.",
            "Show the {label} of every {thing} sorted by {number}, starting with the {most}.",
            "Order the {things} by {number} with the {most} first and give the {label}.",
        ),
    ),
    Template(
        "extreme",
        "medium",
        "SELECT {label} FROM {table} ORDER BY {number} {direction} LIMIT 1",
        (
            "Which {thing} has the {most} {number}?",
            "What is the {label} of the {thing} with the {most} {number}?",
            "Find the {thing} that has the {most} {number}.",
        ),
    ),
    Template(
        "aggregate",
        "medium",
        "SELECT {function}({number}) FROM {table} WHERE {category} = '{value}'",
        (
            "What is the {average} {number} of the {things} whose {category} is {value}?",
            "Find the {average} {number} for {things} with the {category} {value}.",
            "Give the {average} {number} over all {things} whose {category} is {value}.",
        ),
    ),
    Template(
        "both",
        "hard",
        "SELECT {label} FROM {table} WHERE {category} = '{value}' AND {number} {sign} {limit}",
        (
            "Which {things} have the {category} {value} and the {number} {beyond} {limit}?",
            "List the {label} of every {thing} whose {category} is {value} and whose {number} is {beyond} {limit}.",
            "Find the {things} with the {category} {value} whose {number} is {beyond} {limit}.",
        ),
    ),
    Template(
        "group",
        "hard",
        "SELECT {category}, COUNT(*) FROM {table} GROUP BY {category}",
        (
            "How many {things} are there for each {category}?",
            "Count the {things} per {category}.",
            "Show every {category} with its number of {things}.",
        ),
    ),
    Template(
        "join",
        "hard",
        "SELECT {table}.{label} FROM {table} JOIN {parent} ON {table}.{owner}_id = {parent}.id"
        " WHERE {parent}.{trait} = '{known}'",
        (
            "List the {label} of every {thing} whose {owner} has the {trait} {known}.",
            "What is the {label} of each {thing} where the {trait} of the {owner} is {known}?",
            "Show the {things} that belong to the {owner} with the {trait} {known}.",
        ),
        joins=True,
    ),
    Template(
        "join_count",
        "hard",
        "SELECT COUNT(*) FROM {table} JOIN {parent} ON {table}.{owner}_id = {parent}.id"
        " WHERE {parent}.{trait} = '{known}'",
        (
            "How many {things} have the {owner} with the {trait} {known}?",
            "Count the {things} whose {owner} has the {trait} {known}.",
            "What is the number of {things} where the {trait} of the {owner} is {known}?",
        ),
        joins=True,
    ),
)

# The words for more, less, most and least of a number; a year has its own.
_COMPARISONS = {"year": ("after", "before", "latest", "earliest")}
_OTHER_COMPARISONS = ("above", "below", "highest", "lowest")

# What turns a query into one that ignores part of its question.
_WEAKENINGS = [
    (r" WHERE .*?(?= GROUP BY| ORDER BY|$)", ""),
    (r"WHERE .* AND ", "WHERE "),
    (r" AND .*", ""),
    (r" ORDER BY \w+ \w+", ""),
    (r" LIMIT 1", ""),
    (r" GROUP BY \w+", ""),
    (r"DISTINCT ", ""),
    (r"\bASC\b", "DESC"),
    (r"\bDESC\b", "ASC"),
    (r"<", ">"),
    (r">", "<"),
]


def ask(template: Template, phrasing: str, slots: dict[str, str]) -> tuple[str, str]:
    """The question in words and the SQL that answers it."""
    # Only names of columns hold underscores: "birth_year" is read as "birth year".
    words = {slot: text.replace("_", " ") for slot, text in slots.items()}
    return phrasing.format(**words), template.sql.format(**slots)


def draw_slots(database: Database, joins: bool, rng: Random) -> dict[str, str]:
    """Draw what fills a template: a table of ``database`` with columns, values and words of it."""
    domain = database.domain
    table = domain.table if joins else rng.choice(domain.tables)
    rows = database.rows[table.name]
    label = table.label.name
    category = rng.choice(table.of_kind("category")).name
    number = rng.choice([column for column in table.columns if column.is_number])
    low, high = sorted(rng.sample([row[number.name] for row in rows], 2), key=float)
    more, less, most, least = _COMPARISONS.get(number.kind, _OTHER_COMPARISONS)
    first, last = rng.choice(rows)[label].split(" ")
    slots = {
        "table": table.name,
        "things": table.name,
        "thing": table.thing,
        "label": label,
        "name": rng.choice(rows)[label],
        "fact": rng.choice(table.columns[1:]).name,
        "shown": rng.choice([column.name for column in table.columns if column.name != category]),
        "category": category,
        "value": rng.choice(rows)[category],
        "number": number.name,
        "limit": rng.choice(rows)[number.name],
        "low": low,
        "high": high,
    }
    slots["sign"], slots["beyond"] = rng.choice([(">", more), ("<", less)])
    slots["direction"], slots["most"] = rng.choice([("DESC", most), ("ASC", least)])
    slots["pattern"], slots["matches"] = rng.choice(
        [(f"{first}%", f"starts with {first}"), (f"%{last}%", f"contains {last}")]
    )
    functions = [("AVG", "average")] + [("SUM", "total")] * (number.kind == "amount")
    slots["function"], slots["average"] = rng.choice(functions)
    if domain.parent is not None:
        trait = rng.choice(domain.parent.of_kind("label", "category")).name
        slots["parent"], slots["owner"] = domain.parent.name, domain.parent.thing
        slots["trait"], slots["known"] = trait, rng.choice(database.rows[domain.parent.name])[trait]
    return slots


def weaker_queries(sql: str, tables: Iterable[str]) -> Iterator[str]:
    """Queries that ask less than ``sql`` does; a reference worth scoring differs from them all."""
    for table in tables:
        yield f"SELECT * FROM {table}"  # noqa: S608, the names are ours
        yield f"SELECT COUNT(*) FROM {table}"  # noqa: S608
    for pattern, replacement in _WEAKENINGS:
        weaker = re.sub(pattern, replacement, sql)
        if weaker != sql:
            yield weaker
