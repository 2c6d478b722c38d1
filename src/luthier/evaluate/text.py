"""Scores of a text against its reference text, all between 0 and 1."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WORDS = re.compile("[a-z0-9]+")


def exact_match(answer: str, reference: str) -> float:
    """1 if the answer is the reference, spacing aside."""
    return float(answer.split() == reference.split())


def normalise(text: str) -> str:
    """Lower case without punctuation, articles and extra space (SQuAD's ``normalize_answer``).

    Rajpurkar et al. 2016, evaluate-v1.1.py; Unicode is brought to its compatible form before.
    """
    plain = unicodedata.normalize("NFKC", text).lower().translate(_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


def normalised_match(answer: str, reference: str) -> float:
    """1 if both are the same once normalised; a reference of signs alone is compared as it is."""
    wanted = normalise(reference)
    return float(normalise(answer) == wanted) if wanted else exact_match(answer, reference)


def token_f1(answer: str, reference: str) -> float:
    """F1 of the words in common, counted with repetition, once normalised (SQuAD)."""
    got, wanted = normalise(answer).split(), normalise(reference).split()
    if not got or not wanted:
        return normalised_match(answer, reference)
    common = sum((Counter(got) & Counter(wanted)).values())
    return 2 * common / (len(got) + len(wanted))


def rouge(answer: str, reference: str, kind: str = "rougeL") -> float:
    """F1 of words, word pairs or the longest common subsequence (Lin 2004), as rouge-score's.

    Words are runs of a–z and digits in lower case; nothing is stemmed.

    Args:
        kind: ``rouge1``, ``rouge2`` or ``rougeL``.
    """
    got, wanted = (_WORDS.findall(text.lower()) for text in (answer, reference))
    if kind == "rougeL":
        common, counted = _longest_common_subsequence(got, wanted), len(got) + len(wanted)
    else:
        mine, theirs = (
            Counter[Any](words if kind == "rouge1" else pairwise(words)) for words in (got, wanted)
        )
        common, counted = (mine & theirs).total(), mine.total() + theirs.total()
    return 2 * common / counted if common else 0.0


def _longest_common_subsequence(one: Sequence[str], other: Sequence[str]) -> int:
    """Its length, a row of the table at a time, a bit for each word of ``other`` (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for place, word in enumerate(other):
        places[word] = places.get(word, 0) | 1 << place
    row = everything = (1 << len(other)) - 1  # its zeros are the steps by which the length grows
    for word in one:
        met = row & places.get(word, 0)
        row = (row + met | row - met) & everything
    return len(other) - row.bit_count()


def bleu(answer: str, reference: str) -> float:
    """BLEU of one answer, over the n-gram orders it is long enough for (sacreBLEU)."""
    from sacrebleu import sentence_bleu

    return float(sentence_bleu(answer, [reference]).score) / 100


def corpus_bleu(answers: Sequence[str], references: Sequence[str]) -> float:
    """BLEU of all answers together (Papineni et al. 2002; sacreBLEU, Post 2018)."""
    from sacrebleu import corpus_bleu

    # Ready-made command lines look tokenised to it; that warning is irrelevant here.
    return float(corpus_bleu(list(answers), [list(references)], force=True).score) / 100


def chrf(answer: str, reference: str) -> float:
    """F2 of character n-grams up to 6 (Popović 2015; sacreBLEU), of one answer."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(answer, [reference]).score) / 100


def corpus_chrf(answers: Sequence[str], references: Sequence[str]) -> float:
    """chrF of all answers together."""
    from sacrebleu import corpus_chrf

    return float(corpus_chrf(list(answers), [list(references)]).score) / 100
