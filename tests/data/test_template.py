import json
from pathlib import Path

import pytest
from families import CHAT_FAMILIES, make_tokenizer
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers import PreTrainedTokenizerFast

from luthier.data.conversation import Origin
from luthier.data.formats import to_conversation
from luthier.data.spans import stop_token_ids
from luthier.data.template import choose_template, render
from luthier.data.tokens import Tokenizer
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


DEEPSEEK = Path(__file__).parents[3] / "shared" / "tokenizers" / "deepseek_v3"


@pytest.mark.skipif(not DEEPSEEK.is_dir(), reason="DeepSeek V3's tokenizer is not here")
@pytest.mark.parametrize("count", [1, 2])
def test_calls_of_a_template_that_wants_no_content_beside_them(count: int) -> None:
    """DeepSeek V3's real one: as its own Jinja renders it with the content null."""
    config = json.loads((DEEPSEEK / "tokenizer_config.json").read_text("utf-8"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(DEEPSEEK / "tokenizer.json"))
    for name in ("bos_token", "eos_token"):
        setattr(tokenizer, name, config[name]["content"])
    tokenizer.chat_template = config["chat_template"]
    calls = [
        {"type": "function", "function": {"name": "add", "arguments": {"x": n}}}
        for n in range(count)
    ]
    row = {
        "messages": [
            {"role": "user", "content": "Add."},
            {"role": "assistant", "content": None, "tool_calls": calls},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "It is 3."},
        ]
    }
    conversation = to_conversation(row, "messages", Origin("x.jsonl", 1))
    written = [
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
        f'{{"x": {n}}}\n```<｜tool▁call▁end｜>'
        for n in range(count)
    ]
    ends = "<｜tool▁calls▁end｜><｜end▁of▁sentence｜>" if count > 1 else ""
    learned = "<｜tool▁calls▁begin｜>" + "\n".join(written) + ends
    before = "<｜begin▁of▁sentence｜><｜User｜>Add."
    after = "<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>3<｜tool▁output▁end｜><｜tool▁outputs▁end｜>"
    answer = "It is 3.<｜end▁of▁sentence｜>"
    whole = f"{before}<｜Assistant｜>{learned}{after}{answer}"
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    turns = json.loads(json.dumps(row["messages"]))
    for call in turns[1]["tool_calls"]:
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"])
    template = environment.from_string(config["chat_template"])
    assert template.render(messages=turns, bos_token="<｜begin▁of▁sentence｜>") == whole
    pieces = Tokenizer(tokenizer, "completions").encode(conversation)
    (piece,) = pieces
    assert tokenizer.decode(piece.input_ids) == whole
    supervised = [i for i, on in zip(piece.input_ids, piece.supervised, strict=True) if on]
    assert tokenizer.decode(supervised) == learned + answer
