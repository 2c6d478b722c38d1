"""`luthier evaluate` on runs of the tiny model."""

import json
import math
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch
from helpers import Notes, write_rows
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.data.prepare import held_out
from luthier.errors import UserError
from luthier.evaluate.before_after import evaluate_run
from luthier.events import Progress
from luthier.recipe import Recipe
from luthier.records.evaluation import MetricCompared, PerplexityCompared
from luthier.run import Run

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., Run]


def reference_loss(model: torch.nn.Module, run: Run) -> float:
    """Mean loss over the answers' tokens with Transformers alone, a row at a time."""
    tokenizer = AutoTokenizer.from_pretrained(run.weights_path(run.recipe()))
    total, count = 0.0, 0
    for row in held_out(run):
        messages = list(row.messages)
        prompt = tokenizer.apply_chat_template(
            messages[:-1], tokenize=False, add_generation_prompt=True
        )
        answer = row.reference + "<|im_end|>"
        before, after, end = (
            tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, answer, "\n")
        )
        ids = torch.tensor([[*before, *after, *end]])
        labels = torch.tensor([[-100] * len(before) + after + [-100] * len(end)])
        with torch.no_grad():
            total += model(input_ids=ids, labels=labels).loss.item() * len(after)
        count += len(after)
    return total / count


@pytest.mark.parametrize("method", ["full", "lora", "qlora"])
def test_losses_are_those_of_plain_transformers(
    method: str, make_recipe: MakeRecipe, train: Train, tiny_model: Path
) -> None:
    run = train(make_recipe(f"method.name={method}", "evaluate.max_new_tokens=4"))
    said = Notes()
    evaluation = evaluate_run(run, None, said)
    base, tuned = evaluation.base, evaluation.tuned
    assert tuned["loss"] < base["loss"]
    for side in (base, tuned):
        assert side["perplexity"] == pytest.approx(math.exp(side["loss"]))
        assert 0 <= side["exact_match"] <= 1
    if method != "qlora":  # plain Transformers without the quantiser is another model
        plain = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
        assert base["loss"] == pytest.approx(reference_loss(plain, run), rel=1e-4)
        if method == "lora":
            plain = PeftModel.from_pretrained(plain, run.adapter_path).eval()
        else:
            plain = AutoModelForCausalLM.from_pretrained(run.model_path).eval()
        assert tuned["loss"] == pytest.approx(reference_loss(plain, run), rel=1e-4)
    assert len(evaluation.samples) == evaluation.rows == len(held_out(run))
    assert json.loads(run.evaluation_path.read_text())["tuned"] == tuned
    stages = [event.task for event in said.events if isinstance(event, Progress)]
    assert "loss of base" in stages
    assert stages[-1] == "answers of base and tuned"


def test_every_figure_has_its_interval_and_verdict(make_recipe: MakeRecipe, train: Train) -> None:
    overrides = ["train.max_steps=30", "train.learning_rate=3e-2", "data.validation_fraction=0.3"]
    run = train(make_recipe(*overrides, "evaluate.max_new_tokens=8"))
    found = evaluate_run(run, metrics=["exact_match", "bleu"])
    loss, perplexity, bleu = (found.metrics[name] for name in ("loss", "perplexity", "bleu"))
    assert isinstance(loss, MetricCompared)
    assert loss.test.verdict == "better"
    assert loss.test.high < 0
    assert loss.tuned.low < found.tuned["loss"] < loss.tuned.high
    assert isinstance(perplexity, PerplexityCompared)
    assert perplexity.tuned.high == pytest.approx(math.exp(loss.tuned.high))
    ratio = found.tuned["perplexity"] / found.base["perplexity"]
    assert perplexity.ratio.ratio == pytest.approx(ratio)
    assert set(found.metrics) == {"loss", "perplexity", "exact_match", "bleu"}
    assert isinstance(bleu, MetricCompared)
    assert bleu.corpus is not None
    rows = run.answered_rows()
    assert len(rows) == found.answered_rows
    mean = sum(row.scores.tuned["bleu"] for row in rows) / len(rows)
    assert mean == pytest.approx(found.tuned["bleu"])


def test_answers_given_are_not_made_again(
    make_recipe: MakeRecipe, train: Train, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.generate import sides

    run = train(make_recipe("evaluate.max_new_tokens=4", "evaluate.batch_size=2"))
    asked: list[int] = []
    real = sides.answer_each

    def dies(
        model: object, tokenizer: object, asks: list[object], *rest: object
    ) -> Iterator[tuple[int, str]]:
        answers = real(model, tokenizer, asks, *rest)  # type: ignore[arg-type]
        yield from islice(answers, 4)
        raise KeyboardInterrupt

    monkeypatch.setattr(sides, "answer_each", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate_run(run)
    assert not run.evaluation_path.exists()

    def counts(
        model: object, tokenizer: object, asks: list[object], *rest: object
    ) -> Iterator[tuple[int, str]]:
        asked.append(len(asks))
        return real(model, tokenizer, asks, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sides, "answer_each", counts)
    first = evaluate_run(run)
    assert asked == [2 * first.answered_rows - 4]
    asked.clear()
    again = evaluate_run(run)
    assert sum(asked) == 0
    assert [s.tuned for s in again.samples] == [s.tuned for s in first.samples]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_scaled_adapter_lies_between_base_and_tuned(
    method: str, make_recipe: MakeRecipe, train: Train
) -> None:
    run = train(make_recipe(f"method.name={method}", "evaluate.max_rows=0"))
    if method == "full":
        with pytest.raises(UserError, match="no adapter to scale"):
            evaluate_run(run, adapter_scale=0.5)
        return
    none, half, whole = (evaluate_run(run, adapter_scale=scale) for scale in (0.0, 0.5, 1.0))
    assert none.tuned["loss"] == pytest.approx(none.base["loss"], abs=1e-6)
    assert whole.tuned["loss"] < half.tuned["loss"] < none.tuned["loss"]
    assert half.adapter_scale == 0.5


def test_other_rows_than_the_runs_own(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path
) -> None:
    run = train(make_recipe("evaluate.max_rows=2", "evaluate.max_new_tokens=4"))
    rows = [{"instruction": f"Repeat {i}", "output": str(i)} for i in range(5)]
    evaluation = evaluate_run(run, str(write_rows(tmp_path / "other.jsonl", rows)))
    assert evaluation.rows == 5
    assert evaluation.seen_in_training == 0
    again = evaluate_run(run, str(run.recipe().train_files[0]))
    trained = len(run.train_path.read_text().splitlines())
    assert again.seen_in_training == trained
    assert evaluation.answered_rows == len(evaluation.samples) == 2


def test_what_cannot_be_evaluated_says_why(make_recipe: MakeRecipe, train: Train) -> None:
    run = train(
        make_recipe("data.validation_fraction=0", "train.max_steps=1", "train.warmup_ratio=0")
    )
    with pytest.raises(UserError, match="has no validation rows"):
        evaluate_run(run)
    with pytest.raises(UserError, match="did you mean 'rouge_l'"):
        evaluate_run(run, str(run.train_path), metrics=["rougel"])
    run.measured_path.unlink()
    with pytest.raises(UserError, match="has not finished training"):
        evaluate_run(run, str(run.train_path))


def test_plain_text_has_a_loss_and_no_answers(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "t.jsonl", [{"text": f"line {i} " * 5} for i in range(30)])
    run = train(make_recipe(f"data.train={path}"))
    evaluation = evaluate_run(run)
    assert evaluation.tuned["loss"] < evaluation.base["loss"]
    assert evaluation.samples == []
    assert "exact_match" not in evaluation.base
