"""How good an answer is, against its reference. All between 0 and 1."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from luthier.data.conversation import Conversation
from luthier.errors import UserError
from luthier.evaluate.sql import execution_match, open_database

Metric = Callable[[str, Conversation], float]


def make_metrics(names: Sequence[str], sql_databases: str | None) -> dict[str, Metric]:
    """The metrics of a recipe by name: each takes an answer and the row it answers."""
    available: dict[str, Callable[[], Metric]] = {
        "exact_match": lambda: exact_match,
        "rouge_l": lambda: rouge_l,
        "chrf": lambda: chrf,
        "sql_execution": lambda: sql_execution(Path(sql_databases or "")),
    }
    return {name: available[name]() for name in names}


def exact_match(answer: str, row: Conversation) -> float:
    """1 if the answer is the reference, spacing aside."""
    return float(answer.split() == row.reference.split())


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)


def rouge_l(answer: str, row: Conversation) -> float:
    """F1 of the longest common subsequence of words (Lin 2004; the rouge-score package)."""
    return float(_rouge().score(row.reference, answer)["rougeL"].fmeasure)


def chrf(answer: str, row: Conversation) -> float:
    """F2 of character n-grams up to 6 (Popović 2015; sacreBLEU), of one answer."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(answer, [row.reference]).score) / 100


def sql_execution(folder: Path) -> Metric:
    """1 if the answer's SQL returns what the reference's does, on the row's own database.

    The row names it in its field ``database``; ``folder`` holds it as .sql, .sqlite or .db.
    """

    @cache
    def connect(name: str) -> Any:
        if (
            Path(name).name != name or name.startswith(".") or "\0" in name
        ):  # rows come from anywhere; a name is no path
            raise UserError(f"'{name}' is not the name of a database in {folder}")
        for ending in (".sql", ".sqlite", ".db"):
            if (file := folder / f"{name}{ending}").is_file():
                return open_database(file)
        raise UserError(f"no database '{name}' (.sql, .sqlite, .db) in {folder}")

    def score(answer: str, row: Conversation) -> float:
        name = row.extra.get("database")
        if not isinstance(name, str):
            raise UserError(f"{row.origin}: no 'database' field for the metric sql_execution")
        try:
            return float(execution_match(connect(name), answer, row.reference))
        except ValueError as error:
            raise UserError(f"{row.origin}: the reference does not run: {error}") from None

    return score
