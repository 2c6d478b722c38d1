"""Descriptions of other tools, as their documentation writes them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import write_rows

from luthier.data.convert import convert_data
from luthier.errors import UserError

TURNS = [
    {"role": "user", "content": "q"},
    {"role": "assistant", "content": "a"},
]


def factory(tmp_path: Path, entry: dict[str, Any], row: dict[str, Any]) -> str:
    write_rows(tmp_path / "rows.jsonl", [row])
    entry = {"file_name": "rows.jsonl", **entry}
    (tmp_path / "dataset_info.json").write_text(json.dumps({"mine": entry}))
    return f"{tmp_path / 'dataset_info.json'}:mine"


def axolotl(tmp_path: Path, entry: dict[str, Any], row: dict[str, Any]) -> str:
    path = write_rows(tmp_path / "rows.jsonl", [row])
    (tmp_path / "axolotl.yaml").write_text(
        yaml.safe_dump({"datasets": [{"path": str(path), **entry}]})
    )
    return str(tmp_path / "axolotl.yaml")


def converted(source: str, tmp_path: Path, to: str = "messages") -> dict[str, Any]:
    convert_data([source], to, tmp_path / "out.jsonl")
    row: dict[str, Any] = json.loads((tmp_path / "out.jsonl").read_text())
    return row


def test_factory_alpaca_with_columns_and_history(tmp_path: Path) -> None:
    entry = {"columns": {"prompt": "frage", "query": "mehr", "response": "antwort", "system": "rolle", "history": "davor"}}  # fmt: skip
    row = {"frage": "q", "mehr": "m", "antwort": "a", "rolle": "s", "davor": [["q0", "a0"]]}
    made = converted(factory(tmp_path, entry, row), tmp_path)
    assert [m["role"] for m in made["messages"]] == [
        "system",
        "user",
        "assistant",
        "user",
        "assistant",
    ]
    assert [m["content"] for m in made["messages"]] == ["s", "q0", "a0", "q\nm", "a"]


def test_factory_sharegpt_with_tags(tmp_path: Path) -> None:
    entry = {
        "formatting": "sharegpt",
        "columns": {"messages": "chat"},
        "tags": {
            "role_tag": "who",
            "content_tag": "what",
            "user_tag": "me",
            "assistant_tag": "bot",
        },
    }
    row = {"chat": [{"who": "me", "what": "q"}, {"who": "bot", "what": "a"}]}
    assert converted(factory(tmp_path, entry, row), tmp_path)["messages"] == TURNS


def test_factory_openai_and_ranking(tmp_path: Path) -> None:
    openai = {"formatting": "openai", "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}}  # fmt: skip
    assert converted(factory(tmp_path, openai, {"messages": TURNS}), tmp_path)["messages"] == TURNS
    (tmp_path / "out.jsonl").unlink()
    pairs = factory(
        tmp_path, {"ranking": True}, {"instruction": "q", "chosen": "a", "rejected": "b"}
    )
    assert converted(pairs, tmp_path, "preference") == {
        "prompt": "q",
        "chosen": "a",
        "rejected": "b",
    }


AXOLOTL: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"type": "alpaca"}, {"instruction": "q", "output": "a"}),
    ({"type": {"field_instruction": "f", "field_output": "g"}}, {"f": "q", "g": "a"}),
    ({"type": "chat_template"}, {"messages": TURNS}),
    (
        {
            "type": "chat_template",
            "field_messages": "chat",
            "message_property_mappings": {"role": "who", "content": "what"},
            "roles": {"user": ["me"], "assistant": ["bot"]},
        },
        {"chat": [{"who": "me", "what": "q"}, {"who": "bot", "what": "a"}]},
    ),
    (
        {"type": "sharegpt"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
    ),
]


@pytest.mark.parametrize(("entry", "row"), AXOLOTL)
def test_axolotl_entries(entry: dict[str, Any], row: dict[str, Any], tmp_path: Path) -> None:
    turns = converted(axolotl(tmp_path, entry, row), tmp_path)["messages"]
    assert [{k: t[k] for k in ("role", "content")} for t in turns] == TURNS


def test_axolotl_completion(tmp_path: Path) -> None:
    source = axolotl(tmp_path, {"type": "completion", "field": "body"}, {"body": "once"})
    assert converted(source, tmp_path, "text") == {"text": "once"}


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"formatting": "xml"}, "formatting 'xml'"),
        ({"columns": {"images": "i"}}, "'images' is not"),
    ],
)
def test_factory_faults(entry: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        convert_data([factory(tmp_path, entry, {"x": "y"})], "messages", tmp_path / "out.jsonl")


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"type": "alpaca", "shards": 4}, "'shards' is not supported"),
        ({"type": "pygmalion"}, "type 'pygmalion'"),
        ({"type": "alpaca"}, "there is no field 'instruction'"),
    ],
)
def test_axolotl_faults(entry: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        convert_data([axolotl(tmp_path, entry, {"x": "y"})], "messages", tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()
