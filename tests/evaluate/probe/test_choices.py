"""Choices on a shared prompt give what each gives alone."""

from typing import Any

import pytest
import torch
from families import CHAT_FAMILIES, make_model, make_tokenizer
from helpers import Notes
from torch import nn

from luthier.evaluate.probe import choices as module
from luthier.evaluate.probe.asking import tokenised
from luthier.evaluate.probe.choices import Question, choice_scores
from luthier.evaluate.probe.items import load_items
from luthier.events import Progress


def questions(family: str = "chatml", plain: bool = False, count: int = 3) -> list[Question]:
    tokenizer = make_tokenizer(CHAT_FAMILIES[family])
    items = [item for item in load_items() if item.answer is not None][::40][:count]
    return [tokenised(tokenizer, item, plain=plain) for item in items]


def reference(model: Any, asked: list[Question]) -> list[list[float]]:
    """Plain forward passes with Transformers alone."""
    scores = []
    for question in asked:
        values = []
        for choice, size in zip(question.choices, question.sizes, strict=True):
            ids = torch.tensor([question.prompt + choice])
            with torch.no_grad():
                chances = model(input_ids=ids).logits[0].log_softmax(-1)
            start = len(question.prompt)
            total = sum(float(chances[start + i - 1, token]) for i, token in enumerate(choice))
            values.append(total / size)
        scores.append(values)
    return scores


@pytest.mark.parametrize("family", ["llama", "mistral-window", "gemma2", "gpt2", "mixtral"])
def test_scores_are_those_of_each_choice_alone(family: str) -> None:
    model, asked = make_model(family), questions()
    said = Notes()
    found = choice_scores(model, asked, "probe", said)
    last = said.events[-1]
    assert isinstance(last, Progress)
    assert last.done == len(asked)
    for mine, theirs in zip(found, reference(model, asked), strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


def test_most_families_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> Any:
        raise AssertionError("asked one by one")

    for family in ("llama", "gpt2"):
        model, asked = make_model(family), questions()
        assert module._takes_the_mask(model, module._longest(asked))
        with monkeypatch.context() as patch:
            patch.setattr(module, "_takes_the_mask", lambda *_: True)
            patch.setattr(module, "_one_by_one", refuse)
            choice_scores(model, asked)


def test_a_model_that_ignores_the_mask_is_asked_one_by_one() -> None:
    model, asked = make_model("llama"), questions()
    expected = choice_scores(model, asked)

    class Ignores(nn.Module):
        """Runs the same weights, deaf to masks."""

        def __init__(self) -> None:
            super().__init__()
            self.module = model  # the project looks through this name, as through DDP

        def forward(self, **inputs: Any) -> Any:
            return self.module(**{k: v for k, v in inputs.items() if k != "attention_mask"})

    assert not module._takes_the_mask(Ignores(), module._longest(asked))
    for mine, theirs in zip(choice_scores(Ignores(), asked), expected, strict=True):
        assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("family", list(CHAT_FAMILIES))
def test_the_tokens_of_a_choice_say_that_choice(family: str, plain: bool) -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES[family])
    item = next(item for item in load_items() if item.id == "facts-001")
    question = tokenised(tokenizer, item, plain=plain)
    assert item.question.split()[-1] in tokenizer.decode(question.prompt)
    for choice, ids in zip((item.answer, *item.wrong), question.choices, strict=True):
        assert tokenizer.decode(ids).strip() == choice
