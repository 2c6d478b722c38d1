"""Make the demo task: ``python -m luthier.demo.make_task [--out DIR]``.

Questions about small databases, answered in SQL and scored by running it. No table of the test
databases is in training, so the test asks whether the form of the answers carries over to unseen
schemas; the ways of asking are the same in both. Everything is drawn from a seed: the same files,
byte for byte, each time.
"""

import argparse
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from random import Random

from luthier.demo.database import Database, fill
from luthier.demo.domain import Domain
from luthier.demo.questions import TEMPLATES, Template, ask, draw_slots, weaker_queries
from luthier.demo.train_domains import TRAIN_DOMAINS
from luthier.demo.unseen_domains import UNSEEN_DOMAINS
from luthier.evaluate.sql import execution_match, open_database, run_query
from luthier.files import write_jsonl, write_text

TASK = Path(__file__).parent / "task"
INSTRUCTION = "Write the SQLite query."

_SEED = 20260
_TRAIN_ROWS_A_TEMPLATE = 28
_TEST_ROWS_A_TEMPLATE = 6
# Draws of one row; a few databases have just enough different questions of a kind.
_TRIES = 1000


def make_task(out: Path) -> None:
    """Write ``train.jsonl``, ``test.jsonl`` and ``databases/<name>.sql`` into ``out``.

    Raises:
        UserError: the folder cannot be written.
    """
    _write_part(out, "train", TRAIN_DOMAINS, _TRAIN_ROWS_A_TEMPLATE)
    _write_part(out, "test", UNSEEN_DOMAINS, _TEST_ROWS_A_TEMPLATE)


def is_discriminating(
    connection: sqlite3.Connection, reference: str, tables: Iterable[str]
) -> bool:
    """Whether ``reference`` finds something, and something that no weaker query finds."""
    rows = run_query(connection, reference)
    if not rows or any(value is None for row in rows for value in row):
        return False
    weaker = weaker_queries(reference, tables)
    return not any(execution_match(connection, query, reference) for query in weaker)


def _write_part(out: Path, part: str, domains: Iterable[Domain], rows_a_template: int) -> None:
    sources = []
    for domain in domains:
        database = fill(domain, _rng(domain.name))
        path = out / "databases" / f"{domain.name}.sql"
        write_text(path, database.script)
        sources.append((database, open_database(path)))
    rng, rows = _rng(part), []
    for template in TEMPLATES:
        usable = [source for source in sources if source[0].domain.parent or not template.joins]
        rng.shuffle(usable)
        asked: set[tuple[str, str]] = set()
        for number in range(rows_a_template):
            database, connection = usable[number % len(usable)]
            phrasing = template.phrasings[number % len(template.phrasings)]
            rows.append(_draw_row(template, phrasing, database, connection, asked, rng))
    for _, connection in sources:
        connection.close()
    rng.shuffle(rows)
    write_jsonl(out / f"{part}.jsonl", rows)


def _draw_row(
    template: Template,
    phrasing: str,
    database: Database,
    connection: sqlite3.Connection,
    asked: set[tuple[str, str]],
    rng: Random,
) -> dict[str, str]:
    """A row that is worth scoring and whose SQL was not ``asked`` yet; adds it to ``asked``."""
    name = database.domain.name
    for _ in range(_TRIES):
        question, sql = ask(template, phrasing, draw_slots(database, template.joins, rng))
        if (name, sql) not in asked and is_discriminating(connection, sql, database.rows):
            asked.add((name, sql))
            return {
                "instruction": INSTRUCTION,
                "input": f"{database.schema}\nQuestion: {question}",
                "output": sql,
                "database": name,
                "difficulty": template.difficulty,
            }
    raise AssertionError(f"{name} has no further question of the kind {template.name}")


def _rng(name: str) -> Random:
    # By name, so that a change to one domain leaves the other databases alone.
    return Random(f"{_SEED}:{name}")  # noqa: S311, nothing here is secret


def main() -> None:
    """Write the task into ``--out``."""
    parser = argparse.ArgumentParser(description="Make the demo task.")
    parser.add_argument("--out", type=Path, default=TASK, help="the folder to write into")
    make_task(parser.parse_args().out)


if __name__ == "__main__":
    main()
