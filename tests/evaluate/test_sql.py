"""Answers in SQL: what is taken from them, what may run, and when two results are the same."""

import sqlite3
import time

import pytest

from luthier.errors import UserError
from luthier.evaluate import sql
from luthier.evaluate.sql import execution_match, extract_sql, open_database, run_query

SCRIPT = """
CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT, genre TEXT, price REAL, stock INTEGER);
INSERT INTO books VALUES
  (1, 'Harbour', 'Crime', 0.1, 3),
  (2, 'Garden', 'Travel', 0.2, 3),
  (3, 'Letter', 'Crime', 0.3, NULL),
  (4, 'River', 'Crime', 8.0, 5);
"""


@pytest.fixture
def books(tmp_path):
    path = tmp_path / "books.sql"
    path.write_text(SCRIPT)
    connection = open_database(path)
    yield connection
    connection.close()


def test_open_script_and_file_hold_the_same(tmp_path, books):
    path = tmp_path / "a file?#%.sqlite"
    with sqlite3.connect(path) as writer:
        writer.executescript(SCRIPT)
    writer.close()
    file = open_database(path)
    assert run_query(file, "SELECT * FROM books") == run_query(books, "SELECT * FROM books")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        file.execute("DELETE FROM books")
    file.close()


@pytest.mark.parametrize("suffix", [".sql", ".sqlite", ".db"])
def test_open_missing(tmp_path, suffix):
    with pytest.raises(UserError, match="no database at"):
        open_database(tmp_path / f"absent{suffix}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.sql", b"CREATE TABLE t (a); INSERT INTO t VALUES ('x", "cannot read the database"),
        ("latin.sql", b"CREATE TABLE t (a); -- \xe9", "cannot read the database"),
        ("empty.sql", b"", "has no table"),
        (
            "noise.db",
            b"this is no database, whatever its name says" * 20,
            "cannot read the database",
        ),
        ("empty.db", b"", "has no table"),
        ("books.csv", b"id,title", "end in .sql, .sqlite or .db"),
    ],
)
def test_open_broken(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_database(path)


def test_script_cannot_write_files(tmp_path):
    path = tmp_path / "script.sql"
    path.write_text(f"ATTACH '{tmp_path / 'made.db'}' AS made; CREATE TABLE made.t (a);")
    with pytest.raises(UserError, match="not authorized"):
        open_database(path)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("answer", "query"),
    [
        ("SELECT 1", "SELECT 1"),
        ("  SELECT 1 ;\nThis counts.", "SELECT 1 ;"),
        ("SELECT 1; DROP TABLE t;", "SELECT 1;"),
        ("Here:\n```sql\nSELECT 1\n```\nor\n```\nSELECT 2\n```", "SELECT 1"),
        ("```\nSELECT 1;\nSELECT 2;\n```", "SELECT 1;"),
        ("```SELECT 1```", "SELECT 1"),
        ("```sql SELECT 1```", "SELECT 1"),
        ("```SELECT\n1```", "SELECT\n1"),
        ("```SQLite\r\nSELECT 1\r\n```", "SELECT 1"),
        ("```sql\nSELECT 1 -- cut off", "SELECT 1 -- cut off"),
        ("SELECT ';' AS a, \";\", `;`; x", "SELECT ';' AS a, \";\", `;`;"),
        ("SELECT 'it''s; fine'; x", "SELECT 'it''s; fine';"),
        ("SELECT 1 -- it's; so\n; x", "SELECT 1 -- it's; so\n;"),
        ("SELECT 1 /* ; */; x", "SELECT 1 /* ; */;"),
        ("SELECT 'open; x", "SELECT 'open; x"),
        ("", ""),
    ],
)
def test_extract_sql(answer, query):
    assert extract_sql(answer) == query


def test_run_query_reads(books):
    assert run_query(books, "SELECT COUNT(*), MAX(stock) FROM books") == [(4, 5)]
    assert run_query(books, "SELECT id FROM books WHERE stock IS NULL;") == [(3,)]
    assert run_query(books, "SELECT id FROM books WHERE id > 9") == []
    counted = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 9) SELECT SUM(x) FROM c"
    assert run_query(books, counted) == [(45,)]


@pytest.mark.parametrize(
    "query",
    [
        "INSERT INTO books (id) VALUES (9)",
        "UPDATE books SET price = 0",
        "DELETE FROM books",
        "DROP TABLE books",
        "CREATE TABLE t (a)",
        "CREATE TEMP TABLE t AS SELECT 1",
        "WITH c AS (SELECT 1) DELETE FROM books",
        "PRAGMA user_version = 3",
        "PRAGMA writable_schema = 1",
        "BEGIN",
        "SAVEPOINT s",
        "REINDEX",
        "SELECT load_extension('x')",
    ],
)
def test_run_query_refuses_all_but_reading(books, query):
    before = "\n".join(books.iterdump())
    assert run_query(books, query) is None
    assert "\n".join(books.iterdump()) == before
    assert not books.in_transaction


def test_run_query_makes_no_file(books, tmp_path):
    before = set(tmp_path.iterdir())
    assert run_query(books, f"ATTACH '{tmp_path / 'made.db'}' AS made") is None
    assert run_query(books, f"VACUUM INTO '{tmp_path / 'made.db'}'") is None
    assert set(tmp_path.iterdir()) == before


def test_run_query_refuses_what_the_connection_ran_before(books):
    # Python keeps prepared statements: one from before the guard must not slip past it.
    query = "UPDATE books SET stock = 1 WHERE id = 1"
    books.execute(query)
    books.commit()
    assert run_query(books, query) is None
    books.execute(query)  # and the guard is gone afterwards


@pytest.mark.parametrize(
    "query",
    [
        "SELEC title FROM books",
        "SELECT nothing FROM books",
        "SELECT 1; SELECT 2",
        "SELECT ?",
        "SELECT 'a\0b'",
        "SELECT '\ud800'",
        "The answer is 4.",
    ],
)
def test_run_query_bad_sql(books, query):
    assert run_query(books, query) is None


@pytest.mark.parametrize(
    "query",
    [
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT COUNT(*) FROM c",
        "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT x FROM c",
        "SELECT COUNT(*) FROM " + ", ".join(f"books AS b{i}" for i in range(20)),
        "SELECT zeroblob(900000000)",
        "SELECT 'a' LIKE hex(zeroblob(40000))",
    ],
)
def test_run_query_is_bounded(books, query):
    start = time.monotonic()
    assert run_query(books, query) is None
    assert time.monotonic() - start < 20
    assert run_query(books, "SELECT 1") == [(1,)]


def test_run_query_gives_all_rows_or_none(books, monkeypatch):
    monkeypatch.setattr(sql, "MAX_ROWS", 4)
    assert len(run_query(books, "SELECT id FROM books")) == 4
    assert run_query(books, "SELECT 1 FROM books UNION ALL SELECT 2") is None


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        # Rows are a multiset.
        ("SELECT genre FROM books", "SELECT genre FROM books ORDER BY genre DESC, id", False),
        ("SELECT id FROM books ORDER BY id DESC", "SELECT id FROM books", True),
        ("SELECT DISTINCT genre FROM books", "SELECT genre FROM books", False),
        ("SELECT genre FROM books WHERE id != 1", "SELECT genre FROM books WHERE id != 2", False),
        # Order counts for an ORDER BY of the reference's own.
        ("SELECT id FROM books ORDER BY id DESC", "SELECT id FROM books ORDER BY id", False),
        ("SELECT id FROM books ORDER BY 0 - id", "SELECT id FROM books order  by id DESC", True),
        (
            "SELECT id FROM books ORDER BY id DESC",
            "SELECT id FROM (SELECT id FROM books ORDER BY id)",
            True,
        ),
        (
            "SELECT id, SUM(id) OVER (ORDER BY id) FROM books ORDER BY id DESC",
            "SELECT id, SUM(id) OVER (ORDER BY id) FROM books",
            True,
        ),
        ("SELECT 'ORDER BY' FROM books", "SELECT 'ORDER BY' FROM books -- ORDER BY id", True),
        ("SELECT id FROM books ORDER BY id DESC", "SELECT id FROM books -- ORDER BY id", True),
        ("SELECT id FROM books", "SELECT id FROM books ORDER /* by */ BY id DESC", False),
        # Tied rows keep the reference's order.
        ("SELECT id FROM books ORDER BY genre", "SELECT id FROM books ORDER BY genre, id", True),
        (
            "SELECT id FROM books ORDER BY genre, id DESC",
            "SELECT id FROM books ORDER BY genre",
            False,
        ),
        # Numbers compare by value, floats with rounding, integers exactly.
        ("SELECT 1", "SELECT 1.0", True),
        ("SELECT SUM(price) FROM books WHERE id < 3", "SELECT 0.3", True),
        ("SELECT 0.1 + 0.2 - 0.3", "SELECT 0", True),
        ("SELECT 1.000002", "SELECT 1.0", False),
        ("SELECT 1000000001", "SELECT 1000000002", False),
        ("SELECT 9e999", "SELECT 9e999", True),
        ("SELECT 9e999", "SELECT -9e999", False),
        (
            "SELECT 0.1 + 0.2, 'a' UNION ALL SELECT 0.3, 'b'",
            "SELECT 0.3, 'a' UNION ALL SELECT 0.1 + 0.2, 'b'",
            True,
        ),
        (
            "SELECT 0.3, 'a' UNION ALL SELECT 0.3, 'a'",
            "SELECT 0.1 + 0.2, 'a' UNION ALL SELECT 0.1 + 0.2, 'b'",
            False,
        ),
        # NULL, text and numbers differ; columns match by position.
        ("SELECT NULL", "SELECT stock FROM books WHERE id = 3", True),
        ("SELECT NULL", "SELECT 0", False),
        ("SELECT '1'", "SELECT 1", False),
        ("SELECT stock FROM books", "SELECT stock AS s FROM books", True),
        (
            "SELECT 1 UNION ALL SELECT 'a' UNION ALL SELECT NULL",
            "SELECT NULL UNION ALL SELECT 1.0 UNION ALL SELECT 'a'",
            True,
        ),
        ("SELECT 1, 2", "SELECT 2, 1", False),
        ("SELECT 1, 2", "SELECT 1", False),
        # The answer goes through extract_sql, and a bad one is no match.
        ("```sql\nSELECT 1;\n```\nas asked", "SELECT 1", True),
        ("I do not know", "SELECT 1", False),
        ("", "SELECT 1", False),
        ("", "SELECT id FROM books WHERE id > 9", False),
        ("DELETE FROM books", "SELECT id FROM books WHERE id > 9", False),
    ],
)
def test_execution_match(books, answer, reference, same):
    assert execution_match(books, answer, reference) is same


def test_execution_match_wants_a_good_reference(books):
    with pytest.raises(ValueError, match="the reference query fails: SELECT nothing FROM books"):
        execution_match(books, "SELECT 1", "SELECT nothing FROM books")
