import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF

from luthier.data.conversation import Conversation, Origin
from luthier.evaluate.metrics import chrf, exact_match, make_metrics, rouge_l

PAIRS = [
    ("the cat sat on the mat", "the cat sat on the mat"),
    ("the cat was found under the bed", "the cat was under the bed"),
    ("ls -la", "find . -name x"),
    ("", "find . -name x"),
]


def row(reference: str) -> Conversation:
    messages = ({"role": "user", "content": "q"}, {"role": "assistant", "content": reference})
    return Conversation(Origin("f", 1), messages)


def test_exact_match_forgives_spacing_alone() -> None:
    assert exact_match(" ls  -la\n", row("ls -la")) == 1
    assert exact_match("LS -la", row("ls -la")) == 0


@pytest.mark.parametrize(("answer", "reference"), PAIRS)
def test_scores_are_those_of_the_libraries(answer: str, reference: str) -> None:
    rouge = RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure
    assert rouge_l(answer, row(reference)) == pytest.approx(rouge)
    expected = CHRF().sentence_score(answer, [reference]).score / 100
    assert chrf(answer, row(reference)) == pytest.approx(expected)


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence 6 words, of 7 and of 6.
    assert rouge_l(*_second()) == pytest.approx(2 * (6 / 7) * (6 / 6) / (6 / 7 + 6 / 6))


def _second() -> tuple[str, Conversation]:
    answer, reference = PAIRS[1]
    return answer, row(reference)


def test_metrics_by_name() -> None:
    metrics = make_metrics(["chrf", "exact_match"], None)
    assert list(metrics) == ["chrf", "exact_match"]
    assert metrics["exact_match"]("a", row("a")) == 1
