"""Execution accuracy of text-to-SQL, on the database that each row names."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from luthier.data.conversation import Conversation
from luthier.errors import UserError
from luthier.evaluate.sql import execution_match, open_database


def sql_execution(folder: Path) -> Callable[[str, Conversation], float]:
    """1 if the answer's SQL returns what the reference's does, on the row's own database.

    The row names it in its field ``database``; ``folder`` holds it as .sql, .sqlite or .db.
    """

    @cache
    def connect(name: str) -> Any:
        # Rows come from anywhere; a name is no path.
        if Path(name).name != name or name.startswith(".") or "\0" in name:
            raise UserError(f"'{name}' is not the name of a database in {folder}")
        for ending in (".sql", ".sqlite", ".db"):
            if (file := folder / f"{name}{ending}").is_file():
                return open_database(file)
        raise UserError(f"no database '{name}' (.sql, .sqlite, .db) in {folder}")

    def score(answer: str, row: Conversation) -> float:
        name = row.extra.get("database")
        if not isinstance(name, str):
            raise UserError(
                f"{row.origin}: the row has no 'database' field, which the metric sql_execution needs"
            )
        try:
            return float(execution_match(connect(name), answer, row.reference))
        except ValueError as error:
            raise UserError(f"{row.origin}: the reference query fails: {error}") from None

    return score
