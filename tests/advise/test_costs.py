"""The table of the ways, by hand."""

from pathlib import Path

import pytest
from helpers import write_rows

from luthier.advise.answers import Answers
from luthier.advise.costs import compare, load_prices
from luthier.advise.from_data import answers_from_data
from luthier.errors import UserError

PRICES = """
api_input: 1
api_output: 2
api_latency: 0.5
api_speed: 100
tuned_input: 0.1
tuned_output: 0.2
tuned_latency: 0.25
tuned_speed: 200
prefill_speed: 1000
training: 3
epochs: 2
embedding: 0.5
corpus_tokens: 1000000
retrieval_latency: 0.125
day: 100
few_shot_days: 1
rag_days: 4
fine_tune_days: 2
example_minutes: 48
shots: 2
"""


def test_by_hand(tmp_path: Path) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(PRICES)
    answers = Answers(
        prompt_tokens=100, completion_tokens=50, context_tokens=400, queries=1000, examples=990
    )
    few, rag, tuned, both = compare(answers, load_prices(path))
    assert (few.tokens_in, rag.tokens_in, tuned.tokens_in, both.tokens_in) == (400, 500, 100, 500)
    assert few.cost_per_query == pytest.approx(400e-6 + 100e-6)
    assert rag.cost_per_query == pytest.approx(500e-6 + 100e-6 + 50e-6)
    assert tuned.cost_per_query == pytest.approx(10e-6 + 10e-6)
    assert tuned.cost_per_month == pytest.approx(0.02)
    assert few.latency == pytest.approx(0.5 + 0.4 + 0.5)
    assert both.latency == pytest.approx(0.125 + 0.25 + 0.5 + 0.25)
    # Ten examples at 48 minutes are a day; 1,000 × 150 tokens × 2 epochs at $3 a million are $0.90.
    assert (tuned.setup_days, tuned.setup_cost) == (3, pytest.approx(300.90))
    assert both.setup_cost == pytest.approx(300.90 + 400 + 0.5)
    assert tuned.pays_after == pytest.approx((300.90 - 100) / 480e-6)
    assert rag.pays_after is None
    assert few.pays_after == 0


def test_usual_values_stand_in_and_nought_counts() -> None:
    prices = load_prices()
    usual = compare(Answers(), prices)
    assert usual[1].tokens_in == 2300
    assert compare(Answers(context_tokens=0), prices)[1].tokens_in == 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("api_inptu: 3", "did you mean 'api_input'"),
        ("api_input: much", "'api_input' is 'much'"),
        ("api_speed: 0", "'api_speed' is 0"),
        ("- 3", "lines of 'name: number'"),
        ("a: [", "line "),
    ],
)
def test_wrong_prices_are_explained(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "prices.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"prices\.yaml") as caught:
        load_prices(path)
    assert message in str(caught.value)


def test_data_answers_what_it_can(tmp_path: Path) -> None:
    rows = [{"prompt": "p" * 40, "completion": f"{n:020}"} for n in range(30)]
    rows += rows[:5]  # repeated rows are no more examples
    rows += [{"prompt": "What is it?", "completion": ""}]
    found = answers_from_data([str(write_rows(tmp_path / "rows.jsonl", rows))])
    assert found["completion_tokens"] == 5
    assert found["prompt_tokens"] == 10
    assert found["examples"] < 35


def test_data_without_a_usable_row(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", [{"nothing": "here"}])
    with pytest.raises(UserError, match="has no row to train on"):
        answers_from_data([str(path)])
