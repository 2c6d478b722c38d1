"""`luthier evaluate --lm-eval`: tasks of lm-evaluation-harness, from files on this machine."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import Cli, write_rows
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from luthier.errors import UserError
from luthier.evaluate.before_after import evaluate_run
from luthier.evaluate.gate import check_gate
from luthier.evaluate.report.page import render_report
from luthier.recipe import Recipe
from luthier.run import Run

ROWS = [
    {
        "question": f"Repeat the number {n}, please",
        "choices": [str(n), str(n + 50), "no"],
        "gold": 0,
    }
    for n in range(12)
]


@pytest.fixture
def task(tmp_path: Path) -> Path:
    """A multiple-choice task whose data is a file."""
    data = write_rows(tmp_path / "choices.jsonl", ROWS)
    path = tmp_path / "choices.yaml"
    path.write_text(
        "task: choices\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {data}}}}}\n"
        "test_split: test\n"
        "output_type: multiple_choice\n"
        'doc_to_text: "{{question}}:"\n'
        "doc_to_target: gold\n"
        "doc_to_choice: choices\n"
        "metric_list:\n"
        "  - {metric: acc, aggregation: mean, higher_is_better: true}\n"
    )
    return path


def likeliest(model: torch.nn.Module, folder: Path) -> list[float]:
    """Whether the first choice is the likeliest, row by row, by Transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    right = []
    for row in ROWS:
        scores = []
        for choice in row["choices"]:
            before = tokenizer(row["question"] + ":").input_ids
            ids = tokenizer(f"{row['question']}: {choice}").input_ids
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
            places = range(len(before), len(ids))
            scores.append(sum(float(logits[place - 1, ids[place]]) for place in places))
        right.append(float(max(range(3), key=scores.__getitem__) == row["gold"]))
    return right


def test_scores_are_those_of_the_likelihoods(
    task: Path, make_recipe: Callable[..., Recipe], train: Callable[..., Run], tiny_model: Path
) -> None:
    run = train(make_recipe("train.learning_rate=3e-2", "evaluate.max_rows=0"))
    # On the same run: tasks that are not there.
    for name, message in (
        ("nowhere.yaml", "no task file nowhere.yaml"),
        ("no_such_task", "lm-eval cannot run no_such"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate_run(run, tasks=[name])
    found = evaluate_run(run, tasks=[str(task)]).tasks["choices acc"]
    base = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    expected = likeliest(base, tiny_model)
    assert found.base.mean == pytest.approx(sum(expected) / 12)
    tuned = PeftModel.from_pretrained(base, run.adapter_path).eval()
    expected = likeliest(tuned, tiny_model)
    assert found.tuned.mean == pytest.approx(sum(expected) / 12)
    assert found.base.rows == found.tuned.rows == 12
    assert found.share
    assert found.test.verdict in ("better", "no evidence", "worse")


def test_from_the_command_line(
    task: Path, make_recipe: Callable[..., Recipe], train: Callable[..., Run], cli: Cli
) -> None:
    short = ("train.max_steps=1", "train.warmup_ratio=0", "evaluate.max_rows=2")
    run = train(make_recipe(*short, "evaluate.max_new_tokens=4", "evaluate.metrics=[exact_match]"))
    run.trust()
    done = cli("evaluate", run.root, "--lm-eval", task, "--lm-eval-limit", "5", "--samples", "0")
    assert done.returncode == 0, done.stderr
    assert "choices acc" in done.stdout
    evaluation = run.evaluation()
    assert evaluation is not None
    assert evaluation.tasks["choices acc"].tuned.rows == 5
    assert "On public tasks" in render_report(run)
    (check,) = check_gate(evaluation, least=["choices acc=1.1"])
    assert not check.passed
