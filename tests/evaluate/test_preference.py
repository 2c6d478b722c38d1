"""Preference accuracy of held-out pairs, reward models measured and merged, answers that grow."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Notes, write_rows
from preferences import preference_rows

from luthier.errors import UserError
from luthier.evaluate.before_after import evaluate_run
from luthier.evaluate.likelihood import RowLoss
from luthier.evaluate.preference import findings, preferred
from luthier.evaluate.report.headline import grown
from luthier.evaluate.report.page import write_report
from luthier.evaluate.wins import compare_lengths
from luthier.export.merge import MergeOptions, merge
from luthier.models.tuned import load_tuned
from luthier.recipe import Recipe
from luthier.run import Run

Make = Callable[..., Recipe]
Train = Callable[..., Run]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", preference_rows(40))


def losses(*sums: float) -> list[RowLoss]:
    return [RowLoss(each, 10) for each in sums]


def test_rewards_are_what_training_gained() -> None:
    base, tuned = losses(10, 10, 20, 20), losses(8, 12, 21, 19)
    found = findings(base, tuned, ([], []))
    assert found.pairs == 2
    assert found.accuracy.mean == 0.5 and found.accuracy.low < 0.5 < found.accuracy.high
    assert found.margin.mean == pytest.approx((4 - 2) / 2)
    assert found.chosen.mean == pytest.approx(0.5)
    likelier = preferred(base, tuned)
    assert (likelier.base.mean, likelier.tuned.mean) == (0.0, 0.5)


def test_answers_that_grow_are_told_of() -> None:
    short, long = ["a" * (10 + n % 3) for n in range(12)], ["a" * (20 + n % 5) for n in range(12)]
    said = grown(compare_lengths(short, long))
    assert said is not None and "answers grew from 11 to 22 characters" in said
    assert grown(compare_lengths(long, short)) is None
    assert grown(compare_lengths(short, short)) is None


def test_a_run_of_pairs_is_evaluated_on_them(make_recipe: Make, train: Train, pairs: Path) -> None:
    run = train(
        make_recipe(
            "objective.name=dpo", f"data.train={pairs}", "train.max_steps=20", "train.eval_steps=20",
            "evaluate.max_rows=3", "evaluate.max_new_tokens=4", "data.validation_fraction=0.3",
        )
    )  # fmt: skip
    evaluation = evaluate_run(run)
    found = evaluation.preference
    assert found is not None and found.pairs == 12
    (logged,) = (line for line in run.metrics() if line.eval_loss is not None)  # of the same rows
    assert 0.1 * found.margin.mean == pytest.approx(logged.extra["eval_rewards/margins"], rel=1e-3)
    assert found.accuracy.mean == pytest.approx(logged.extra["eval_rewards/accuracies"])
    assert found.accuracy.confidence == 0.95 and 0 <= found.accuracy.low < found.accuracy.high <= 1
    assert "preference_accuracy" in evaluation.metrics
    assert found.lengths is not None
    assert run.evaluation() == evaluation
    assert write_report(run).is_file()


@pytest.mark.parametrize("method", ["lora", "qlora"])
def test_a_reward_model_is_measured_merged_and_refuses_to_write(
    method: str, make_recipe: Make, train: Train, pairs: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    run = train(
        make_recipe(
            "objective.name=reward", f"data.train={pairs}", "train.max_steps=20",
            "train.eval_steps=20", "data.validation_fraction=0.3", "evaluate.probe=true",
            f"method.name={method}",
        )
    )  # fmt: skip
    evaluation = evaluate_run(run)
    assert evaluation.preference is not None and evaluation.preference.pairs == 12
    assert evaluation.tuned == {"preference_accuracy": evaluation.preference.accuracy.mean}
    assert write_report(run).is_file()
    with pytest.raises(UserError, match="is a reward model: it scores answers and writes none"):
        load_tuned(run)
    merged = merge([run], tmp_path / "merged", MergeOptions(check_rows=4))
    assert merged.rewards_off is not None and merged.rewards_off < 1e-3 and merged.layers > 0
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged")
    assert plain.config.num_labels == 1 and plain.config.architectures == [
        "LlamaForSequenceClassification"
    ]
    ids = torch.tensor([[5, 9, 12, 7]])
    ours = load_tuned(run, scores=True).tuned(input_ids=ids).logits
    with torch.no_grad():
        assert plain(input_ids=ids).logits.item() == pytest.approx(ours.item(), abs=1e-4)
    AutoTokenizer.from_pretrained(tmp_path / "merged")


def test_bad_answers_are_no_references(make_recipe: Make, train: Train, pairs: Path) -> None:
    heard = Notes()
    run = train(
        make_recipe(
            "objective.name=kto", f"data.train={pairs}", "train.max_steps=2", "train.warmup_ratio=0",
            "evaluate.max_rows=2", "evaluate.max_new_tokens=2",
        ),
        heard,
    )  # fmt: skip
    evaluation = evaluate_run(run)
    assert evaluation.rows == 4  # the good answer of each of four pairs
    assert evaluation.preference is None
