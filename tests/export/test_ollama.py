"""What Ollama would send to the model is what the trained template sends."""

import pytest
from families import CHAT_FAMILIES, CHATML, HERMES, QWEN3, make_tokenizer
from go_template import execute
from transformers import PreTrainedTokenizerFast

from luthier.data.template import ALPACA_TEMPLATE, TemplateRejects, render
from luthier.errors import UserError
from luthier.export.ollama import go_template, modelfile, read_turns

# As Qwen 2.5 and SmolLM2 have it: a system prompt of their own where none is given.
DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\\nYou \"help\".\\\\<|im_end|>\\n' }}"
    "{% endif %}" + CHATML
)
TEMPLATES = {
    **{name: family.template for name, family in CHAT_FAMILIES.items()},
    "alpaca": ALPACA_TEMPLATE,
    "qwen3": QWEN3,
    "hermes": HERMES,
    "default system": DEFAULT_SYSTEM,
}
CONVERSATIONS = [
    ["user"],
    ["system", "user"],
    ["user", "assistant", "user"],
    ["system", "user", "assistant", "user", "assistant", "user"],
]


def tokenizer_for(name: str) -> PreTrainedTokenizerFast:
    tokenizer = make_tokenizer(CHAT_FAMILIES.get(name, CHAT_FAMILIES["chatml"]))
    tokenizer.chat_template = TEMPLATES[name]
    return tokenizer


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_go_template_writes_what_the_trained_one_does(name: str) -> None:
    tokenizer = tokenizer_for(name)
    template = go_template(read_turns(tokenizer))
    compared = 0
    for roles in CONVERSATIONS:
        messages = tuple({"role": r, "content": f"{r} {{{{ no {i}"} for i, r in enumerate(roles))
        try:
            wanted = render(tokenizer, messages, add_generation_prompt=True)
        except TemplateRejects:
            continue  # gemma's has no system turn
        if any(m["content"] not in wanted for m in messages):
            continue  # mistral's leaves it out
        assert execute(template, list(messages)) == wanted
        compared += 1
    assert compared >= 2


def test_an_answer_begun_is_gone_on_with() -> None:
    template = go_template(read_turns(tokenizer_for("chatml")))
    text = execute(
        template, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    )
    assert text.endswith("<|im_start|>assistant\nb")


def test_a_template_that_cannot_be_written_is_refused() -> None:
    """One whose turns change with their number: Ollama would answer by another template."""
    tokenizer = tokenizer_for("chatml")
    tokenizer.chat_template = CHATML.replace("m.role", "m.role + ' ' + (loop.index | string)")
    with pytest.raises(UserError, match="cannot be written for Ollama"):
        read_turns(tokenizer)
    tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(UserError, match="skips turns"):
        read_turns(tokenizer)


def test_the_modelfile() -> None:
    text = modelfile(tokenizer_for("llama3"), "x.gguf", 512)
    assert "FROM ./x.gguf\n" in text
    assert 'PARAMETER stop "<|eot_id|>"' in text and 'PARAMETER stop "<|end_of_text|>"' in text
    assert "PARAMETER temperature 0\n" in text and "PARAMETER repeat_penalty 1\n" in text
    assert "no system prompt" in modelfile(tokenizer_for("gemma"), "x.gguf", 512)
    plain = tokenizer_for("chatml")
    plain.chat_template = None
    assert 'TEMPLATE """{{ .Prompt }}"""' in modelfile(plain, "x.gguf", 512)
