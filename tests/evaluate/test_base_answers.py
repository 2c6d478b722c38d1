"""What a base says and finds likely, for all its runs: once, and anew where anything decides otherwise."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Notes

from luthier.evaluate import base_answers, examination
from luthier.evaluate.before_after import evaluate_run
from luthier.evaluate.probe import asking, forgetting
from luthier.evaluate.probe.items import load_items, load_passages
from luthier.generate import sides
from luthier.recipe import Recipe
from luthier.records import Evaluation
from luthier.run import Run


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """Sides of all prompts that a model is asked, and names of all it finds likely.

    The cache keeps even tiny bases.
    """
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(base_answers, "_WORTH", 0)
    given: list[str] = []
    real = sides.answer_each

    def counts(
        model: object, tokenizer: object, asks: list[sides.Ask], *rest: object
    ) -> Iterator[tuple[int, str]]:
        given.extend("base" if ask.base else "tuned" for ask in asks)
        return real(model, tokenizer, asks, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(sides, "answer_each", counts)
    losses, choices = examination.row_losses, asking.choice_scores

    def finds_losses(*arguments: Any, task: str, **more: Any) -> Any:
        given.append(task)
        return losses(*arguments, task=task, **more)

    def finds_choices(*arguments: Any) -> Any:
        given.append(arguments[2])
        return choices(*arguments)

    monkeypatch.setattr(examination, "row_losses", finds_losses)
    monkeypatch.setattr(asking, "choice_scores", finds_choices)
    return given


def test_a_base_is_asked_once_for_all_its_runs(
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    tiny_model: Path,
    tmp_path: Path,
    asked: list[str],
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    said = Notes()

    def evaluate(name: str, *changes: str) -> tuple[Evaluation, dict[str, int]]:
        asked.clear()
        settings = [f"model.source={base}", "train.max_steps=1", "train.warmup_ratio=0"]
        settings += ["evaluate.max_new_tokens=4", f"run.name={name}", *changes]
        found = evaluate_run(train(make_recipe(*settings)), None, said)
        return found, {side: asked.count(side) for side in ("base", "tuned")}

    first, made = evaluate("one")
    assert made == {"base": first.answered_rows, "tuned": first.answered_rows}
    assert "kept from an earlier evaluation" not in "\n".join(said.notes)
    second, made = evaluate("two", "method.lora_r=2")
    assert made == {"base": 0, "tuned": first.answered_rows}
    assert "kept from an earlier evaluation" in "\n".join(said.notes)
    assert [row.base for row in second.samples] == [row.base for row in first.samples]
    assert "loss of base" not in asked
    assert "loss of tuned" in asked
    assert second.base["loss"] == first.base["loss"]
    _, made = evaluate("longer", "evaluate.max_new_tokens=5")
    assert made["base"] == first.answered_rows
    assert "loss of base" not in asked
    _, made = evaluate("bfloat16", "model.dtype=bfloat16")
    assert made["base"] == first.answered_rows
    config = base / "config.json"
    config.write_text(config.read_text("utf-8") + "\n", "utf-8")
    _, made = evaluate("changed")
    assert made["base"] == first.answered_rows
    assert "loss of base" in asked


def test_a_base_is_probed_once(
    make_recipe: Callable[..., Recipe],
    train: Callable[..., Run],
    asked: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few = load_items()[::12]
    monkeypatch.setattr(forgetting, "load_items", lambda: few)
    monkeypatch.setattr(asking, "load_passages", lambda: load_passages()[:1])
    found = []
    for name in ("one", "two"):
        asked.clear()
        run = train(make_recipe("train.max_steps=1", "train.warmup_ratio=0", f"run.name={name}"))
        found.append(evaluate_run(run, probe=True).forgetting)
    first, second = found
    assert not any("base" in each for each in asked)
    assert {f"probe of tuned, {part}" for part in ("multiple choice", "passages")} <= {*asked}
    assert first is not None
    assert second is not None
    assert second.accuracy.base == first.accuracy.base
    assert second.text.loss.base == first.text.loss.base


def test_a_cache_that_cannot_be_used_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/answers.sqlite").write_bytes(b"not a database" * 100)
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path / "cache"))
    base_answers.keep_answers({"a": "b"})
    assert base_answers.find_answers(["a"]) == {}


def test_answers_that_nobody_uses_are_deleted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LUTHIER_CACHE", str(tmp_path))
    base_answers.keep_answers({"old": "1", "new": "2"})
    assert base_answers.find_answers(["old", "new", "other"]) == {"old": "1", "new": "2"}
    monkeypatch.setattr(base_answers, "_KEPT", -1.0)
    base_answers.find_answers([])
    assert base_answers.find_answers(["old"]) == {}
