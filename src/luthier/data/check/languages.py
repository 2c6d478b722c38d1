"""Which languages the answers are in, from a sample."""

from collections import Counter
from functools import cache
from typing import Any

from luthier.data.check.scan import Example, Scan

_LEAST = 60  # characters of running text; less shows no language
_SURE = 0.95  # probability from which a language counts as detected


def judge_languages(scan: Scan) -> dict[str, float]:
    """Shares of the languages of the sampled answers (ISO 639-1); odd ones become findings.

    Code and short answers show no language and are skipped (the classifier is py3langid's: Lui and
    Baldwin 2012).
    """
    told = []
    for row, text in scan.samples:
        letters = sum(c.isalpha() or c.isspace() for c in text)
        if letters < max(_LEAST, 0.8 * len(text)):
            continue
        language, probability = _classifier().classify(text)
        if probability >= _SURE:
            told.append((row, str(language)))
    counts = Counter(language for _, language in told)
    if not counts:
        return {}
    usual, _ = counts.most_common(1)[0]
    for row, language in told:
        if language != usual:
            scan.hit("languages", Example(row, f"{language}; most are {usual}"))
    return {language: n / len(told) for language, n in counts.most_common()}


@cache
def _classifier() -> Any:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
