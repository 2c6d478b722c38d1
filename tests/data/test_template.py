from pathlib import Path

import pytest
from families import CHAT_FAMILIES, make_tokenizer

from luthier.data.spans import stop_token_ids
from luthier.data.template import choose_template, render
from luthier.errors import UserError

ASK = ({"role": "user", "content": "hi"},)


def test_the_choice_is_named() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    own = tokenizer.chat_template
    assert choose_template(tokenizer, "auto") == "model"
    assert tokenizer.chat_template == own
    assert choose_template(tokenizer, "alpaca") == "alpaca"
    assert render(tokenizer, ASK, add_generation_prompt=True).endswith("### Response:\n")


def test_a_base_model_gets_alpacas_and_cannot_be_asked_for_its_own() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        choose_template(tokenizer, "model")
    assert choose_template(tokenizer, "auto") == "alpaca"


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    file = tmp_path / "mine.jinja"
    file.write_text("{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}")
    assert choose_template(tokenizer, str(file)) == str(file)
    assert render(tokenizer, ASK, add_generation_prompt=True) == "[user] hi"
    with pytest.raises(UserError, match="or an existing file"):
        choose_template(tokenizer, "mine.jinja")


def test_templates_run_in_a_sandbox() -> None:
    from luthier.data.template import TemplateRejects

    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.chat_template = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    with pytest.raises(TemplateRejects):
        render(tokenizer, ASK, add_generation_prompt=False)


@pytest.mark.parametrize("name", CHAT_FAMILIES)
def test_answers_stop_at_the_token_that_training_ends_them_with(name: str) -> None:
    family = CHAT_FAMILIES[name]
    tokenizer = make_tokenizer(family)
    expected = {tokenizer.convert_tokens_to_ids(t) for t in (family.answer_end, family.eos)}
    assert set(stop_token_ids(tokenizer)) == expected
