"""Templates that think, read the clock or change the past: what is learned is what inference asks for."""

import datetime
from typing import Any

import pytest
from data.thinkers import CLOCK, COMMAND, EXAONE, GLM, GPT_OSS, NEMO, R1, SWITCH, TOKENS
from families import CHAT_FAMILIES, QWEN3, make_tokenizer
from transformers import PreTrainedTokenizerBase

from luthier.data.conversation import Conversation, Origin
from luthier.data.formats import detect_format, to_conversation
from luthier.data.spans import renderings, stop_token_ids
from luthier.data.template import (
    TemplateRejects,
    chat_tokens,
    choose_template,
    render,
    set_template,
)
from luthier.data.thoughts import answer_shape, decode_answer
from luthier.errors import UserError
from luthier.recipe import DataGroup

CHATML = CHAT_FAMILIES["chatml"].template


def tokenizer_of(template: str, **switches: Any) -> PreTrainedTokenizerBase:
    family = CHAT_FAMILIES["llama3" if "bos_token" in template else "chatml"]
    tokenizer = make_tokenizer(family)
    tokenizer.add_special_tokens({"additional_special_tokens": TOKENS.get(template, [])})
    tokenizer.chat_template = template
    set_template(tokenizer, DataGroup(train="x", template_kwargs=switches))
    return tokenizer


def read(*turns: tuple[str, str] | dict[str, Any], **beside: Any) -> Conversation:
    messages = [
        {"role": turn[0], "content": turn[1]} if isinstance(turn, tuple) else turn for turn in turns
    ]
    row = {"messages": messages, **beside}
    fmt = detect_format(row)
    assert fmt is not None
    return to_conversation(row, fmt, Origin("rows.jsonl", 1))


def learned(tokenizer: PreTrainedTokenizerBase, row: Conversation) -> list[tuple[str, str]]:
    """Each learned answer with the text before it, which inference must render."""
    found = []
    for rendering in renderings(tokenizer, row.messages):
        for start, end in rendering.spans:
            found.append((rendering.text[:start], rendering.text[start:end]))
    for (before, _), place in zip(found, row.answers, strict=True):
        assert before == render(tokenizer, row.messages[:place], add_generation_prompt=True)
    return found


CAPITAL = (("user", "Capital of Italy?"), ("assistant", "Rome"))
SUM = ("user", "2 + 3?")
THOUGHT = {"role": "assistant", "content": "5", "reasoning_content": "Two plus three."}
INLINE = ("assistant", "<think>\nTwo plus three.\n</think>\n\n5")
END = "<|end_of_text|>"


@pytest.mark.parametrize(
    ("template", "row", "answers"),
    [
        (R1, read(*CAPITAL), [f"\n</think>\n\nRome{END}"]),
        (R1, read(SUM, THOUGHT), [f"Two plus three.\n</think>\n\n5{END}"]),
        (R1, read(SUM, INLINE), [f"Two plus three.\n</think>\n\n5{END}"]),
        (
            R1,
            read(SUM, INLINE, *CAPITAL),
            [f"Two plus three.\n</think>\n\n5{END}", f"\n</think>\n\nRome{END}"],
        ),
        (EXAONE, read(*CAPITAL), ["Rome[|endofturn|]"]),
        (NEMO, read(("system", "Be brief."), *CAPITAL), [f"Rome{END}"]),
        (NEMO, read(("system", "Be brief."), *CAPITAL, SUM, ("assistant", "5")), [f"Rome{END}", f"5{END}"]),
        (GPT_OSS, read(*CAPITAL), ["<|channel|>final<|message|>Rome<|return|>"]),
        (
            GPT_OSS,
            read(SUM, {**THOUGHT, "thinking": "Two plus three."}, *CAPITAL),
            [
                "<|channel|>analysis<|message|>Two plus three.<|end|><|start|>assistant"
                "<|channel|>final<|message|>5<|return|>",
                "<|channel|>final<|message|>Rome<|return|>",
            ],
        ),
        (GLM, read(*CAPITAL, SUM, ("assistant", "5")), ["Rome<|user|>", "5<|user|>"]),
        (COMMAND, read(*CAPITAL, SUM, ("assistant", "5")), ["<|START|>Rome<|END|><|END_TURN|>", "<|START|>5<|END|><|END_TURN|>"]),
        (SWITCH, read(*CAPITAL), ["<think>\n\n</think>\n\nRome<|im_end|>"]),
        (SWITCH, read(SUM, THOUGHT), ["<think>\nTwo plus three.\n</think>\n\n5<|im_end|>"]),
        (SWITCH, read(SUM, INLINE), ["<think>\nTwo plus three.\n</think>\n\n5<|im_end|>"]),
        # A template that knows nothing of thoughts shows those that stand in the content.
        (CHATML, read(SUM, INLINE), [f"{INLINE[1]}<|im_end|>"]),
    ],
)  # fmt: skip
def test_each_answer_is_learned_behind_the_prompt_of_inference(
    template: str, row: Conversation, answers: list[str]
) -> None:
    assert [answer for _, answer in learned(tokenizer_of(template), row)] == answers


def test_a_switch_is_kept_in_the_template_and_the_empty_thought_is_the_prompts() -> None:
    tokenizer = tokenizer_of(SWITCH, enable_thinking=False)
    ((before, answer),) = learned(tokenizer, read(*CAPITAL))
    assert before.endswith("assistant\n<think>\n\n</think>\n\n")
    assert answer == "Rome<|im_end|>"
    with pytest.raises(TemplateRejects, match="turn 2 has reasoning, but the chat template asks"):
        learned(tokenizer, read(SUM, THOUGHT))
    # A model that was saved so keeps it, unless the next run says otherwise.
    set_template(tokenizer, DataGroup(train="x"))
    assert render(tokenizer, read(*CAPITAL).prompt, add_generation_prompt=True) == before
    set_template(tokenizer, DataGroup(train="x", template_kwargs={"enable_thinking": True}))
    assert render(tokenizer, read(*CAPITAL).prompt, add_generation_prompt=True) != before


def test_a_switch_that_the_template_does_not_read() -> None:
    with pytest.raises(UserError, match="'enable_thinking', which the chat template does not read"):
        tokenizer_of(CHATML, enable_thinking=False)


def test_reasoning_that_no_template_would_show_is_an_error() -> None:
    with pytest.raises(TemplateRejects, match="omits the reasoning of turn 2; write it into"):
        learned(tokenizer_of(CHATML), read(SUM, THOUGHT))


def test_a_system_prompt_that_no_template_would_show_is_an_error() -> None:
    with pytest.raises(TemplateRejects, match="omits the system prompt"):
        learned(tokenizer_of(R1), read(("system", "Be brief."), *CAPITAL))


def test_the_day_stands_still() -> None:
    row = read(*CAPITAL)
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.chat_template = CLOCK
    day = datetime.date(2024, 7, 6)
    set_template(tokenizer, DataGroup(train="x", template_date=day))
    text = render(tokenizer, row.prompt, add_generation_prompt=True)
    assert text.startswith("Today is 06 Jul 2024. 2024-07-06\n")
    # Its own copy is what a run saves: who renders it later sees the same day.
    set_template(tokenizer, DataGroup(train="x"), day)
    assert render(tokenizer, row.prompt, add_generation_prompt=True) == text
    set_template(tokenizer, DataGroup(train="x"))
    today = datetime.date.today().isoformat()
    assert today in render(tokenizer, row.prompt, add_generation_prompt=True)


@pytest.mark.parametrize(
    ("template", "written", "said"),
    [
        (SWITCH, "<think>\n\n</think>\n\nRome", ("", "Rome")),
        (SWITCH, "<think>\nIt is old.\n</think>\n\nRome", ("It is old.", "Rome")),
        (SWITCH, "Rome", ("", "Rome")),
        (R1, "\n</think>\n\nRome", ("", "Rome")),
        (R1, "It is old.\n</think>\n\nRome", ("It is old.", "Rome")),
        (GPT_OSS, "<|channel|>final<|message|>Rome", ("", "Rome")),
        (
            GPT_OSS,
            "<|channel|>analysis<|message|>Old.<|end|><|start|>assistant<|channel|>final<|message|>Rome",
            ("Old.", "Rome"),
        ),
        (COMMAND, "<|START|>Rome<|END|>", ("", "Rome")),
        (CHATML, "<think>kept</think> Rome", ("", "<think>kept</think> Rome")),
    ],
)  # fmt: skip
def test_what_the_template_writes_before_the_content_is_no_answer(
    template: str, written: str, said: tuple[str, str]
) -> None:
    tokenizer = tokenizer_of(template)
    ids = tokenizer(written, add_special_tokens=False).input_ids + stop_token_ids(tokenizer)[:1]
    assert decode_answer(tokenizer, ids) == said


def test_a_stream_waits_until_it_knows_where_the_content_begins() -> None:
    shape = answer_shape(tokenizer_of(SWITCH))
    assert not shape.settled("<thi")
    assert not shape.settled("<think>\nIt is")
    assert shape.settled("<think>\nIt is old.\n</think>\n\n")
    assert shape.settled("Rome")


def test_tokens_that_end_tool_calls_stop_an_answer_too() -> None:
    tokenizer = tokenizer_of(GPT_OSS)
    names = tokenizer.convert_ids_to_tokens(stop_token_ids(tokenizer))
    assert {"<|return|>", "<|call|>"} <= set(names)


def test_a_row_may_end_in_a_call() -> None:
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    call = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    row = read(("system", "Tools: "), SUM, {"role": "assistant", "tool_calls": [call]}, tools=tools)
    ((_, answer),) = learned(tokenizer_of(GPT_OSS), row)
    assert answer == ' to=add<|message|>{"x": 1}<|call|>'


def test_arguments_and_ids_in_the_form_that_a_template_takes() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": {"x": 1}}}
    turns = (SUM, {"role": "assistant", "tool_calls": [call]}, {"role": "tool", "content": "3"})
    rows = (*turns, ("assistant", "3"))
    loop = "{% for m in messages %}{{ '<|im_start|>' + m.role + m.content }}"
    end = "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
    joins = "{% for c in m.tool_calls %}{{ c.function.name + c.function.arguments }}{% endfor %}"
    nine = (
        "{% for c in m.tool_calls %}{% if c.id | length != 9 %}{{ raise_exception('nine') }}{% endif %}"
        "{{ c.function | tojson + c.id }}{% endfor %}"
        "{% if m.role == 'tool' %}{% if m.tool_call_id | length != 9 %}{{ raise_exception('nine') }}"
        "{% endif %}{{ m.tool_call_id }}{% endif %}"
    )
    (_, (_, _)) = learned(tokenizer_of(loop + joins + end), read(*rows))
    ((_, asked), (before, _)) = learned(tokenizer_of(loop + nine + end), read(*rows))
    made = asked.removesuffix("<|im_end|>")[-9:]
    assert before.count(made) == 2  # in the call and in its answer


def test_answers_that_are_excluded_are_seen_and_not_learned() -> None:
    bad = {"role": "assistant", "content": "Bad answer", "weight": 0}
    row = read(("user", "a"), bad, ("user", "b"), ("assistant", "good"))
    ((before, answer),) = learned(tokenizer_of(CHATML), row)
    assert "Bad answer" in before
    assert answer == "good<|im_end|>"
    last = read(("user", "a"), ("assistant", "good"), ("user", "b"), bad)
    assert [answer for _, answer in learned(tokenizer_of(CHATML), last)] == ["good<|im_end|>"]
    assert (last.reference, last.prompt[-1]["content"]) == ("good", "a")


def test_chat_tokens_without_a_template_are_seen() -> None:
    tokenizer = tokenizer_of(CHATML)
    tokenizer.chat_template = None
    assert choose_template(tokenizer, "auto") == "alpaca"
    assert "<|im_start|>" in chat_tokens(tokenizer)
    plain = make_tokenizer(CHAT_FAMILIES["mistral-bytes"])
    assert chat_tokens(plain) == []


def test_qwen3s_form_in_a_conversation_of_many_turns() -> None:
    row = read(*CAPITAL, SUM, ("assistant", "5"), *CAPITAL)
    answers = [answer for _, answer in learned(tokenizer_of(QWEN3), row)]
    assert answers == [f"<think>\n\n</think>\n\n{text}<|im_end|>" for text in ("Rome", "5", "Rome")]
