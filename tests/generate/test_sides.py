"""Base and tuned asked together answer as each does alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from generate.test_decoder import PROMPTS, TOKENIZER, adapted

from luthier.generate.answer import Sampling, answer_all
from luthier.generate.sides import answer_sides


@dataclass
class Models:
    """Stands for a ``TunedModel``; ``base`` is None where the tuned model holds it."""

    tuned: Any
    base: Any = None
    tokenizer: Any = TOKENIZER

    @property
    def holds_base(self) -> bool:
        return self.base is None

    @contextmanager
    def as_base(self) -> Iterator[Any]:
        yield self.base


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_both_sides_are_as_each_alone(family: str, temperature: float) -> None:
    target = {"target_modules": ["c_attn"]} if family == "gpt2" else {}
    model = adapted(family, **target)
    sampling = Sampling(max_new_tokens=12, temperature=temperature, seed=3)
    expected = {"tuned": answer_all(model, TOKENIZER, PROMPTS, sampling, 4)}
    with model.disable_adapter():
        expected["base"] = answer_all(model, TOKENIZER, PROMPTS, sampling, 4)
    assert expected["base"] != expected["tuned"]
    models: Any = Models(model)
    assert answer_sides(models, PROMPTS, ["base", "tuned"], sampling, 4) == expected
    assert answer_sides(models, PROMPTS, ["base"], sampling, 4) == {"base": expected["base"]}


def test_a_base_of_its_own() -> None:
    """After full fine-tuning the base is another model."""
    tuned, base = adapted("llama"), adapted("llama", lora_r=2)
    sampling = Sampling(max_new_tokens=12)
    models: Any = Models(tuned, base)
    assert answer_sides(models, PROMPTS, ["base", "tuned"], sampling, 4) == {
        "base": answer_all(base, TOKENIZER, PROMPTS, sampling, 4),
        "tuned": answer_all(tuned, TOKENIZER, PROMPTS, sampling, 4),
    }
