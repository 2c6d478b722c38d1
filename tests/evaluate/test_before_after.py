"""`luthier evaluate` on runs of the tiny model."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import write_rows
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.data.prepare import held_out
from luthier.errors import UserError
from luthier.evaluate.before_after import evaluate_run
from luthier.recipe import Recipe
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
    stages: list[str] = []
    evaluation = evaluate_run(run, None, lambda what, _done, _of: stages.append(what))
    base, tuned = evaluation["base"], evaluation["tuned"]
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
    assert len(evaluation["samples"]) == evaluation["rows"] == len(held_out(run))
    assert json.loads(run.evaluation_path.read_text())["tuned"] == tuned
    assert stages[0] == "loss of base"
    assert stages[-1] == "answers of tuned"


def test_other_rows_than_the_runs_own(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path
) -> None:
    run = train(make_recipe("evaluate.max_rows=2", "evaluate.max_new_tokens=4"))
    rows = [{"instruction": f"Repeat {i}", "output": str(i)} for i in range(5)]
    evaluation = evaluate_run(run, str(write_rows(tmp_path / "other.jsonl", rows)))
    assert evaluation["rows"] == 5
    assert evaluation["answered_rows"] == len(evaluation["samples"]) == 2


def test_what_cannot_be_evaluated_says_why(make_recipe: MakeRecipe, train: Train) -> None:
    run = train(
        make_recipe("data.validation_fraction=0", "train.max_steps=1", "train.warmup_ratio=0")
    )
    with pytest.raises(UserError, match="has no validation rows"):
        evaluate_run(run)
    run.measured_path.unlink()
    with pytest.raises(UserError, match="has not finished training"):
        evaluate_run(run, str(run.train_path))


def test_plain_text_has_a_loss_and_no_answers(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path
) -> None:
    path = write_rows(tmp_path / "t.jsonl", [{"text": f"line {i} " * 5} for i in range(30)])
    run = train(make_recipe(f"data.train={path}"))
    evaluation = evaluate_run(run)
    assert evaluation["tuned"]["loss"] < evaluation["base"]["loss"]
    assert evaluation["samples"] == []
    assert "exact_match" not in evaluation["base"]
