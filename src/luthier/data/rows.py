"""Rows to conversations, whatever their fields are called: the mapping, the format, the reading.

What a recipe maps (``data.columns``) comes first, then a format's own names, then names that people
usually give to a question and its answer. Nothing else is guessed.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from luthier.data.conversation import Conversation, Origin
from luthier.data.formats import detect_format, to_conversation, unknown_format
from luthier.data.readers import BadRow
from luthier.recipe import COLUMN_NAMES
from luthier.recipe.keys import yaml_value

Row = dict[str, Any]

# Names of the hub's sets and of people's tables, as ``_folded`` writes them.
_QUESTIONS = (
    "instruction", "prompt", "question", "query", "inputs", "problem", "user", "human",
)  # fmt: skip
_ANSWERS = (
    "output", "completion", "response", "answer", "reply", "target", "targets", "solution",
    "assistant", "bot",
)  # fmt: skip
_MORE = ("input", "context")  # what the question is about
_SYSTEMS = ("system", "system_prompt", "system_message")
_CHATS = ("conversation", "dialogue", "dialog", "chat", "turns")


@dataclass(frozen=True)
class Layout:
    """How rows are read: their format, and the row's name of each field that it calls otherwise."""

    format: str
    columns: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The format, but the same one for a question and an answer of other names with a context,
        a system prompt, or neither."""
        return "prompt_completion" if self.columns and self.format == "alpaca" else self.format

    def conversation(self, row: Row, origin: Origin) -> Conversation:
        """Read ``row``. A field of its own that a mapped one displaces stays in ``extra``.

        Raises:
            BadRow: a field is missing, has the wrong type, or there is no answer to train on.
        """
        if not self.columns:
            return to_conversation(row, self.format, origin)
        renamed = rename(row, self.columns)
        for ours in self.columns:
            if isinstance(
                renamed.get(ours), bool | int | float
            ):  # a label, or an answer in figures
                renamed[ours] = json.dumps(renamed[ours])
        read = to_conversation(renamed, self.format, origin)
        kept = {
            ours: row[ours]
            for ours, theirs in self.columns.items()
            if theirs in row and ours in row and ours not in self.columns.values()
        }
        return replace(read, extra={**read.extra, **kept}) if kept else read


def read_row(
    row: Row, origin: Origin, columns: Mapping[str, str] | None = None
) -> tuple[Layout, Conversation]:
    """How a row is read, and the conversation in it.

    Raises:
        BadRow: it matches no format, or cannot be read as the one it matches.
    """
    layout = find_layout(row, columns)
    if layout is None:
        raise BadRow(origin, unknown_layout(row, columns))
    return layout, layout.conversation(row, origin)


def find_layout(row: Row, columns: Mapping[str, str] | None = None) -> Layout | None:
    """How ``row`` is read, or None where neither its names nor ``columns`` say it.

    Args:
        columns: fields of formats -> their names in the rows. A row that has none of the names is
            read by its own.
    """
    if columns and any(theirs in row for theirs in columns.values()):
        mapped = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
        fmt = detect_format(mapped) or detect_format(rename(row, columns))
        return None if fmt is None else Layout(fmt, columns)
    fmt = detect_format(row)
    if fmt is not None and not (fmt == "text" and _label(row)):
        return Layout(fmt)
    return _by_usual_names(row)


def layout_as(row: Row, fmt: str, columns: Mapping[str, str] | None = None) -> Layout:
    """How ``row`` is read as ``fmt``, by ``columns`` or by usual names of that format's fields."""
    found = find_layout(row, columns)
    return found if found is not None and found.format == fmt else Layout(fmt, columns or {})


def rename(row: Row, columns: Mapping[str, str]) -> Row:
    """``row`` with the fields that ``columns`` maps under our names, before the others."""
    mapped = {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
    taken = set(columns.values())
    return {**mapped, **{k: v for k, v in row.items() if k not in taken and k not in mapped}}


def add_names(known: dict[str, str], row: Row, columns: Mapping[str, str]) -> None:
    """Add to ``known`` what ``columns`` says of fields that ``row`` has, each of them once."""
    for ours, theirs in columns.items():
        if theirs in row and theirs not in known.values():
            known[ours] = theirs


def read_as(columns: Mapping[str, str]) -> str:
    """``columns`` in words: 'question' as prompt, 'answer' as completion."""
    return ", ".join(f"'{theirs}' as {ours}" for ours, theirs in columns.items())


def unknown_layout(row: Row, columns: Mapping[str, str] | None = None) -> str:
    """Why ``find_layout`` gives None for ``row``, and the mapping to write."""
    missing = [f"'{theirs}'" for theirs in (columns or {}).values() if theirs not in row]
    if missing:
        return f"{unknown_format(row)}; data.columns names {', '.join(missing)}, which it does not have"
    return f"{unknown_format(row)}; {mapping_to_write(row)}"


def mapping_to_write(row: Row) -> str:
    """The ``data.columns`` that would make ``row`` readable, as far as its fields tell."""
    texts = [str(key) for key, value in row.items() if isinstance(value, str) and value.strip()]
    if len(texts) == 1:
        mapping = yaml_value({"text": texts[0]})
        return f"if '{texts[0]}' is plain text, set data.columns: {mapping}"
    if len(texts) == 2:
        mapping = yaml_value(dict(zip(("prompt", "completion"), texts, strict=True)))
        return f"if they are question and answer, set data.columns: {mapping}"
    return "say which fields to read: data.columns: {prompt: NAME, completion: NAME}"


def _folded(name: Any) -> str:
    return "_".join(str(name).replace("-", " ").casefold().split())


def _by_usual_names(row: Row) -> Layout | None:
    names: dict[str, str] = {}
    for key in row:
        folded = _folded(key)
        if folded in names:
            return None  # two names that differ in capitals or spaces alone
        names[folded] = key
    fmt = detect_format({folded: row[key] for folded, key in names.items()})
    if fmt is not None and fmt != "text":
        return Layout(
            fmt, {ours: names[ours] for ours in COLUMN_NAMES if names.get(ours, ours) != ours}
        )
    chat = _one_of(_CHATS, names)
    if chat is not None and fmt is None and _is_chat(row[chat]):
        return Layout("messages", {"messages": chat})
    if fmt == "text":
        label = _label(names)
        columns = {"prompt": names["text"], "completion": names[label]} if label else {}
        if columns:
            return Layout("prompt_completion", columns)
        return Layout("text", {"text": names["text"]} if names["text"] != "text" else {})
    return _question_and_answer(names)


def _question_and_answer(names: Mapping[str, str]) -> Layout | None:
    answer, more = _one_of(_ANSWERS, names), _one_of(_MORE, names)
    question = _one_of(_QUESTIONS, names)
    if question is None and not names.keys() & set(_QUESTIONS):
        question, more = names.get("input"), None
        if "context" in names:
            return None
    if question is None or answer is None or (more is None and set(_MORE) <= names.keys()):
        return None
    system = _one_of(_SYSTEMS, names)
    if system is None and names.keys() & set(_SYSTEMS):
        return None
    fmt = "alpaca"
    columns = {"instruction": question, "input": more, "output": answer, "system": system}
    if more is None and system is None:
        fmt, columns = "prompt_completion", {"prompt": question, "completion": answer}
    return Layout(fmt, {o: t for o, t in columns.items() if t is not None and t != o})


def _one_of(wanted: Iterable[str], names: Mapping[str, str]) -> str | None:
    """The only name that is wanted; None where there is none, or a choice."""
    found = [names[name] for name in wanted if name in names]
    return found[0] if len(found) == 1 else None


def _label(names: Iterable[str]) -> str | None:
    """The field with the label of a text, where there is one: its words before its number."""
    return next((name for name in ("label_text", "label") if name in names), None)


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) and {"role", "from"} & turn.keys() for turn in value)
    )
