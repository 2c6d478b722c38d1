"""Data sets as other tools name them: a source that a recipe can name, or a command that makes one."""

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.files import user_path
from luthier.recipe.convert.conversion import Conversion

_SHAREGPT_TAGS = {
    "role_tag": "from",
    "content_tag": "value",
    "user_tag": "human",
    "assistant_tag": "gpt",
    "observation_tag": "observation",
    "function_tag": "function_call",
    "system_tag": "system",
}
_MESSAGES_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
# Where the turns are, who speaks, and what is said.
_SHAREGPT = ("conversations", "from", "value")
_MESSAGES = ("messages", "role", "content")
_ALPACA_COLUMNS = {"prompt": "instruction", "query": "input", "response": "output"}


def beside(c: Conversion, name: str) -> str:
    """A path of the file: from the working folder, as the tools take it, else from the file's own."""
    near = c.file.parent / name
    return str(near) if not user_path(name).exists() and near.exists() else name


def converted(c: Conversion, sources: Sequence[str], ending: str, to: str) -> str:
    """The file that ``luthier data convert`` will write of ``sources``, and that command."""
    made = str(c.out.with_name(f"{c.out.stem}-{ending}.jsonl"))
    command = ["luthier", "data", "convert", *sources, "--to", to, "--out", made]
    c.commands.append(shlex.join(command))
    return made


def factory_source(folder: str, name: str) -> str | None:
    """What a recipe can name of a data set of ``dataset_info.json``; None: its rows differ."""
    try:
        entries = json.loads((user_path(folder) / "dataset_info.json").read_text("utf-8"))
        entry = entries[name]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not isinstance(entry, dict) or entry.keys() - {
        *("file_name", "hf_hub_url", "split", "formatting", "columns", "tags"),
    }:
        return None
    if not _usual_rows(entry):
        return None
    if "file_name" in entry:
        return str(Path(folder) / str(entry["file_name"]))
    if "hf_hub_url" in entry:
        return str(entry["hf_hub_url"]) + (f":{entry['split']}" if "split" in entry else "")
    return None


def _usual_rows(entry: Mapping[str, Any]) -> bool:
    """Whether the rows have the fields that a recipe reads, by their names."""
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    formatting = entry.get("formatting", "alpaca")
    if formatting == "alpaca":
        return not tags and all(_ALPACA_COLUMNS.get(k) == v for k, v in columns.items())
    if formatting not in ("sharegpt", "openai") or columns.keys() - {"messages"}:
        return False
    field = columns.get("messages", "messages" if formatting == "openai" else "conversations")
    if field == "conversations":
        return all(_SHAREGPT_TAGS.get(k) == v for k, v in tags.items())
    return field == "messages" and all(
        tags.get(k, v if formatting == "openai" else None) == v for k, v in _MESSAGES_TAGS.items()
    )


def axolotl_source(c: Conversion, entry: Mapping[str, Any]) -> str | None:
    """What a recipe can name of an entry of ``datasets:``; None: its rows differ."""
    kind, path = entry.get("type", "chat_template"), entry.get("path")
    if not isinstance(path, str) or entry.keys() - {
        *("path", "type", "ds_type", "split", "field_messages", "message_property_mappings"),
        *("message_field_role", "message_field_content", "roles_to_train", "chat_template"),
        "train_on_eos",
    }:
        return None
    if kind in ("chat_template", "sharegpt"):
        usual = _SHAREGPT if kind == "sharegpt" else _MESSAGES
        mapping = entry.get("message_property_mappings") or {}
        if not isinstance(mapping, Mapping):
            return None
        found = (
            entry.get("field_messages", usual[0]),
            mapping.get("role") or entry.get("message_field_role", usual[1]),
            mapping.get("content") or entry.get("message_field_content", usual[2]),
        )
        if found not in (_SHAREGPT, _MESSAGES):
            return None
    elif kind not in ("alpaca", "completion"):
        return None
    source = beside(c, path)
    here = user_path(source).exists()
    return f"{source}:{entry['split']}" if "split" in entry and not here else source
