"""Rows under any names: a recipe's mapping, usual names, and what is not guessed."""

from typing import Any

import pytest

from luthier.data.conversation import Origin, flatten
from luthier.data.questions import to_question
from luthier.data.readers import BadRow
from luthier.data.rows import find_layout, layout_as, read_as, read_row

ORIGIN = Origin("f", 1)
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
PLAIN = [("user", "q"), ("assistant", "a")]
WITH_CONTEXT = [("user", "q\n\nc"), ("assistant", "a")]
WITH_SYSTEM = [("system", "s"), ("user", "q"), ("assistant", "a")]


def spoken(row: dict[str, Any], columns: dict[str, str] | None = None) -> list[tuple[str, str]]:
    messages = read_row(row, ORIGIN, columns)[1].messages
    return [(turn["role"], turn["content"]) for turn in flatten(messages)]


@pytest.mark.parametrize(
    ("row", "read", "said"),
    [
        ({"question": "q", "answer": "a"}, PLAIN, "'question' as prompt, 'answer' as completion"),
        ({"prompt": "q", "response": "a"}, PLAIN, "'response' as completion"),
        ({"input": "q", "output": "a"}, PLAIN, "'input' as prompt, 'output' as completion"),
        ({"query": "q", "response": "a"}, PLAIN, "'query' as prompt, 'response' as completion"),
        ({"inputs": "q", "targets": "a"}, PLAIN, "'inputs' as prompt, 'targets' as completion"),
        ({"problem": "q", "solution": "a"}, PLAIN, "'problem' as prompt, 'solution' as completion"),
        ({"text": "q", "label": "a"}, PLAIN, "'text' as prompt, 'label' as completion"),
        ({"Prompt": "q", "Completion": "a"}, PLAIN, "'Prompt' as prompt, 'Completion' as completion"),
        ({"User Query": "x", "Query": "q", "AI": 1, "ANSWER": "a"}, PLAIN, "'Query' as prompt, 'ANSWER' as completion"),
        ({"Messages": TURNS}, PLAIN, "'Messages' as messages"),
        ({"conversation": TURNS}, PLAIN, "'conversation' as messages"),
        ({"instruction": "q", "context": "c", "response": "a"}, WITH_CONTEXT, "'context' as input, 'response' as output"),
        ({"question": "q", "context": "c", "answer": "a"}, WITH_CONTEXT, "'question' as instruction, 'context' as input, 'answer' as output"),
        ({"System-Prompt": "s", "question": "q", "response": "a"}, WITH_SYSTEM, "'question' as instruction, 'response' as output, 'System-Prompt' as system"),
    ],
)  # fmt: skip
def test_usual_names_are_read_and_said(
    row: dict[str, Any], read: list[tuple[str, str]], said: str
) -> None:
    layout = find_layout({**row, "id": 7})
    assert layout is not None
    assert read_as(layout.columns) == said
    assert spoken(row) == read
    assert read_row({**row, "id": 7}, ORIGIN)[1].extra["id"] == 7


def test_the_names_of_formats_come_before_usual_ones() -> None:
    row = {"prompt": "q", "completion": "a", "question": "x", "answer": "y"}
    conversation = read_row(row, ORIGIN)[1]
    assert spoken(row) == PLAIN
    assert conversation.extra == {"question": "x", "answer": "y"}
    assert read_row({"text": "x"}, ORIGIN)[1].text == "x"


def test_a_label_in_figures_is_text_to_answer() -> None:
    assert spoken({"text": "q", "label": 1}) == [("user", "q"), ("assistant", "1")]
    conversation = read_row({"text": "q", "label": 1, "label_text": "good"}, ORIGIN)[1]
    assert conversation.reference == "good"
    assert conversation.extra == {"label": 1}
    assert layout_as({"text": "q", "label": 1}, "text").columns == {}


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        ({"frage": "q", "antwort": "a"}, "set data.columns: {prompt: frage, completion: antwort}"),
        ({"Frage: 1": "q", "antwort": "a"}, "{prompt: 'Frage: 1', completion: antwort}"),
        ({"content": "q"}, "if 'content' is plain text, set data.columns: {text: content}"),
        ({"question": "q", "answer": "a", "response": "b"}, "data.columns: {prompt: NAME, "),
        ({"question": "q", "query": "x", "answer": "a"}, "data.columns: {prompt: NAME, "),
        ({"question": "q", "input": "x", "context": "c", "answer": "a"}, "{prompt: NAME, "),
        ({"Question": "q", "question ": "x", "answer": "a"}, "data.columns: {prompt: NAME, "),
        ({"conversation": [["q", "a"]]}, "data.columns: {prompt: NAME, "),
    ],
)
def test_what_is_ambiguous_is_told_with_the_mapping_to_write(
    row: dict[str, Any], advice: str
) -> None:
    with pytest.raises(BadRow) as error:
        read_row(row, ORIGIN)
    assert f"fields {', '.join(row)} match no known format" in str(error.value)
    assert advice in str(error.value)


COLUMNS = {"prompt": "frage", "completion": "antwort"}


def test_a_mapping_reads_any_names() -> None:
    assert spoken({"frage": "q", "antwort": "a"}, COLUMNS) == PLAIN
    assert spoken({"a": "q", "b": "a", "c": "c"}, {"instruction": "a", "output": "b", "input": "c"}) == WITH_CONTEXT  # fmt: skip
    assert spoken({"log": TURNS}, {"messages": "log"}) == PLAIN
    assert read_row({"body": "x"}, ORIGIN, {"text": "body"})[1].text == "x"
    assert spoken({"completion": "q", "prompt": "a"}, {"prompt": "completion", "completion": "prompt"}) == PLAIN  # fmt: skip


def test_a_mapping_comes_first_and_nothing_is_lost() -> None:
    row = {"frage": "q", "antwort": "a", "prompt": "old", "messages": TURNS}
    layout, conversation = read_row(row, ORIGIN, COLUMNS)
    assert layout.format == "prompt_completion"
    assert spoken(row, COLUMNS) == PLAIN
    assert conversation.extra == {"prompt": "old", "messages": TURNS}


def test_rows_without_the_mapped_names_are_read_by_their_own() -> None:
    assert spoken({"messages": TURNS}, COLUMNS) == PLAIN
    with pytest.raises(BadRow, match=r"data\.columns names 'antwort', which it does not have"):
        read_row({"frage": "q", "reply": "a"}, ORIGIN, COLUMNS)


@pytest.mark.parametrize(
    ("row", "columns", "reference"),
    [
        ({"question": "q"}, None, None),
        ({"question": "q", "answer": ""}, None, None),
        ({"question": "q", "answer": "a"}, None, "a"),
        ({"Prompt": "q"}, None, None),
        ({"frage": "q"}, COLUMNS, None),
        ({"frage": "q", "antwort": "a"}, COLUMNS, "a"),
        ({"conversation": TURNS[:1]}, None, None),
    ],
)
def test_a_question_may_have_any_names_and_no_answer(
    row: dict[str, Any], columns: dict[str, str] | None, reference: str | None
) -> None:
    question = to_question(row, ORIGIN, columns)
    assert [turn["content"] for turn in question.prompt if isinstance(turn, dict)] == ["q"]
    assert question.reference == reference
