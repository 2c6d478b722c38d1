"""Any format to any other, and back."""

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from helpers import write_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.conversation import Conversation, Message, Origin, flatten
from luthier.data.convert import CannotHold, convert_data, to_row
from luthier.data.formats import FORMATS, detect_format, to_conversation
from luthier.data.readers import BadRow, read_rows
from luthier.errors import UserError

ORIGIN = Origin("f", 1)
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1).filter(
    lambda text: text.strip() != ""
)
CALL = {
    "type": "function",
    "function": {"name": "look_up", "arguments": {"key": "x", "depth": 2}},
}


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Chats of one to three turns, some with a system prompt, an input, a tool or a worse answer."""
    messages: list[Message] = []
    if draw(st.booleans()):
        messages.append({"role": "system", "content": draw(words)})
    for turn in range(draw(st.integers(1, 3))):
        messages.append({"role": "user", "content": draw(words)})
        if turn == 0 and draw(st.booleans()):
            messages[-1]["input"] = draw(words)
        if draw(st.integers(0, 4)) == 0:
            messages.append({"role": "assistant", "content": "", "tool_calls": [CALL]})
            messages.append({"role": "tool", "content": draw(words)})
        messages.append({"role": "assistant", "content": draw(words)})
    rejected = {"role": "assistant", "content": draw(words)} if draw(st.booleans()) else None
    extra = draw(st.dictionaries(st.sampled_from(["id", "topic"]), st.integers()))
    return Conversation(ORIGIN, tuple(messages), extra=extra, rejected=rejected)


def essence(conversation: Conversation, rejected: bool) -> list[Any]:
    worse = conversation.rejected["content"] if conversation.rejected and rejected else None
    return [flatten(conversation.messages), conversation.extra, worse]


@settings(max_examples=150, deadline=None)
@given(conversation=conversations(), first=st.sampled_from(list(FORMATS)), second=st.sampled_from(list(FORMATS)))  # fmt: skip
def test_what_a_format_holds_comes_back_through_it(
    conversation: Conversation, first: str, second: str
) -> None:
    kept, now = conversation, True
    for fmt in (first, second):
        try:
            row = json.loads(json.dumps(to_row(kept, fmt)))
        except CannotHold as error:
            assert str(error)
            return
        now = now and fmt == "preference"
        assert detect_format(row) == fmt
        kept = to_conversation(row, fmt, ORIGIN)
    assert essence(kept, now) == essence(conversation, now)


@pytest.mark.parametrize(
    "kind", [".jsonl", ".json", ".csv", ".tsv", ".parquet", ".jsonl.gz", ".csv.zst"]
)
def test_every_kind_of_file(kind: str, tmp_path: Path) -> None:
    rows = [{"prompt": f'q "{i}",\né', "completion": f"a{i}"} for i in range(7)]
    source, out = write_rows(tmp_path / "in.jsonl", rows), tmp_path / f"out{kind}"
    assert convert_data([str(source)], "alpaca", out).written == 7
    back = tmp_path / "back.jsonl"
    convert_data([str(out)], "prompt_completion", back)
    read = [item[1] for item in read_rows(str(back)) if not isinstance(item, BadRow)]
    assert read == rows


def test_the_same_rows_make_the_same_compressed_bytes(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [{"prompt": "q", "completion": "a"}])
    for name in ("a", "b"):
        convert_data([str(source)], "messages", tmp_path / f"{name}.jsonl.gz")
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def chat(*texts: str) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(texts)
    return {"messages": [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]}


def test_what_a_format_cannot_hold_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [chat("a", "b"), chat("a", "b", "c", "d")])
    out = tmp_path / "out.jsonl"
    with pytest.raises(UserError, match=r"in\.jsonl:2: alpaca allows one question"):
        convert_data([str(source)], "alpaca", out)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]
    converted = convert_data([str(source)], "alpaca", out, skip_bad=True)
    assert converted.written == 1
    assert converted.left_out == [
        f"{source}:2: alpaca allows one question and one answer, without tools"
    ]


def test_the_worse_answers_left_out_are_counted(tmp_path: Path) -> None:
    pairs = write_rows(tmp_path / "in.jsonl", [{"prompt": "q", "chosen": "a", "rejected": "b"}])
    converted = convert_data([str(pairs)], "prompt_completion", tmp_path / "out.jsonl")
    assert converted.rejected_dropped == 1
    assert json.loads((tmp_path / "out.jsonl").read_text()) == {"prompt": "q", "completion": "a"}


@pytest.mark.parametrize(
    ("to", "name", "said"),
    [
        ("chatml", "o.jsonl", "unknown format 'chatml'"),
        ("alpaca", "o.xlsx", r"written to files that end in \.jsonl"),
        ("alpaca", "in.jsonl", "exists"),
        ("messages", "o.csv", "a table needs the same text fields"),
    ],
)
def test_wrong_requests(to: str, name: str, said: str, tmp_path: Path) -> None:
    source = write_rows(tmp_path / "in.jsonl", [chat("a", "b")])
    with pytest.raises(UserError, match=said):
        convert_data([str(source)], to, tmp_path / name)
    assert [p.name for p in tmp_path.iterdir()] == ["in.jsonl"]


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.dictionaries(st.sampled_from(["prompt", "completion", "messages", "text"]), st.text(max_size=9) | st.lists(st.dictionaries(st.sampled_from(["role", "content"]), st.text(max_size=9))))), fmt=st.sampled_from(list(FORMATS)))  # fmt: skip
def test_any_rows_convert_or_are_told(rows: list[dict[str, Any]], fmt: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = write_rows(Path(folder) / "in.jsonl", rows)
        try:
            done = convert_data([str(source)], fmt, Path(folder) / "out.jsonl", skip_bad=True)
        except UserError as error:
            assert "empty" in str(error)
            return
        assert done.written + len(done.left_out) == len(rows)


def test_flags_reasoning_and_fields_of_turns_are_kept_or_refused(tmp_path: Path) -> None:
    user = {"role": "user", "content": "a"}
    turn = {"role": "assistant", "content": "b", "reasoning_content": "c", "weight": 0, "score": 3}
    row = {"messages": [user, turn, user, {"role": "assistant", "content": "d"}]}
    source = write_rows(tmp_path / "a.jsonl", [row])
    convert_data([str(source)], "messages", tmp_path / "b.jsonl")
    assert json.loads((tmp_path / "b.jsonl").read_text()) == row
    with pytest.raises(UserError, match="sharegpt has no place for reasoning"):
        convert_data([str(source)], "sharegpt", tmp_path / "c.jsonl")
