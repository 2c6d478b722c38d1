"""Answers that are one of a few labels: accuracy, confusion matrix, figures per class."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from luthier.data.conversation import Conversation
from luthier.errors import UserError
from luthier.evaluate.text import normalise
from luthier.records.evaluation import Confusion

NO_LABEL = "(none)"

_MOST_LABELS = 20
_LABEL_LENGTH = 60  # characters
_LEAST_ROWS_A_LABEL = 3  # on average


def find_labels(references: Sequence[str]) -> tuple[str, ...]:
    """The label set that ``references`` form, the most frequent first; empty if they form none.

    At most 20 different short one-line answers, each occurring three times on average. Labels that
    differ in case or signs alone are one.
    """
    if any("\n" in text.strip() or len(text.strip()) > _LABEL_LENGTH for text in references):
        return ()
    spellings = Counter(text.strip() for text in references)
    forms = Counter(_form(text) for text in references)
    by_form = {form: "" for form, _ in forms.most_common()}
    for label, _ in spellings.most_common():
        by_form[_form(label)] = by_form[_form(label)] or label
    many = len(references) < _LEAST_ROWS_A_LABEL * len(by_form)
    if not 2 <= len(by_form) <= _MOST_LABELS or many or "" in by_form:
        return ()
    return tuple(by_form.values())


def answered_label(answer: str, labels: Sequence[str]) -> str | None:
    """The label that ``answer`` gives: all of it, what it begins with, or the one it mentions."""
    forms = {_form(label): label for label in labels}
    said = _form(answer)
    if said in forms:
        return forms[said]
    first_line = _form(answer.strip().partition("\n")[0])
    begins = [form for form in forms if re.match(rf"{re.escape(form)}(?!\w)", first_line)]
    if begins:
        return forms[max(begins, key=len)]
    named = [f for f in forms if re.search(rf"(?<!\w){re.escape(f)}(?!\w)", said)]
    # 'not spam' names 'spam' too: a label inside a longer one that occurs there does not count.
    whole = [f for f in named if not any(f != other and f in other for other in named)]
    return forms[whole[0]] if len(whole) == 1 else None


def label_score(labels: Sequence[str]) -> Callable[[str, Conversation], float]:
    """1 if the answer gives the reference's label.

    Raises:
        UserError: there is no label set.
    """
    if not labels:
        raise UserError(
            "the metric accuracy needs references that form a label set: at most "
            f"{_MOST_LABELS} different short answers, each occurring {_LEAST_ROWS_A_LABEL} times on "
            "average; use exact_match instead for other answers"
        )
    return lambda answer, row: float(
        answered_label(answer, labels) == answered_label(row.reference, labels)
    )


def confusion(answers: Sequence[str], references: Sequence[str]) -> Confusion | None:
    """The confusion matrix of ``answers``; None where the references form no label set."""
    labels = find_labels(references)
    if not labels:
        return None
    place = {label: index for index, label in enumerate(labels)}
    counts = [[0] * (len(labels) + 1) for _ in labels]
    for answer, reference in zip(answers, references, strict=True):
        truth, said = answered_label(reference, labels), answered_label(answer, labels)
        assert truth is not None  # the labels are the references
        counts[place[truth]][len(labels) if said is None else place[said]] += 1
    precision, recall, f1 = [], [], []
    for index in range(len(labels)):
        hits = counts[index][index]
        said_so = sum(row[index] for row in counts)
        truly = sum(counts[index])
        precision.append(hits / said_so if said_so else 0.0)
        recall.append(hits / truly if truly else 0.0)
        f1.append(2 * hits / (said_so + truly) if said_so + truly else 0.0)
    return Confusion(
        labels=labels,
        counts=tuple(tuple(row) for row in counts),
        precision=tuple(precision),
        recall=tuple(recall),
        f1=tuple(f1),
        macro_f1=sum(f1) / len(f1),
    )


def _form(text: str) -> str:
    # Labels such as '+' and '-' are signs alone.
    return normalise(text) or text.strip()
