"""Approaches compared on the tiny model: the right prompt for each, measured once."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import write_rows

from luthier.advise.costs import Prices, load_prices
from luthier.compare import approaches as module
from luthier.compare.approaches import Question, ask_all
from luthier.compare.decision import compare_approaches, cost_per_1000
from luthier.compare.page import write_approaches
from luthier.compare.prompts import APPROACHES, KINDS, make_prompt, searched_for
from luthier.data.conversation import Conversation, Origin
from luthier.errors import UserError
from luthier.events import Event, OnEvent, Progress, ignore
from luthier.recipe import Recipe, model_recipe, parse_overrides
from luthier.retrieve.passages import Passage
from luthier.run import Run

MakeRecipe = Callable[..., Recipe]
Train = Callable[..., Run]
HARMFUL = "<script>alert(1)</script>"


class Letters:
    """Stands in for the embedding model: vectors that count letters."""

    def __init__(self, _on_event: OnEvent = ignore) -> None:
        import numpy as np
        from families import CHAT_FAMILIES, make_tokenizer

        self.tokenizer: Any = make_tokenizer(CHAT_FAMILIES["chatml"])
        self.dimensions, self.np = 26, np

    def embed(self, texts: list[str], _on_event: OnEvent = ignore) -> Any:
        counts = [[text.lower().count(chr(97 + i)) + 0.01 for i in range(26)] for text in texts]
        vectors = self.np.array(counts, self.np.float32)
        return vectors / self.np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def question(
    make_recipe: MakeRecipe, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Question:
    """All five approaches over six questions, two documents and a run of a few steps."""
    monkeypatch.setattr(module, "Embedder", Letters)
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "numbers.md").write_text(f"# Numbers\n\nAfter seven comes eight. {HARMFUL}")
    (docs / "other.md").write_text("# Other\n\nNothing of use.")
    rows = [
        {"prompt": f"What comes after {n}? {HARMFUL}", "completion": str(n + 1), "kind": kind}
        for n, kind in enumerate(["old", "new"] * 3)
    ]
    run = train(make_recipe("train.max_steps=2"))
    overrides = ["evaluate.max_new_tokens=4", "evaluate.metrics=[exact_match, json_valid]"]
    return Question(
        approaches=APPROACHES,
        recipe=run.recipe().changed(**parse_overrides(overrides)),
        data=str(write_rows(tmp_path / "test.jsonl", rows)),
        documents=docs,
        run=run,
        shots=2,
        passages=1,
    )


def test_all_five_side_by_side(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    seen: list[Event] = []
    comparison = compare_approaches(question, out, load_prices(), by="kind", on_event=seen.append)
    assert json.loads((out / "comparison.json").read_text()) == comparison
    entries = {entry["name"]: entry for entry in comparison["approaches"]}
    assert tuple(entries) == APPROACHES
    assert Progress("answers, hybrid", 6, 6, "questions") in seen
    tokens = {name: entry["prompt_tokens"] for name, entry in entries.items()}
    assert tokens["zero-shot"] == tokens["fine-tuned"] < tokens["rag"] == tokens["hybrid"]
    assert tokens["few-shot"] > tokens["zero-shot"]
    for name, entry in entries.items():
        assert 0 < entry["latency"]["median"] <= entry["latency"]["p95"]
        assert (entry["latency"]["search_median"] > 0) == KINDS[name].retrieves
        assert (
            entry["setup"] == ["index"] * KINDS[name].retrieves + ["training"] * KINDS[name].tuned
        )
        assert (entry["setup_seconds"] > 0) == bool(entry["setup"])
        assert set(entry["groups"]) == {"old", "new"}
        assert entry["groups"]["old"]["exact_match"]["rows"] == 3
        assert (entry["against_first"] is None) == (name == "zero-shot")
    assert comparison["rules"][0]["advised"] == "rag"
    assert comparison["seen_in_training"] == 0
    # Again: all of it is kept, nothing is asked anew.
    monkeypatch.setattr(module, "answer_all", lambda *_: pytest.fail("asked again"))
    again = compare_approaches(question, out, load_prices(), by="kind")
    assert again["approaches"] == comparison["approaches"]
    write_approaches(comparison, out)
    page = (out / "comparison.html").read_text()
    assert HARMFUL not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "http" not in page.replace("http-equiv", "")
    for word in ("Prompt, documents, or training?", "By kind", "contradicted|undecided|confirmed"):
        assert any(part in page for part in word.split("|"))
    markdown = (out / "comparison.md").read_text()
    assert all(f"| {name} |" in markdown for name in APPROACHES)


def test_it_goes_on_where_it_was_cut_off(
    question: Question, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = dataclasses.replace(question, approaches=("zero-shot",))
    asked: list[Any] = []

    def cut_off(*args: Any) -> list[str]:
        asked.extend(args[2])
        if len(asked) == 4:
            raise KeyboardInterrupt
        return [f"answer {len(asked)}"]

    monkeypatch.setattr(module, "answer_all", cut_off)
    with pytest.raises(KeyboardInterrupt):
        ask_all(alone, tmp_path / "out")
    answered = asked[1:3]  # the first is the warm-up
    asked.clear()
    monkeypatch.setattr(module, "answer_all", lambda *args: asked.extend(args[2]) or ["more"])
    records = ask_all(alone, tmp_path / "out").records["zero-shot"]
    assert len(asked) == 1 + 4
    assert not [prompt for prompt in asked if prompt in answered]
    assert [record["answer"] for record in records] == ["answer 2", "answer 3", *["more"] * 4]


def test_changed_documents_are_indexed_again(question: Question, tmp_path: Path) -> None:
    before = ask_all(question, tmp_path / "out").manifest
    assert ask_all(question, tmp_path / "out").manifest == before
    assert question.documents is not None
    (question.documents / "more.txt").write_text("More.")
    after = ask_all(question, tmp_path / "out").manifest
    assert after is not None
    assert "more.txt" in after.hashes


def test_without_a_run_the_plain_model_is_asked(
    question: Question, tiny_model: Path, tmp_path: Path
) -> None:
    recipe = model_recipe(str(tiny_model), evaluate={"max_new_tokens": 3})
    plain = dataclasses.replace(
        question,
        approaches=("zero-shot", "few-shot"),
        recipe=recipe,
        run=None,
        documents=None,
        examples=str(tmp_path / "rows.jsonl"),
    )
    asked = ask_all(plain, tmp_path / "out")
    assert asked.manifest is None
    assert {name: len(records) for name, records in asked.records.items()} == {
        "zero-shot": 6,
        "few-shot": 6,
    }
    for approach, missing in [("fine-tuned", "--run"), ("rag", "--docs")]:
        with pytest.raises(UserError, match=missing):
            ask_all(dataclasses.replace(plain, approaches=(approach,)), tmp_path / "o")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="--examples"):
        ask_all(dataclasses.replace(plain, examples=None), tmp_path / "o")
    with pytest.raises(UserError, match="not enough for --shots 99"):
        ask_all(dataclasses.replace(plain, shots=99), tmp_path / "o")


def row(*messages: tuple[str, str], **extra: Any) -> Conversation:
    turns = tuple({"role": role, "content": content} for role, content in messages)
    return Conversation(Origin("f", 1), turns, extra=extra)


def test_the_prompt_of_each_approach() -> None:
    asked = row(("system", "S"), ("user", "Q"), ("assistant", "A"))
    example = row(("system", "other"), ("user", "q"), ("assistant", "a"))
    passage = Passage("f.md", 1, 1, "", "P")
    contents = {
        name: [m["content"] for m in make_prompt(asked, KINDS[name], [example], [passage])]
        for name in APPROACHES
    }
    assert contents["zero-shot"] == contents["fine-tuned"] == ["S", "Q"]
    assert contents["few-shot"] == ["S", "q", "a", "Q"]
    assert contents["rag"] == contents["hybrid"] == ["S", "Passages:\n\n[1] P\n\nQ"]
    assert searched_for(asked) == "Q"
    assert searched_for(row(("user", "long"), ("assistant", "A"), question="short")) == "short"


def test_cost_is_tokens_times_prices() -> None:
    given = {"tuned_input": 0.5, "tuned_output": 2.0, "embedding": 0.1}
    prices = Prices.model_validate({**load_prices().model_dump(), **given})
    records = [
        {"prompt_tokens": 100, "output_tokens": 10, "search_tokens": 0},
        {"prompt_tokens": 300, "output_tokens": 30, "search_tokens": 20},
    ]
    # (400 × 0.5 + 40 × 2 + 20 × 0.1) / 1e6 dollars for two, times 500.
    assert cost_per_1000(records, prices) == pytest.approx(282e-6 * 500)
