"""The loss mask, token by token: what is supervised is the answers and what ends them, no more."""

from pathlib import Path
from typing import Any

import pytest
from families import CHAT_FAMILIES, HERMES, MISTRAL_TOOLS, QWEN3, Family, make_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from luthier.data.conversation import Origin
from luthier.data.formats import detect_format, to_conversation
from luthier.data.spans import History
from luthier.data.template import TemplateRejects, choose_template, render
from luthier.data.tokens import Tokenizer, TokenRow, cut

ANSWERS = ["Paris.", "  It is 3 < 4;\nyes  ", "naïve 🎻 café"]


def encode_all(
    tokenizer: PreTrainedTokenizerBase, row: dict[str, Any], history: History = "split"
) -> list[TokenRow]:
    fmt = detect_format(row)
    assert fmt is not None
    return Tokenizer(tokenizer, "completions", history).encode(
        to_conversation(row, fmt, Origin("rows.jsonl", 1))
    )


def encode(tokenizer: PreTrainedTokenizerBase, row: dict[str, Any]) -> TokenRow:
    (only,) = encode_all(tokenizer, row)
    return only


def supervised_texts(tokenizer: PreTrainedTokenizerBase, row: TokenRow) -> list[str]:
    """Each run of supervised tokens, decoded."""
    runs: list[list[int]] = []
    before = False
    for token, counts in zip(row.input_ids, row.supervised, strict=True):
        if counts:
            if not before:
                runs.append([])
            runs[-1].append(token)
        before = counts
    return [tokenizer.decode(run, skip_special_tokens=False) for run in runs]


def single(answer: str) -> list[dict[str, Any]]:
    """The same conversation in every format."""
    return [
        {"instruction": "Capital of France?", "input": "", "output": answer},
        {"messages": turns(["Capital of France?"], [answer])},
        {
            "conversations": [
                {"from": "human", "value": "Capital of France?"},
                {"from": "gpt", "value": answer},
            ]
        },
        {"prompt": "Capital of France?", "completion": answer},
    ]


def turns(questions: list[str], answers: list[str]) -> list[dict[str, str]]:
    return [
        {"role": role, "content": text}
        for pair in zip(questions, answers, strict=True)
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]


def learned(name: str, family: Family, answer: str) -> str:
    """What the model has to write after the prompt of this family's template."""
    if name in ("llama3", "gemma"):  # these templates trim
        answer = answer.strip()
    text = family.answer_start + answer + family.answer_end
    # SentencePiece's decoder drops the space that it puts before every text.
    return text.removeprefix(" ") if family.metaspace else text


@pytest.mark.parametrize("name", CHAT_FAMILIES)
@pytest.mark.parametrize("answer", ANSWERS)
def test_single_turn_in_every_format(name: str, answer: str) -> None:
    family = CHAT_FAMILIES[name]
    tokenizer = make_tokenizer(family)
    encoded = [encode(tokenizer, row) for row in single(answer)]
    for row in encoded:
        assert supervised_texts(tokenizer, row) == [learned(name, family, answer)]
        assert row.input_ids == encoded[0].input_ids


@pytest.mark.parametrize("name", CHAT_FAMILIES)
def test_every_answer_of_a_conversation_counts_and_no_question(name: str) -> None:
    family = CHAT_FAMILIES[name]
    tokenizer = make_tokenizer(family)
    # The same words in question and answer: a search for the answer's text would go wrong.
    questions, answers = ["yes", "ok", "yes ok"], ["ok", "yes", "yes"]
    messages = turns(questions, answers)
    if family.system:
        messages = [{"role": "system", "content": "ok yes"}, *messages]
    row = encode(tokenizer, {"messages": messages})
    assert supervised_texts(tokenizer, row) == [learned(name, family, a) for a in answers]


@pytest.mark.parametrize("name", CHAT_FAMILIES)
def test_the_prompt_of_training_is_the_prompt_of_inference(name: str) -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES[name])
    for answer in ANSWERS:
        row = encode(tokenizer, single(answer)[0])
        prompt = render(
            tokenizer,
            ({"role": "user", "content": "Capital of France?"},),
            add_generation_prompt=True,
        )
        ids = tokenizer(prompt, add_special_tokens=False).input_ids
        assert row.input_ids[: len(ids)] == ids
        assert not any(row.supervised[: len(ids)])
        assert all(row.supervised[len(ids) : len(ids) + 1])


def test_alpaca_template_for_a_base_model() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["mistral-bytes"])
    tokenizer.chat_template = None
    assert choose_template(tokenizer, "auto") == "alpaca"
    plain = encode(tokenizer, {"instruction": "Sort.", "output": "1 2"})
    given = encode(tokenizer, {"instruction": "Sort.", "input": "2 1", "output": "1 2"})
    for row in (plain, given):
        assert supervised_texts(tokenizer, row) == ["1 2</s>"]
    assert tokenizer.decode(given.input_ids) == (
        "Below is an instruction that describes a task, paired with an input that provides "
        "further context. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nSort.\n\n### Input:\n2 1\n\n### Response:\n1 2</s>"
    )
    assert "paired with an input" not in tokenizer.decode(plain.input_ids)
    two = encode(tokenizer, {"messages": turns(["a", "b"], ["c", "d"])})
    assert supervised_texts(tokenizer, two) == ["c</s>", "d</s>"]


def test_a_template_that_writes_past_turns_otherwise() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.chat_template = QWEN3
    messages = {"messages": turns(["a", "b"], ["c", "d"])}
    thought = "<think>\n\n</think>\n\n"
    first, second = encode_all(tokenizer, messages)
    # Each answer as if it were the last, behind the prompt that inference puts before it.
    assert supervised_texts(tokenizer, first) == [f"{thought}c<|im_end|>"]
    assert supervised_texts(tokenizer, second) == [f"{thought}d<|im_end|>"]
    assert tokenizer.decode(second.input_ids).count("<think>") == 1
    (whole,) = encode_all(tokenizer, messages, "as_is")
    assert supervised_texts(tokenizer, whole) == ["c<|im_end|>", f"{thought}d<|im_end|>"]


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def tool_row(*calls: dict[str, Any], content: str | None = None) -> dict[str, Any]:
    return {
        "tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}],
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "1 + 2?"},
            {"role": "assistant", "content": content, "tool_calls": list(calls)},
            *({"role": "tool", "content": "add gives 3"} for _ in calls),
            {"role": "assistant", "content": "3"},
            {"role": "user", "content": "2 + 2?"},
            {"role": "assistant", "content": "", "tool_calls": [call("add", x=2, y="2")]},
        ],
    }


def hermes_call(arguments: str) -> str:
    return f'<tool_call>\n{{"name": "add", "arguments": {arguments}}}\n</tool_call>'


LAST_CALL = hermes_call('{"x": 2, "y": "2"}') + "<|im_end|>"


def test_a_tool_call_is_learned_and_the_tools_answer_is_not() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.chat_template = HERMES
    row = encode(tokenizer, tool_row(call("add", x=1, y=2)))
    first = hermes_call('{"x": 1, "y": 2}')
    assert supervised_texts(tokenizer, row) == [f"{first}<|im_end|>", "3<|im_end|>", LAST_CALL]
    text = tokenizer.decode(row.input_ids)
    assert text.startswith("<|im_start|>system\nBe brief.\n\n<tools>\n")
    assert "<tool_response>\nadd gives 3\n</tool_response>" in text


def test_several_calls_and_words_beside_them() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.chat_template = HERMES
    row = encode(tokenizer, tool_row(call("add", x=1), call("add", x=2), content="Let me see."))
    calls = "\n".join(["Let me see.", hermes_call('{"x": 1}'), hermes_call('{"x": 2}')])
    assert supervised_texts(tokenizer, row) == [f"{calls}<|im_end|>", "3<|im_end|>", LAST_CALL]


def test_the_tags_of_a_call_may_be_tokens_of_their_own() -> None:
    """Qwen's tags are added tokens: the span must not end at the first of them."""
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer.chat_template = HERMES
    row = encode(tokenizer, tool_row(call("add", x=1, y=2)))
    first = hermes_call('{"x": 1, "y": 2}')
    assert supervised_texts(tokenizer, row) == [f"{first}<|im_end|>", "3<|im_end|>", LAST_CALL]


def test_a_template_that_takes_no_answer_without_a_call() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["mistral-bytes"])
    tokenizer.chat_template = MISTRAL_TOOLS
    asked = tool_row(call("add", x=1, y=2))
    asked["messages"] = asked["messages"][
        1:5
    ]  # one question: this template lists tools at the last
    row = encode(tokenizer, {**asked, "tools": None})
    assert supervised_texts(tokenizer, row) == [
        '[TOOL_CALLS] [{"name": "add", "arguments": {"x": 1, "y": 2}}]</s>',
        " 3</s>",
    ]


def test_the_prompt_of_a_call_is_the_prompt_of_inference() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.chat_template = HERMES
    row = encode(tokenizer, tool_row(call("add", x=1, y=2)))
    prompt = render(tokenizer, row.conversation.prompt, add_generation_prompt=True)
    assert "<tools>" in prompt
    ids = tokenizer(prompt, add_special_tokens=False).input_ids
    assert row.input_ids[: len(ids)] == ids
    assert all(row.supervised[len(ids) : -1])


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (CHAT_FAMILIES["chatml"].template, "omits the tools that may be called"),
        (HERMES.replace("call.function.name", "'x'"), "omits the tool call of turn 3"),
        (HERMES.replace("| tojson + '}", "| length | string + '}"), "the tool call of turn 3"),
        (HERMES.replace("m.content + '\\n</tool_r", "'\\n</tool_r"), "tool's answer of turn 4"),
        (HERMES.replace("{% if m.content %}", "{% if 0 %}"), "omits the text beside"),
    ],
)
def test_a_template_that_leaves_out_what_tools_say_is_told(template: str, said: str) -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.chat_template = template
    with pytest.raises(TemplateRejects, match=said):
        encode(tokenizer, tool_row(call("add", x=1), content="Let me see."))


def test_the_real_model(real_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    for answer in ANSWERS:
        for row in single(answer):
            assert supervised_texts(tokenizer, encode(tokenizer, row)) == [answer + "<|im_end|>"]
    row = encode(tokenizer, {"messages": turns(["a", "b"], ["c", "d"])})
    assert supervised_texts(tokenizer, row) == ["c<|im_end|>", "d<|im_end|>"]


def test_a_role_that_the_template_refuses_is_told() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["gemma"])
    messages = [{"role": "system", "content": "s"}, *turns(["a"], ["b"])]
    with pytest.raises(TemplateRejects, match="System role not supported"):
        encode(tokenizer, {"messages": messages})


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
    ],
)
def test_a_template_that_hides_the_answer_is_told(template: str) -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.chat_template = template
    with pytest.raises(TemplateRejects, match="the chat template"):
        encode(tokenizer, {"prompt": "a", "completion": "b"})


def test_train_on_all_counts_all_but_the_first() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    conversation = to_conversation(single("Paris.")[0], "alpaca", Origin("f", 1))
    (row,) = Tokenizer(tokenizer, "all").encode(conversation)
    assert row.supervised == [False] + [True] * (len(row) - 1)


@pytest.mark.parametrize("name", ["chatml", "llama3", "mistral"])
def test_plain_text_is_learned_whole_and_ended(name: str) -> None:
    family = CHAT_FAMILIES[name]
    tokenizer = make_tokenizer(family)
    row = encode(tokenizer, {"text": "Once upon a time."})
    assert row.supervised == [False] + [True] * (len(row) - 1)
    assert row.input_ids[-1] == tokenizer.eos_token_id
    assert row.input_ids.count(int(tokenizer.eos_token_id)) == 1


def test_cutting_a_conversation_keeps_its_start() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    row = encode(tokenizer, single("one two three four")[0])
    first = row.supervised.index(True)
    assert cut(row, len(row)) == [row]
    assert cut(row, first) == []  # nothing left to learn
    (head,) = cut(row, first + 2)
    assert head.input_ids == row.input_ids[: first + 2]
    assert sum(head.supervised) == 2


def test_cutting_a_text_loses_nothing() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    row = encode(tokenizer, {"text": "word " * 50})
    pieces = cut(row, 16)
    assert [token for piece in pieces for token in piece.input_ids] == row.input_ids
    assert all(len(piece) <= 16 and not piece.supervised[0] for piece in pieces)
