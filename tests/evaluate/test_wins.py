"""Win rate: a reward model and a judge say whose answers are better."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from evaluations import evaluation
from helpers import Cli, Notes, write_rows
from preferences import preference_rows

from luthier.data.conversation import Conversation, Origin
from luthier.errors import UserError
from luthier.evaluate.before_after import evaluate_run
from luthier.evaluate.gate import check_gate
from luthier.evaluate.judge import Judge
from luthier.evaluate.report.page import render_report
from luthier.evaluate.wins import Asked, Verdicts, count_wins, win_rate
from luthier.models.tuned import load_tuned
from luthier.recipe import EvaluateGroup, Recipe
from luthier.run import Run

Make = Callable[..., Recipe]
Train = Callable[..., Run]

PROMPT = ({"role": "user", "content": "Count"}, {"role": "assistant", "content": "1 2"})


class Client:
    """OpenAI's client, whose model prefers the answer that ``better`` says; it may like a place."""

    def __init__(self, better: Callable[[str, str], str]) -> None:
        self.better = better
        self.asked: list[str] = []
        self.chat = SimpleNamespace(completions=self)

    def create(self, *, messages: list[dict[str, str]], **_: Any) -> Any:
        text = messages[0]["content"]
        self.asked.append(text)
        parts = [
            text.partition(f"[Assistant {name}'s answer]\n")[2].partition("\n[End of")[0]
            for name in "AB"
        ]
        said = f"[[A]] or [[B]]? My verdict: [[{self.better(*parts)}]]"
        return SimpleNamespace(choices=[SimpleNamespace(message=SimpleNamespace(content=said))])


def judge_by(better: Callable[[str, str], str], kept: Path | None = None) -> tuple[Judge, Client]:
    judge = Judge(EvaluateGroup(judge_model="big"), kept)
    client = Client(better)
    judge.client = client  # type: ignore[assignment]
    return judge, client


def rows(count: int) -> list[Conversation]:
    return [Conversation(Origin("f", n), PROMPT) for n in range(count)]


def test_a_judge_is_asked_in_both_orders_and_ties_what_it_says_of_a_place(tmp_path: Path) -> None:
    def longer(first: str, second: str) -> str:
        if len(first) == len(second):
            return "A"  # for its place
        return "A" if len(first) > len(second) else "B"

    judge, client = judge_by(longer, tmp_path / "kept.jsonl")
    base, tuned = ["a", "aaa", "aa", "same", "x"], ["aa", "a", "bb", "same", "xyz"]
    (found,) = Asked(judge, None).verdicts(rows(5), base, tuned)
    assert found.outcomes == [1.0, 0.0, 0.5, 0.5, 1.0]
    assert [found.winner(n) for n in range(3)] == ["tuned", "base", "tie"]
    assert found.swayed == 1
    assert len(client.asked) == 8  # equal answers are not worth a question
    again, silent = judge_by(longer, tmp_path / "kept.jsonl")
    assert Asked(again, None).verdicts(rows(5), base, tuned) == [found]
    assert not silent.asked
    rate = win_rate(found, base, tuned)
    assert (rate.wins, rate.ties, rate.losses) == (2, 2, 1)
    assert rate.rate.mean == pytest.approx(0.6)
    assert rate.longer is not None and rate.longer.mean == 1.0 and rate.longer.rows == 3


def test_a_judge_without_a_verdict_is_told_of() -> None:
    judge, _ = judge_by(lambda *_: "D")
    judge._say = lambda _: "both are fine"  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"gave no verdict as \[\[A\]\], \[\[B\]\] or \[\[C\]\]"):
        Asked(judge, None).verdicts(rows(1), ["a"], ["b"])


def test_the_interval_is_wilsons_and_few_rows_are_no_evidence() -> None:
    wins = win_rate(Verdicts("j", [1.0] * 15 + [0.0] * 5), ["a"] * 20, ["b"] * 20)
    # Wilson's interval of 15 of 20, as in Newcombe 1998.
    assert (wins.rate.low, wins.rate.high) == pytest.approx((0.5313, 0.8881), abs=1e-4)
    assert wins.test.verdict == "better"
    assert win_rate(Verdicts("j", [1.0] * 5), ["a"] * 5, ["b"] * 5).test.verdict == "no evidence"
    lost = win_rate(Verdicts("j", [0.0] * 12), ["a"] * 12, ["b"] * 12)
    assert lost.test.verdict == "worse" and lost.longer is None


def test_the_gate_takes_the_least_win_rate() -> None:
    sides = ["a"] * 12, ["b"] * 12
    verdicts = [Verdicts("x", [1.0] * 12), Verdicts("y", [1.0, 0.0] * 6)]
    found = evaluation(wins=count_wins(verdicts, *sides))
    checks = check_gate(found, least=["win_rate=0.6", "win_rate=0.5"], better=["win_rate"])
    assert [check.passed for check in checks] == [False, True, False]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", preference_rows(40))


def test_a_reward_model_judges_the_answers_of_a_run(
    make_recipe: Make, train: Train, pairs: Path, cli: Cli
) -> None:
    common = (f"data.train={pairs}", "data.validation_fraction=0.3", "train.eval_steps=12")
    reward = train(
        make_recipe("objective.name=reward", *common, "train.max_steps=12", "run.name=reward")
    )
    run = train(
        make_recipe(
            "objective.name=kto", *common, "train.max_steps=12", "evaluate.max_new_tokens=6",
            "run.name=kto", f"evaluate.reward_model={reward.root}",
        )
    )  # fmt: skip
    found = evaluate_run(run)
    assert found.wins is not None
    (rate,) = found.wins.rates
    assert rate.judge == str(reward.root) and rate.swayed is None
    # Each verdict again, by the scorer alone on one answer after the other.
    models = load_tuned(reward, scores=True)
    outcomes = []
    for row in run.answered_rows():
        scores = []
        for answer in (row.base, row.tuned):
            turns = [*row.messages, {"role": "assistant", "content": answer}]
            ids = models.tokenizer.apply_chat_template(turns, return_dict=False)
            with torch.no_grad():
                scores.append(models.tuned(input_ids=torch.tensor([ids])).logits.item())
        better = scores[1] - scores[0]
        outcomes.append("tie" if abs(better) < 1e-6 else "tuned" if better > 0 else "base")
        assert row.winner == {rate.judge: outcomes[-1]}
    assert (rate.wins, rate.ties) == (outcomes.count("tuned"), outcomes.count("tie"))
    assert run.evaluation() == found
    page = render_report(run)
    assert "Whose answers are better" in page and str(reward.root) in page
    done = cli("evaluate", str(run.root), "--set", "evaluate.win_rate=false", "--json")
    assert done.returncode == 0, done.stderr
    assert "wins" not in json.loads(done.stdout)
    done = cli("evaluate", str(run.root))
    assert "win rate against the base" in done.stdout
    wrong = cli("evaluate", str(run.root), "--set", "train.seed=2")
    assert wrong.returncode == 2 and "keys of the group evaluate" in wrong.stderr


def test_what_cannot_judge(make_recipe: Make, train: Train, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"needs evaluate\.judge_model or evaluate\.reward_model"):
        make_recipe("evaluate.win_rate=true")
    run = train(make_recipe("train.max_steps=1", "train.warmup_ratio=0"))
    with pytest.raises(UserError, match="a run of the objective sft, which scores no answers"):
        evaluate_run(run, settings={"reward_model": str(run.root)})
    with pytest.raises(UserError, match="no run folder at"):
        evaluate_run(run, settings={"reward_model": str(tmp_path / "gone")})


def test_a_reward_model_that_saw_the_rows_is_told_of(
    make_recipe: Make, train: Train, pairs: Path
) -> None:
    few = ("train.max_steps=1", "train.warmup_ratio=0", "train.eval_steps=1")
    reward = train(
        make_recipe("objective.name=reward", f"data.train={pairs}", *few, "run.name=reward")
    )
    run = train(make_recipe("objective.name=dpo", f"data.train={pairs}", *few, "run.name=dpo"))
    heard = Notes()
    evaluate_run(
        run,
        str(pairs),
        heard,
        settings={"reward_model": str(reward.root), "max_rows": 12, "max_new_tokens": 2},
    )
    assert any("are in the training set of the reward model" in text for text in heard.warnings)
