"""How good an answer is: the metrics by name, each one number per row."""

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from luthier.data.conversation import Conversation
from luthier.errors import UserError
from luthier.evaluate import text
from luthier.evaluate.classification import find_labels, label_score
from luthier.evaluate.judge import WORKERS, Judge
from luthier.evaluate.sql_metric import sql_execution
from luthier.evaluate.structured import json_valid, schema_metric
from luthier.evaluate.user_metric import UserMetric, load_plugged_metric, load_user_metric
from luthier.recipe import EvaluateGroup

Score = Callable[[str, Conversation], float]
CorpusScore = Callable[[Sequence[str], Sequence[str]], float]


@dataclass(frozen=True)
class Metric:
    """A named score of one answer against its row.

    Attributes:
        label: for people.
        corpus: the score of all answers together, where the field reports that; the mean of rows,
            which intervals and tests need, is another number.
        share: whether it is a share between 0 and 1.
        workers: how many rows may be scored at once, for what waits on others.
    """

    name: str
    label: str
    score: Score
    corpus: CorpusScore | None = None
    higher_is_better: bool = True
    share: bool = True
    workers: int = 1

    def scores(self, answers: Sequence[str], rows: Sequence[Conversation]) -> list[float]:
        """One score per row."""
        if self.workers == 1:
            return [self.score(a, row) for a, row in zip(answers, rows, strict=True)]
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(self.score, answers, rows))


def make_metrics(
    names: Sequence[str],
    settings: EvaluateGroup,
    rows: Sequence[Conversation],
    judged: Path | None = None,
) -> list[Metric]:
    """The metrics of ``names``, and ``accuracy`` besides where the references form a label set.

    Args:
        rows: what will be answered; the label set is found in their references.
        judged: file that keeps a judge's grades, so that none is paid for twice.

    Raises:
        UserError: a file or setting that a metric needs is missing or wrong.
    """
    labels = find_labels([row.reference for row in rows])
    named = list(names)
    if labels and "accuracy" not in named:
        named.append("accuracy")
    available: dict[str, Callable[[], Metric]] = {
        "exact_match": lambda: Metric("exact_match", "exact match", _of_text(text.exact_match)),
        "normalised_match": lambda: Metric(
            "normalised_match", "normalised match", _of_text(text.normalised_match)
        ),
        "token_f1": lambda: Metric("token_f1", "token F1", _of_text(text.token_f1)),
        "rouge_1": lambda: _rouge("1"),
        "rouge_2": lambda: _rouge("2"),
        "rouge_l": lambda: _rouge("L"),
        "bleu": lambda: Metric("bleu", "BLEU", _of_text(text.bleu), text.corpus_bleu),
        "chrf": lambda: Metric("chrf", "chrF", _of_text(text.chrf), text.corpus_chrf),
        "accuracy": lambda: Metric("accuracy", "accuracy", label_score(labels)),
        "json_valid": lambda: Metric("json_valid", "valid JSON", json_valid),
        "json_schema": lambda: Metric(
            "json_schema", "meets the schema", schema_metric(Path(settings.json_schema or ""))
        ),
        "sql_execution": lambda: Metric(
            "sql_execution", "SQL execution", sql_execution(Path(settings.sql_databases or ""))
        ),
        "judge": lambda: Metric("judge", "judge", Judge(settings, judged), workers=WORKERS),
    }
    metrics = [available[name]() if name in available else _user(name) for name in named]
    twice = [name for name, count in Counter(m.name for m in metrics).items() if count > 1]
    if twice:
        raise UserError(f"two metrics are named {twice[0]}; give the file another name")
    return metrics


def _of_text(score: Callable[[str, str], float]) -> Score:
    return lambda answer, row: score(answer, row.reference)


def _rouge(kind: str) -> Metric:
    score = partial(text.rouge, kind=f"rouge{kind}")
    return Metric(f"rouge_{kind.lower()}", f"ROUGE-{kind}", _of_text(score))


def _user(name: str) -> Metric:
    if name.endswith(".py"):
        path = Path(name)
        return _as_metric(path.stem, load_user_metric(path))
    return _as_metric(name, load_plugged_metric(name))


def _as_metric(name: str, mine: UserMetric) -> Metric:
    return Metric(name, name, mine.score, higher_is_better=mine.higher_is_better, share=False)
