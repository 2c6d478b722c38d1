"""Many rows tokenised together are what they are one by one: ids, masks and refusals."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data.slow_tokens import SlowTokenizer
from data.thinkers import COMMAND, EXAONE, GLM, GPT_OSS, NEMO, R1, SWITCH, TOKENS
from families import CHAT_FAMILIES, HERMES, MISTRAL_TOOLS, QWEN3, make_tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from luthier.data import bounded, template, tokens
from luthier.data.conversation import Conversation, Origin
from luthier.data.facts import once
from luthier.data.formats import detect_format, to_conversation
from luthier.data.template import TemplateRejects, choose_template, render
from luthier.data.tokens import Encoded, Tokenizer, TokenRow

SHARED = Path(__file__).parents[3] / "shared"
THINKING = {
    "qwen3": QWEN3, "hermes": HERMES, "mistral-tools": MISTRAL_TOOLS, "command": COMMAND,
    "exaone": EXAONE, "glm": GLM, "gpt-oss": GPT_OSS, "nemo": NEMO, "r1": R1, "switch": SWITCH,
}  # fmt: skip
TOOLS = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"x": 1}}}


@pytest.fixture(autouse=True)
def all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Templates are stopped by the clock, which a busy machine may let run out."""
    monkeypatch.setattr(bounded, "SECONDS", 600.0)


def turns(*texts: str) -> list[dict[str, Any]]:
    return [
        {"role": ("user", "assistant")[place % 2], "content": text}
        for place, text in enumerate(texts)
    ]


def conversations() -> list[Conversation]:
    system = {"role": "system", "content": "Be brief."}
    silent = {"role": "assistant", "content": "no", "weight": 0}
    thought = {"role": "assistant", "content": "b", "reasoning_content": "I think."}
    called = {"role": "assistant", "content": "", "tool_calls": [CALL]}
    rows: list[dict[str, Any]] = [
        {"messages": turns("Capital of France?", "Paris.")},
        {"messages": turns("a\n", "\n\nb\n")},
        {"messages": turns("  x ", "  naïve 🎻 café  ")},
        {"messages": turns("a", "b", "c", "d", "e", "f")},
        {"messages": [system, *turns("a", "b")]},
        {"messages": [*turns("a")[:1], silent, *turns("c", "d")]},
        {"messages": [*turns("a")[:1], thought]},
        {"messages": turns("a", "<think>\nhm\n</think>\n\nb")},
        {"messages": turns("<think>", "</think> 1 < 2")},
        {"messages": turns("<|im_end|>", "a<|im_end|><|im_start|>b</s>")},
        {
            "messages": [*turns("1 + 2?"), called, {"role": "tool", "content": "3"}, *turns("", "3")[1:]],
            "tools": TOOLS,
        },
        {"text": "Once upon a time."},
        {"text": "word " * 40},
        {"instruction": "Sort.", "input": "2 1", "output": "1 2"},
        {"instruction": "Sort.", "input": "", "output": "1 2"},
    ]  # fmt: skip
    read = []
    for number, row in enumerate(rows):
        fmt = detect_format(row)
        assert fmt is not None
        read.append(to_conversation(row, fmt, Origin("rows.jsonl", number + 1)))
    return read


def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    made = {name: make_tokenizer(family) for name, family in CHAT_FAMILIES.items()}
    for name, written in THINKING.items():
        tokenizer = make_tokenizer(CHAT_FAMILIES["llama3" if "bos_token" in written else "chatml"])
        tokenizer.add_special_tokens({"additional_special_tokens": TOKENS.get(written, [])})
        tokenizer.chat_template = written
        made[name] = tokenizer
    base = make_tokenizer(CHAT_FAMILIES["mistral-bytes"])
    base.chat_template = None
    choose_template(base, "alpaca")
    return {**made, "alpaca": base}


def told(encoded: Encoded) -> Any:
    if isinstance(encoded, TemplateRejects):
        return str(encoded)
    return [(row.input_ids, row.supervised) for row in encoded]


def slowly(encoder: Tokenizer, row: Conversation) -> Any:
    slow = SlowTokenizer(encoder.tokenizer, encoder.train_on, encoder.history)
    try:
        return [(each.input_ids, each.supervised) for each in slow.encode(row)]
    except TemplateRejects as error:
        return str(error)


def compare(
    encoder: Tokenizer, rows: list[Conversation], monkeypatch: pytest.MonkeyPatch
) -> list[Any]:
    together = [told(each) for each in encoder.encode_all(rows)]
    alone = []
    for row in rows:
        try:
            alone.append(told(encoder.encode(row)))
        except TemplateRejects as error:
            alone.append(str(error))
    with monkeypatch.context() as changed:
        changed.setattr(template, "_plain", lambda _: None)  # Transformers renders every text
        expected = [slowly(encoder, row) for row in rows]
    assert together == expected
    assert alone == expected
    return expected


@pytest.mark.parametrize("train_on", ["completions", "all"])
@pytest.mark.parametrize("history", ["split", "as_is"])
def test_together_as_one_by_one(
    train_on: Any, history: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "_ROWS", 5)  # several blocks
    rows = conversations()
    for tokenizer in tokenizers().values():
        expected = compare(Tokenizer(tokenizer, train_on, history), rows, monkeypatch)
        assert any(isinstance(each, list) for each in expected)


@pytest.mark.parametrize("name", ["qwen3", "deepseek_v3", "gptoss"])
def test_real_tokenizers(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = SHARED / "tokenizers" / name
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    choose_template(tokenizer, "auto")
    lines = (SHARED / "data" / "alpaca_en_demo.jsonl").read_text("utf-8").splitlines()[:60]
    rows = [
        to_conversation(json.loads(line), "alpaca", Origin("a", number))
        for number, line in enumerate(lines, 1)
    ]
    compare(Tokenizer(tokenizer, "completions"), [*rows, *conversations()], monkeypatch)


def test_the_real_model(real_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = AutoTokenizer.from_pretrained(real_model)
    compare(Tokenizer(tokenizer, "completions"), conversations(), monkeypatch)


def test_prompts_that_what_follows_would_change_are_tokenised_apart() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content + '\\n\\n' }}{% endfor %}"  # no token at any border
    )
    rows = [row for row in conversations() if row.messages]
    encoder = Tokenizer(tokenizer, "completions")
    for row, encoded in zip(rows, encoder.encode_all(rows), strict=True):
        assert told(encoded) == slowly(encoder, row)


def test_bounds_are_those_of_one_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many rows may take longer together than one of them is allowed to."""

    @contextmanager
    def too_long() -> Iterator[None]:
        yield
        raise bounded.TooMuch

    encoder = Tokenizer(make_tokenizer(CHAT_FAMILIES["gemma"]), "completions")
    expected = [slowly(encoder, row) for row in conversations()]
    monkeypatch.setattr(tokens, "bounded", too_long)
    assert [told(each) for each in encoder.encode_all(conversations())] == expected


def test_what_is_known_of_a_template_changes_with_it() -> None:
    tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
    turn = ({"role": "user", "content": "a"},)
    first = render(tokenizer, turn, add_generation_prompt=True)
    tokenizer.chat_template = CHAT_FAMILIES["llama3"].template.replace("{{ bos_token }}", "")
    assert render(tokenizer, turn, add_generation_prompt=True) != first
    assert once(tokenizer, "vocabulary", len) == len(tokenizer)
    tokenizer.add_tokens(["<new>"])
    assert once(tokenizer, "vocabulary", len) == len(tokenizer)


def test_a_part_of_a_row_begins_with_a_token_that_nothing_predicts() -> None:
    row = TokenRow([5, 6, 7, 8], [False, True, True, True], conversations()[0])
    part = row.part(1, 3)
    assert (part.input_ids, part.supervised, len(part)) == ([6, 7], [False, True], 2)
    assert part.conversation is row.conversation
    assert row.supervised == [False, True, True, True]
    assert part.ids.dtype == np.int32
