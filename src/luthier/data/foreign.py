"""Data sets as LLaMA-Factory and Axolotl describe them, so that people can move.

LLaMA-Factory: an entry of ``data/dataset_info.json`` (its ``data/README.md``). Axolotl: the
``datasets:`` list of a config (its dataset formats documentation). What an entry says beyond the
shape of rows and is not understood here is an error that names it.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.data.conversation import Origin
from luthier.data.readers import BadRow, Item, read_rows
from luthier.errors import UserError
from luthier.events import OnEvent, ignore
from luthier.files import user_path
from luthier.yaml_text import parse_yaml

Row = dict[str, Any]


@dataclass(frozen=True)
class ForeignSet:
    """``source`` as ``read_rows`` takes it, and how its rows become rows of a format of ours."""

    source: str
    translate: Callable[[Row], Row]


def read_any(source: str, on_event: OnEvent = ignore) -> Iterator[Item]:
    """``read_rows``, of a data source or of what a foreign description names.

    Raises:
        UserError: as ``read_rows``, or the description is wrong or says what is not understood.
    """
    described = _described(source)
    if described is None:
        yield from read_rows(source, on_event)
        return
    for each in described:
        for item in read_rows(each.source, on_event):
            yield item if isinstance(item, BadRow) else _translated(each, *item)


def _translated(described: ForeignSet, origin: Origin, row: Row) -> Item:
    try:
        return origin, described.translate(row)
    except KeyError as error:
        return BadRow(origin, f"there is no field {error}, which its description names")
    except (TypeError, ValueError, AttributeError) as error:
        return BadRow(origin, f"does not match its description: {error}")


def _described(source: str) -> list[ForeignSet] | None:
    file, _, name = source.partition(":")
    path = user_path(file)
    if path.name == "dataset_info.json" and path.is_file():
        return [_llama_factory(path, name)]
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return _axolotl(path)
    return None


def _only(entry: Row, known: set[str], place: str) -> None:
    for key in entry:
        if key not in known:
            raise UserError(
                f"{place}: '{key}' is not supported; supported are {', '.join(sorted(known))}"
            )


_FACTORY_KEYS = {
    "file_name", "hf_hub_url", "split", "formatting", "ranking", "columns", "tags",
}  # fmt: skip
_FACTORY_COLUMNS = {
    "prompt": "instruction", "query": "input", "response": "output", "history": "history",
    "messages": "conversations", "system": "system", "tools": "tools", "chosen": "chosen",
    "rejected": "rejected",
}  # fmt: skip
_FACTORY_TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip


def _llama_factory(path: Path, name: str) -> ForeignSet:
    try:
        entries = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from None
    if not isinstance(entries, dict) or name not in entries:
        known = ", ".join(entries) if isinstance(entries, dict) else "none"
        raise UserError(f"{path} has no data set '{name}'; write {path}:NAME with one of: {known}")
    entry, place = entries[name], f"{path}:{name}"
    _only(entry, _FACTORY_KEYS, place)
    given, tags = entry.get("columns", {}), entry.get("tags", {})
    _only(given, set(_FACTORY_COLUMNS), f"{place}, columns")
    _only(tags, set(_FACTORY_TAGS), f"{place}, tags")
    if "file_name" in entry:
        source = str(path.parent / str(entry["file_name"]))
        if not Path(source).resolve().is_relative_to(path.parent.resolve()):
            raise UserError(
                f"{place}: file_name {entry['file_name']!r} points outside the folder of the data set; "
                "name that file itself if you mean it"
            )
    elif "hf_hub_url" in entry:
        source = entry["hf_hub_url"] + (f":{entry['split']}" if "split" in entry else "")
    else:
        raise UserError(f"{place} has neither file_name nor hf_hub_url")
    # Only columns that are named, or are the defaults of rows without any, are read.
    columns = {key: given.get(key, default) for key, default in _FACTORY_COLUMNS.items()}
    tags = {**_FACTORY_TAGS, **tags}
    formatting, ranking = entry.get("formatting", "alpaca"), bool(entry.get("ranking"))
    if formatting == "alpaca":
        return ForeignSet(source, lambda row: _factory_alpaca(row, columns, ranking))
    if formatting in ("sharegpt", "openai"):
        if formatting == "openai":
            columns["messages"] = given.get("messages", "messages")
        return ForeignSet(source, lambda row: _factory_chat(row, columns, tags, ranking))
    raise UserError(f"{place}: formatting '{formatting}' is not alpaca, sharegpt or openai")


def _factory_alpaca(row: Row, columns: dict[str, str], ranking: bool) -> Row:
    question = row[columns["prompt"]]
    more = row.get(columns["query"]) or ""
    turns = []
    if row.get(columns["system"]):
        turns.append({"role": "system", "content": row[columns["system"]]})
    for asked, answered in row.get(columns["history"]) or []:
        turns += [
            {"role": "user", "content": asked},
            {"role": "assistant", "content": answered},
        ]
    turns.append({"role": "user", "content": f"{question}\n{more}" if more else question})
    if ranking:
        better, worse = (
            [{"role": "assistant", "content": row[columns[key]]}] for key in ("chosen", "rejected")
        )
        return {"prompt": turns, "chosen": better, "rejected": worse}
    if len(turns) == 1:
        return {"instruction": question, "input": more, "output": row[columns["response"]]}
    return {"messages": [*turns, {"role": "assistant", "content": row[columns["response"]]}]}


def _factory_chat(row: Row, columns: dict[str, str], tags: dict[str, str], ranking: bool) -> Row:
    names = {
        tags["user_tag"]: "human",
        tags["assistant_tag"]: "gpt",
        tags["observation_tag"]: "observation",
        tags["function_tag"]: "function_call",
        tags["system_tag"]: "system",
    }

    def turn(message: Row) -> Row:
        role = message[tags["role_tag"]]
        return {"from": names.get(role, role), "value": message[tags["content_tag"]]}

    turns = [turn(message) for message in row[columns["messages"]]]
    more = {key: row[columns[key]] for key in ("system", "tools") if row.get(columns[key])}
    if ranking:
        better, worse = ([turn(row[columns[key]])] for key in ("chosen", "rejected"))
        return {"prompt": turns, "chosen": better, "rejected": worse, **more}
    return {"conversations": turns, **more}


_AXOLOTL_KEYS = {
    "path", "type", "ds_type", "data_files", "split", "field", "field_messages",
    "message_property_mappings", "message_field_role", "message_field_content", "roles",
    "chat_template", "field_instruction", "field_input", "field_output", "field_system",
}  # fmt: skip


def _axolotl(path: Path) -> list[ForeignSet]:
    try:
        config = parse_yaml(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not readable YAML: {error}") from None
    entries = config.get("datasets") if isinstance(config, dict) else None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{path} has no list 'datasets:', which an Axolotl config must have")
    return [
        found
        for number, entry in enumerate(entries, start=1)
        for found in _axolotl_entry(entry, path, f"{path}, datasets entry {number}")
    ]


def _axolotl_entry(entry: Row, path: Path, place: str) -> list[ForeignSet]:
    _only(entry, _AXOLOTL_KEYS, place)
    kind = entry.get("type", "chat_template")
    fields = dict(entry)
    if isinstance(kind, dict):  # a format of one's own: fields by name
        _only(kind, {k for k in _AXOLOTL_KEYS if k.startswith("field_")}, f"{place}, type")
        fields, kind = {**fields, **kind}, "alpaca"
    translate = _axolotl_translation(kind, fields, place)
    files = entry.get("data_files")
    if files is not None:
        names = [files] if isinstance(files, str) else files
        folder = Path(entry["path"]) if Path(entry["path"]).is_dir() else Path()
        return [ForeignSet(str(_beside(path, str(folder / name))), translate) for name in names]
    if "path" not in entry:
        raise UserError(f"{place} has no 'path'")
    source = _beside(path, entry["path"])
    if not Path(source).exists() and "split" in entry:
        source = f"{source}:{entry['split']}"
    return [ForeignSet(source, translate)]


def _beside(config: Path, name: str) -> str:
    """A path of a config: from the working folder, as Axolotl takes it, else from the config's."""
    beside = config.parent / name
    return str(beside) if not Path(name).exists() and beside.exists() else name


def _axolotl_translation(kind: str, entry: Row, place: str) -> Callable[[Row], Row]:
    if kind == "completion":
        field = entry.get("field", "text")
        return lambda row: {"text": row[field]}
    if kind == "alpaca":
        names = {
            "instruction": entry.get("field_instruction", "instruction"),
            "output": entry.get("field_output", "output"),
        }
        optional = {
            "input": entry.get("field_input", "input"),
            "system": entry.get("field_system", "system"),
        }
        return lambda row: {
            **{ours: row[theirs] for ours, theirs in names.items()},
            **{ours: row[theirs] for ours, theirs in optional.items() if row.get(theirs)},
        }
    if kind in ("chat_template", "sharegpt"):
        return _axolotl_chat(kind, entry)
    raise UserError(f"{place}: type '{kind}' is not alpaca, chat_template, sharegpt or completion")


def _axolotl_chat(kind: str, entry: Row) -> Callable[[Row], Row]:
    share = kind == "sharegpt"
    messages = entry.get("field_messages", "conversations" if share else "messages")
    mapping = entry.get("message_property_mappings", {})
    role = mapping.get("role") or entry.get("message_field_role", "from" if share else "role")
    content = mapping.get("content") or entry.get(
        "message_field_content", "value" if share else "content"
    )
    names = {
        theirs: ours
        for ours, aliases in (entry.get("roles") or {}).items()
        for theirs in ([aliases] if isinstance(aliases, str) else aliases)
    }

    def translate(row: Row) -> Row:
        turns = [
            {**turn, "role": names.get(turn[role], turn[role]), "content": turn.get(content)}
            for turn in row[messages]
        ]
        tools = {"tools": row["tools"]} if row.get("tools") else {}
        return {"messages": turns, **tools}

    return translate
