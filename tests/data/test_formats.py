from typing import Any

import pytest

from luthier.data.conversation import Conversation, Origin
from luthier.data.formats import detect_format, to_conversation
from luthier.data.readers import BadRow

ORIGIN = Origin("f.jsonl", 3)
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
SYSTEM = {"role": "system", "content": "s"}

GOOD: list[tuple[str, dict[str, Any], tuple[dict[str, str], ...]]] = [
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
]


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
        ("messages", {"messages": [{"role": "tool", "content": "x"}]}, "turn 1 has 'role' 'tool'"),
        ("messages", {"messages": [{"role": "user"}]}, "no text in 'content'"),
        ("messages", {"messages": [USER]}, "no assistant turn"),
        ("messages", {"messages": [USER, ANSWER, USER]}, "last turn is the user's"),
        ("messages", {"messages": [ANSWER]}, "first turn is the assistant's"),
        ("messages", {"messages": [USER, USER, ANSWER]}, "turns 1 and 2 are both"),
        ("messages", {"messages": [USER, SYSTEM, ANSWER]}, "system message stands after"),
        (
            "messages",
            {"messages": [USER, {**ANSWER, "tool_calls": [{}]}]},
            "turn 2 calls tools",
        ),
        ("sharegpt", {"conversations": [{"from": "alien", "value": "x"}]}, "'from' 'alien'"),
    ],
)
def test_what_cannot_be_learned_is_told(fmt: str, row: dict[str, Any], said: str) -> None:
    with pytest.raises(BadRow) as error:
        to_conversation(row, fmt, ORIGIN)
    assert str(error.value).startswith("f.jsonl:3: ")
    assert said in str(error.value)
