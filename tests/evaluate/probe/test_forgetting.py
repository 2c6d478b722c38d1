"""The verdict and its remedies, and the whole probe on runs of the tiny model."""

import json
from collections.abc import Callable

import pytest
import torch
from helpers import Notes, write_rows

from luthier.evaluate.before_after import evaluate_run
from luthier.evaluate.likelihood import RowLoss
from luthier.evaluate.losses import compare_losses
from luthier.evaluate.probe.divergence import divergences
from luthier.evaluate.probe.remedies import remedies
from luthier.evaluate.probe.verdict import judge
from luthier.evaluate.statistics import mean_interval, paired_test
from luthier.events import Progress
from luthier.generate.answer import encode_prompt
from luthier.models.tuned import load_tuned
from luthier.recipe import EvaluateGroup, Recipe
from luthier.records.evaluation import (
    Compared,
    Leak,
    Leakage,
    PerplexityCompared,
    ProbeFindings,
    TextCompared,
)
from luthier.run import Run

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., Run]


def compared(before: int, after: int, rows: int) -> Compared:
    one = [1.0] * before + [0.0] * (rows - before)
    two = [1.0] * after + [0.0] * (rows - after)
    return Compared(base=mean_interval(one), tuned=mean_interval(two), test=paired_test(one, two))


def found(
    total: tuple[int, int] = (200, 200),
    area: tuple[int, int] = (30, 30),
    ratio: float = 1.0,
    leaks: int = 0,
) -> ProbeFindings:
    leaked = Leak(question="q", base="b", tuned="t", kind="copy", why="w")
    losses = ([RowLoss(2.0 + factor, 1) for factor in range(20)] for _ in range(2))
    loss, perplexity = compare_losses(*losses)
    moved = {"ratio": ratio, "low": ratio, "high": ratio}
    verdict = "worse" if ratio > 1 else "no evidence"
    prose = perplexity.to_dict() | {
        "ratio": moved,
        "test": {"p": 0.5, "rows": 20, "verdict": verdict},
    }
    return ProbeFindings(
        items=350,
        accuracy=compared(*total, 310),
        areas={name: compared(*area, 40) if name == "a" else compared(5, 5, 9) for name in "abc"},
        text=TextCompared(loss=loss, perplexity=PerplexityCompared.model_validate(prose)),
        kl=None,
        leakage=Leakage(
            **dict(compared(0, leaks, 40)),
            style_told_apart=None,
            style_counts=False,
            leaks=(leaked,) * leaks,
        ),
        seconds={"base": 1.0, "tuned": 1.0},
    )


@pytest.mark.parametrize(
    ("measured", "verdict", "says"),
    [
        (found(), "kept", None),
        (found(total=(200, 198)), "kept", None),  # chance
        (found(total=(200, 190)), "some forgetting", "fell by 3.2 points"),
        (found(total=(200, 150)), "forgot", "general questions fell by 16.1 points"),
        (found(area=(30, 24)), "kept", None),  # one area of three, p 0.03
        (found(area=(30, 10)), "forgot", "a fell by 50.0 points"),
        (found(ratio=1.05), "kept", None),  # certain, and no news
        (found(ratio=1.3), "some forgetting", "1.30 times"),
        (found(ratio=2.0), "forgot", "2.00 times"),
        (found(leaks=1), "kept", None),
        (found(leaks=3), "some forgetting", "3 of 40"),
        (found(leaks=12), "forgot", "12 of 40"),
    ],
)
def test_verdicts(measured: ProbeFindings, verdict: str, says: str | None) -> None:
    judged, reasons = judge(measured, EvaluateGroup())
    assert judged == verdict
    assert (says is None) == (reasons == ())
    if says is not None:
        assert says in reasons[0]


def test_limits_are_the_recipes() -> None:
    lenient = EvaluateGroup(max_accuracy_drop=0.5, max_perplexity_ratio=9, max_leakage=0.5)
    verdict, _ = judge(found(total=(200, 150), ratio=2.0, leaks=12), lenient)
    assert verdict == "some forgetting"


def test_remedies_come_in_order_of_cost_and_fit_the_run(
    make_recipe: MakeRecipe, train: Train
) -> None:
    run = train(make_recipe("train.max_steps=-1", "train.num_train_epochs=1"))
    recipe = run.recipe()
    whats = [remedy.what for remedy in remedies(run, recipe)]
    assert whats[0] == "scale the adapter down"
    assert "train fewer epochs" not in whats
    write_rows(
        run.metrics_path,
        [
            {
                "step": step,
                "epoch": 1,
                "memory_bytes": 1,
                "seconds": 1,
                "eval_probe_accuracy": value,
            }
            for step, value in [(0, 0.7), (3, 0.68), (6, 0.5)]
        ],
    )
    run.checkpoint_path(3).mkdir(exist_ok=True)
    listed = remedies(run, recipe)
    assert listed[1].what == "stop at step 3"
    assert "step-3" in listed[1].why
    full = recipe.model_copy(deep=True)
    full.method.name, full.train.num_train_epochs, full.train.learning_rate = "full", 9, 1e-3
    whats = [remedy.what for remedy in remedies(run, full)]
    assert whats == [
        "stop at step 3",
        "lower the learning rate",
        "train fewer epochs",
        "replay general examples",
        "LoRA instead of full fine-tuning",
    ]


def test_divergence_by_hand(make_recipe: MakeRecipe, train: Train) -> None:
    run = train(make_recipe("method.name=full"))
    models = load_tuned(run)
    prompts = [({"role": "user", "content": text},) for text in ("Repeat 3", "Count")]
    answers = ["3 4 5", "one two"]
    means, tokens = divergences(models, prompts, answers)
    for prompt, answer, mean, count in zip(prompts, answers, means, tokens, strict=True):
        before = encode_prompt(models.tokenizer, prompt)
        after = models.tokenizer(answer, add_special_tokens=False).input_ids
        ids = torch.tensor([[*before, *after]])
        with torch.no_grad(), models.as_base() as base:
            p, q = (
                m(input_ids=ids).logits[0, len(before) - 1 : -1].log_softmax(-1)
                for m in (base, models.tuned)
            )
        by_hand = (p.exp() * (p - q)).sum(-1).mean()
        assert count == len(after)
        assert mean == pytest.approx(float(by_hand), rel=1e-4)
        assert mean > 0


def test_the_whole_probe(make_recipe: MakeRecipe, train: Train) -> None:
    """On a random model everything is chance; the parts must be there and agree."""
    run = train(make_recipe("evaluate.max_rows=0", "train.max_steps=2", "train.learning_rate=1e-6"))
    said = Notes()
    evaluation = evaluate_run(run, None, said, probe=True)
    forgetting = evaluation.forgetting
    assert forgetting is not None
    assert forgetting.verdict == "kept"
    assert forgetting.remedies == []
    stages = [event.task for event in said.events if isinstance(event, Progress)]
    assert "probe of base, multiple choice" in stages
    assert "probe, open questions" in stages
    assert set(forgetting.areas) >= {"facts", "arithmetic", "instructions", "code"}
    rows = sum(entry.base.rows for entry in forgetting.areas.values())
    assert rows == forgetting.accuracy.base.rows >= 300
    assert forgetting.kl is not None
    assert forgetting.kl.mean == pytest.approx(0, abs=1e-3)
    answers = run.probe_answers_path.read_text("utf-8").splitlines()
    assert len(answers) == forgetting.items == rows + 40
    assert json.loads(answers[0])["question"]
