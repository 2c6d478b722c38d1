"""The demo task as it ships: made by its script, answerable, and fair."""

import json
import re
import subprocess
import sys
from collections import Counter

import pytest

from luthier.demo.make_task import TASK, is_discriminating
from luthier.demo.questions import TEMPLATES
from luthier.demo.train_domains import TRAIN_DOMAINS
from luthier.demo.unseen_domains import UNSEEN_DOMAINS
from luthier.evaluate.sql import execution_match, open_database, run_query

PARTS = {
    part: [json.loads(line) for line in (TASK / f"{part}.jsonl").read_text().splitlines()]
    for part in ("train", "test")
}
ROWS = PARTS["train"] + PARTS["test"]


@pytest.fixture(scope="module")
def connections():
    opened = {path.stem: open_database(path) for path in (TASK / "databases").iterdir()}
    yield opened
    for connection in opened.values():
        connection.close()


def tables(connection):
    names = run_query(connection, "SELECT name FROM sqlite_master WHERE type = 'table'")
    return [name for (name,) in names]


def test_the_script_makes_the_same_files(tmp_path):
    # In a process of its own: nothing may depend on how this one hashes strings.
    command = [sys.executable, "-m", "luthier.demo.make_task", "--out", str(tmp_path)]
    subprocess.run(command, check=True)
    made = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    kept = {p.relative_to(TASK): p.read_bytes() for p in TASK.rglob("*") if p.is_file()}
    assert made == kept


def test_every_kind_of_question_is_asked_as_often():
    assert len(PARTS["train"]) == 28 * len(TEMPLATES)
    assert len(PARTS["test"]) == 6 * len(TEMPLATES)
    by_difficulty = Counter(template.difficulty for template in TEMPLATES)
    for rows in PARTS.values():
        share = len(rows) // len(TEMPLATES)
        assert Counter(row["difficulty"] for row in rows) == {
            name: count * share for name, count in by_difficulty.items()
        }


def test_every_reference_is_worth_scoring(connections):
    for row in ROWS:
        connection = connections[row["database"]]
        assert execution_match(connection, row["output"], row["output"])
        assert is_discriminating(connection, row["output"], tables(connection)), row


def test_an_answer_to_another_question_scores_nothing(connections):
    # One answer for all, or the answer of the row before, must not pass as having learnt.
    for rows in PARTS.values():
        scores = [
            execution_match(connections[row["database"]], other["output"], row["output"])
            for row, other in zip(rows, rows[1:] + rows[:1], strict=True)
        ]
        assert sum(scores) <= 0.02 * len(rows)


def test_is_discriminating_refuses_weak_references(connections):
    books = connections["library"]
    assert not is_discriminating(books, "SELECT title FROM books WHERE id > 99", ["books"])
    assert not is_discriminating(books, "SELECT SUM(year) FROM books WHERE id > 99", ["books"])
    assert not is_discriminating(books, "SELECT title FROM books WHERE id > 0", ["books"])
    assert not is_discriminating(books, "SELECT DISTINCT title FROM books", ["books"])
    assert not is_discriminating(books, "SELECT title FROM books ORDER BY id ASC", ["books"])
    assert not is_discriminating(books, "SELECT nothing FROM books", ["books"])


def test_nothing_crosses_from_training_to_test(connections):
    inputs = Counter(row["input"] for row in ROWS)
    assert inputs.most_common(1)[0][1] == 1
    used = {part: {row["database"] for row in rows} for part, rows in PARTS.items()}
    assert used["train"] == {domain.name for domain in TRAIN_DOMAINS}
    assert used["test"] == {domain.name for domain in UNSEEN_DOMAINS}
    assert set(connections) == used["train"] | used["test"]
    named = {
        part: {table for name in names for table in tables(connections[name])}
        for part, names in used.items()
    }
    assert not used["train"] & used["test"]
    assert not named["train"] & named["test"]


def test_prompts_show_the_schema_as_it_is(connections):
    for row in ROWS:
        *schema, question = row["input"].split("\n")
        assert question.startswith("Question: ")
        connection = connections[row["database"]]
        columns = {
            table: [entry[1] for entry in connection.execute(f"PRAGMA table_info({table})")]
            for table in tables(connection)
        }
        assert schema == [f"{table}({', '.join(names)})" for table, names in columns.items()]


def test_values_asked_for_stand_in_the_question():
    for row in ROWS:
        question = row["input"].split("\n")[-1]
        conditions = row["output"].removesuffix(" LIMIT 1")
        for text, number in re.findall(r"'%?(.*?)%?'|\b(\d[\d.]*)", conditions):
            assert (text or number) in question, row


def test_values_need_no_escape_and_order_has_no_ties(connections):
    for domain in TRAIN_DOMAINS + UNSEEN_DOMAINS:
        for table in domain.tables:
            for column in table.columns:
                query = f"SELECT {column.name} FROM {table.name}"
                values = [value for (value,) in run_query(connections[domain.name], query)]
                assert 8 <= len(values) <= 20
                assert not any("'" in value for value in column.values)
                assert column.kind == "category" or len(set(values)) == len(values)
