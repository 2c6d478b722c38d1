"""What stands beside the turns, and in them beside the text: used, or named as unused."""

from typing import Any

import pytest

from luthier.data.conversation import Conversation, Origin
from luthier.data.formats import detect_format, to_conversation
from luthier.data.readers import BadRow
from luthier.data.unused import sounds_like_content, unused_fields

ORIGIN = Origin("rows.jsonl", 1)
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "Answer only in French."}
FUNCTION = {"name": "add", "parameters": {}}


def read(**row: Any) -> Conversation:
    fmt = detect_format(row)
    assert fmt is not None
    return to_conversation(row, fmt, ORIGIN)


def answer(**fields: Any) -> Conversation:
    return read(messages=[USER, {**ANSWER, **fields}])


@pytest.mark.parametrize("name", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_is_part_of_the_turn_by_any_name(name: str) -> None:
    row = answer(**{name: "Add them."})
    assert row.messages[1]["reasoning_content"] == "Add them."
    part = [{"type": "thinking", "thinking": "Add them."}, {"type": "text", "text": "a"}]
    assert answer(content=part).messages == row.messages


@pytest.mark.parametrize(
    "name", ["weight", "train", "training", "trainable", "loss", "loss_weight"]
)
@pytest.mark.parametrize("value", [0, 0.0, False])
def test_flags_take_an_answer_out_of_the_loss(name: str, value: Any) -> None:
    turns = [USER, {**ANSWER, name: value}, USER, {**ANSWER, name: 1}]
    assert read(messages=turns).answers == [3]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"weight": 0.5}, "turn 2 has 'weight' 0.5"),
        ({"train": "no"}, "turn 2 has 'train' 'no'"),
        ({"weight": 1, "train": False}, "flags that disagree"),
        ({"weight": 0}, "every answer is excluded from the loss"),
        ({"train_detail": [{"begin_offset": 0}]}, "'train_detail', which excludes parts"),
        ({"thinking": "x", "reasoning": "y"}, "its reasoning twice"),
        ({"thinking": {"a": 1}}, "a 'thinking' that is not text"),
    ],
)
def test_what_a_turn_cannot_say_is_told(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow, match=said):
        answer(**fields)


@pytest.mark.parametrize(
    "row",
    [
        {"system": SYSTEM["content"], "prompt": "q", "completion": "a"},
        {"system": SYSTEM["content"], "messages": [USER, ANSWER]},
        {"system_prompt": SYSTEM["content"], "messages": [SYSTEM, USER, ANSWER]},
        {"system": SYSTEM["content"], "instruction": "q", "output": "a"},
        {"system": SYSTEM["content"], "conversations": [USER, ANSWER]},
        {"system": SYSTEM["content"], "prompt": [USER], "completion": [ANSWER]},
    ],
)
def test_a_system_prompt_beside_the_turns_leads_them(row: dict[str, Any]) -> None:
    read_row = read(**row)
    assert read_row.messages == (SYSTEM, USER, ANSWER)
    assert read_row.extra == {}


def test_two_system_prompts_are_told() -> None:
    with pytest.raises(BadRow, match="two system prompts"):
        read(system="Other.", messages=[SYSTEM, USER, ANSWER])


def test_llama_factorys_history_comes_before_the_question() -> None:
    row = read(instruction="q", input="", output="a", history=[["q1", "a1"]], system="s")
    assert [m["content"] for m in row.messages] == ["s", "q1", "a1", "q", "a"]
    with pytest.raises(BadRow, match="'history' is not a list of pairs"):
        read(instruction="q", output="a", history=["q1", "a1"])


@pytest.mark.parametrize(
    "beside",
    [{"tools": [{"type": "function", "function": FUNCTION}]}, {"functions": [FUNCTION]}],
)
def test_tools_by_both_names_and_in_every_format(beside: dict[str, Any]) -> None:
    call = {"role": "assistant", "function_call": {"name": "add", "arguments": "{}"}}
    for row in ({"messages": [USER, call]}, {"instruction": "q", "output": "a"}):
        tools = read(**row, **beside).messages[0]["tools"]
        assert tools == [{"type": "function", "function": FUNCTION}]


def test_calls_that_hermes_writes_as_text() -> None:
    said = 'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"x": 1}}\n</tool_call>'
    result = "<tool_response>\n3\n</tool_response>"
    turns = [USER, {**ANSWER, "content": said}, {"role": "tool", "content": result}, ANSWER]
    called, told = read(messages=turns).messages[1:3]
    assert called["content"] == "Let me see."
    assert called["tool_calls"][0]["function"] == {"name": "add", "arguments": {"x": 1}}
    assert told["content"] == "3"


def test_a_tools_answer_as_an_object_and_parts_by_other_names() -> None:
    call = {"role": "assistant", "tool_calls": [{"name": "add", "arguments": {}}]}
    turns = [USER, call, {"role": "tool", "content": {"sum": 3}}, ANSWER]
    assert read(messages=turns).messages[2]["content"] == '{"sum": 3}'
    parts = [{"type": "text", "value": "q"}]
    assert read(messages=[{"role": "user", "content": parts}, ANSWER]).messages[0] == USER


@pytest.mark.parametrize("key", ["images", "audios", "video"])
def test_rows_that_are_not_text_alone_are_told(key: str) -> None:
    with pytest.raises(BadRow, match=f"'{key}' is not empty"):
        read(messages=[USER, ANSWER], **{key: ["a.png"]})
    assert read(messages=[USER, ANSWER], **{key: []}).messages == (USER, ANSWER)


def test_what_nothing_uses_is_named_once() -> None:
    turn = {**ANSWER, "refusal": None, "tool_calls": [], "score": 3, "speaker_role": "x"}
    rows = [read(messages=[USER, turn], prompt="q", context="c", id=n) for n in range(3)]
    found = {field.field: field for field in unused_fields(rows)}
    assert set(found) == {
        "context",
        "id",
        "score of assistant turns",
        "speaker_role of assistant turns",
    }
    assert all(field.rows == 3 for field in found.values())
    loud = {name for name, field in found.items() if field.may_be_content}
    assert loud == {"context", "speaker_role of assistant turns"}


@pytest.mark.parametrize(
    ("name", "loud"),
    [
        ("systemPrompt", True),
        ("loss_mask", True),
        ("chain_of_thought", True),
        ("prompt_id", False),
        ("outputTokens", False),
        ("created_at", False),
        ("模型", False),
    ],
)
def test_names_that_sound_like_content(name: str, loud: bool) -> None:
    assert sounds_like_content(name) == loud
