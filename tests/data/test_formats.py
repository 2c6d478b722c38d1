import json
from typing import Any

import pytest

from luthier.data.conversation import Conversation, Origin
from luthier.data.formats import detect_format, to_conversation
from luthier.data.readers import BadRow

ORIGIN = Origin("f.jsonl", 3)
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}
CALLS = [{"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}]
CALL = {"role": "assistant", "content": "", "tool_calls": CALLS}
RESULT = {"role": "tool", "content": "2"}
TOOLS = [{"type": "function", "function": {"name": "add"}}]
WORSE = {"role": "assistant", "content": "b"}

GOOD: list[tuple[str, dict[str, Any], tuple[dict[str, Any], ...]]] = [
    ("alpaca", {"instruction": "q", "output": "a"}, (USER, ANSWER)),
    ("alpaca", {"instruction": "q", "input": "", "output": "a"}, (USER, ANSWER)),
    ("alpaca", {"instruction": "q", "input": None, "output": "a"}, (USER, ANSWER)),
    ("alpaca", {"instruction": "q", "input": "i", "output": "a"}, ({**USER, "input": "i"}, ANSWER)),
    (
        "alpaca",
        {"instruction": "q", "input": "", "output": "a", "system": "s"},
        (SYSTEM, USER, ANSWER),
    ),
    ("messages", {"messages": [SYSTEM, USER, ANSWER]}, (SYSTEM, USER, ANSWER)),
    ("messages", {"messages": [USER, ANSWER, USER, ANSWER]}, (USER, ANSWER, USER, ANSWER)),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        (USER, ANSWER),
    ),
    ("sharegpt", {"conversations": [USER, ANSWER]}, (USER, ANSWER)),
    (
        "sharegpt",
        {
            "system": "s",
            "conversations": [{"from": "Human", "value": "q"}, {"from": "model", "value": "a"}],
        },
        (SYSTEM, USER, ANSWER),
    ),
    ("prompt_completion", {"prompt": "q", "completion": "a"}, (USER, ANSWER)),
    (
        "prompt_completion",
        {"prompt": [SYSTEM, USER], "completion": [ANSWER]},
        (SYSTEM, USER, ANSWER),
    ),
    (
        "messages",
        {
            "tools": TOOLS,
            "messages": [
                USER,
                # As OpenAI writes it: no content, the arguments as JSON text.
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"function": {"name": "add", "arguments": '{"x": 1}'}}],
                },
                RESULT,
                ANSWER,
            ],
        },
        ({**USER, "tools": TOOLS}, CALL, RESULT, ANSWER),
    ),
    (
        "sharegpt",
        {
            "tools": json.dumps(TOOLS),
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "add", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "a"},
            ],
        },
        ({**USER, "tools": TOOLS}, CALL, RESULT, ANSWER),
    ),
    (
        "messages",
        {
            "messages": [
                {
                    "role": "user",
                    "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "!"}],
                },
                ANSWER,
            ]
        },
        ({**USER, "content": "q!"}, ANSWER),
    ),
    ("messages", {"messages": json.dumps([USER, ANSWER])}, (USER, ANSWER)),
]

PAIRS: list[dict[str, Any]] = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"question": "q", "chosen": "a", "rejected": "b"},
    {"prompt": [USER], "chosen": [ANSWER], "rejected": [WORSE]},
    {"prompt": "q", "chosen": [ANSWER], "rejected": [WORSE]},
    {"chosen": [USER, ANSWER], "rejected": [USER, WORSE]},
    # UltraFeedback's form says everything twice.
    {
        "prompt": "q",
        "chosen": [USER, ANSWER],
        "rejected": [USER, WORSE],
        "messages": [USER, ANSWER],
    },
]


@pytest.mark.parametrize("row", PAIRS)
def test_both_answers_of_a_preference_pair_are_kept(row: dict[str, Any]) -> None:
    assert detect_format(row) == "preference"
    conversation = to_conversation({**row, "score": 3}, "preference", ORIGIN)
    assert conversation.messages == (USER, ANSWER)
    assert conversation.rejected == WORSE
    assert conversation.extra["score"] == 3
    assert Conversation.from_row(conversation.to_row()) == conversation


def test_pairs_without_a_prompt_may_be_transcripts() -> None:
    before = "\n\nHuman: q\n\nAssistant: a\n\nHuman: Human: or not?\n\nAssistant:"
    row = {"chosen": f"{before} yes", "rejected": f"{before} no: why"}
    conversation = to_conversation(row, "preference", ORIGIN)
    assert [(m["role"], m["content"]) for m in conversation.messages] == [
        ("user", "q"),
        ("assistant", "a"),
        ("user", "Human: or not?"),
        ("assistant", "yes"),
    ]
    assert conversation.rejected == {"role": "assistant", "content": "no: why"}


def test_the_system_prompt_of_a_pair() -> None:
    row = {"system": "s", "question": "q", "chosen": "a", "rejected": "b"}
    assert to_conversation(row, "preference", ORIGIN).messages == (SYSTEM, USER, ANSWER)


def test_the_reference_of_a_call_is_the_call() -> None:
    row = {"messages": [USER, CALL]}
    reference = to_conversation(row, "messages", ORIGIN).reference
    assert json.loads(reference) == {"name": "add", "arguments": {"x": 1}}


@pytest.mark.parametrize(("fmt", "row", "messages"), GOOD)
def test_every_format_becomes_the_same_conversation(
    fmt: str, row: dict[str, Any], messages: tuple[dict[str, str], ...]
) -> None:
    assert detect_format(row) == fmt
    conversation = to_conversation({**row, "database": "boats"}, fmt, ORIGIN)
    assert conversation.messages == messages
    assert conversation.extra == {"database": "boats"}
    assert Conversation.from_row(conversation.to_row()) == conversation


def test_plain_text() -> None:
    assert detect_format({"text": "x"}) == "text"
    conversation = to_conversation({"text": "x"}, "text", ORIGIN)
    assert conversation.text == "x"
    assert Conversation.from_row(conversation.to_row()) == conversation


def test_an_unknown_format_is_not_guessed() -> None:
    assert detect_format({"question": "q", "answer": "a"}) is None


@pytest.mark.parametrize(
    ("fmt", "row", "said"),
    [
        ("alpaca", {"instruction": "q"}, "'output' is missing"),
        ("alpaca", {"instruction": "q", "output": 3}, "'output' is int, not text"),
        ("alpaca", {"instruction": "q", "output": "  "}, "an answer is empty"),
        ("alpaca", {"instruction": " ", "output": "a"}, "a question is empty"),
        ("prompt_completion", {"prompt": "q", "completion": None}, "'completion' is missing"),
        ("text", {"text": " \n"}, "'text' is empty"),
        ("messages", {"messages": []}, "not a list of turns"),
        ("messages", {"messages": "hello"}, "not a list of turns"),
        ("messages", {"messages": ["x"]}, "turn 1 is not an object"),
        ("messages", {"messages": [{"role": "elf", "content": "x"}]}, "turn 1 has 'role' 'elf'"),
        ("messages", {"messages": [{"role": "user"}]}, "no text in 'content'"),
        ("messages", {"messages": [USER]}, "no assistant turn"),
        ("messages", {"messages": [USER, ANSWER, USER]}, "last turn is the user's"),
        ("messages", {"messages": [ANSWER]}, "first turn is the assistant's"),
        ("messages", {"messages": [USER, USER, ANSWER]}, "turns 1 and 2 are both"),
        ("messages", {"messages": [USER, SYSTEM, ANSWER]}, "system message comes after"),
        (
            "messages",
            {"messages": [USER, {**ANSWER, "tool_calls": [{}]}]},
            "turn 2 calls a tool without a 'name'",
        ),
        ("sharegpt", {"conversations": [{"from": "alien", "value": "x"}]}, "'from' 'alien'"),
        ("messages", {"messages": [USER, CALL, USER, ANSWER]}, "turn 3 is not its answer"),
        ("messages", {"messages": [USER, CALL, RESULT]}, "last turn is a tool's"),
        (
            "messages",
            {"messages": [USER, CALL, RESULT, USER, ANSWER]},
            "no assistant turn follows it",
        ),
        (
            "messages",
            {"messages": [USER, RESULT, ANSWER]},
            "turn 2 is a tool's answer, but turn 1 calls",
        ),
        ("messages", {"messages": [USER, ANSWER], "tools": ["x"]}, "'tools' is not a list"),
        (
            "messages",
            {"messages": [USER, {"role": "assistant", "content": None}]},
            "turn 2 has no text",
        ),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
            "turn 1 holds a part of type 'image_url'",
        ),
        (
            "messages",
            {"messages": [USER, {**ANSWER, "tool_calls": [{"name": "f", "arguments": "{"}]}]},
            "turn 2 calls f with 'arguments' that are not an object",
        ),
        (
            "sharegpt",
            {"conversations": [USER, {"from": "function_call", "value": "f(x)"}]},
            "turn 2 calls tools, but the calls are not JSON",
        ),
        ("preference", {"chosen": "a", "rejected": "b"}, "no 'prompt'"),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": " "}, "with the rejected answer"),
        (
            "preference",
            {"chosen": [USER, ANSWER], "rejected": [SYSTEM, USER, ANSWER]},
            "differ before their last turn",
        ),
    ],
)
def test_what_cannot_be_learned_is_told(fmt: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow) as error:
        to_conversation(row, fmt, ORIGIN)
    assert str(error.value).startswith("f.jsonl:3: ")
    assert said in str(error.value)
