"""Fields of rows that nothing uses: each is named once, so that nothing is dropped in silence."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from luthier.data.conversation import Conversation
from luthier.records.data import UnusedField

# A field with one of these words in its name may hold what the model should see, or say what to learn.
_CONTENT = frozenset(
    [
        "answer",
        "answers",
        "assistant",
        "audio",
        "background",
        "chosen",
        "completion",
        "content",
        "context",
        "conversation",
        "cot",
        "dialog",
        "dialogue",
        "document",
        "documents",
        "examples",
        "explanation",
        "function",
        "functions",
        "history",
        "image",
        "images",
        "input",
        "instruction",
        "instructions",
        "knowledge",
        "label",
        "labels",
        "loss",
        "mask",
        "messages",
        "output",
        "passage",
        "passages",
        "persona",
        "prompt",
        "query",
        "question",
        "rationale",
        "reasoning",
        "rejected",
        "reply",
        "response",
        "role",
        "scratchpad",
        "solution",
        "speaker",
        "system",
        "target",
        "text",
        "thinking",
        "thought",
        "thoughts",
        "tools",
        "train",
        "trainable",
        "training",
        "turns",
        "user",
        "video",
        "weight",
        "weights",
    ]
)
# With one of these at its end the name tells of the content, and is none itself.
_ABOUT = frozenset(
    [
        "count",
        "date",
        "hash",
        "id",
        "ids",
        "idx",
        "index",
        "lang",
        "language",
        "len",
        "length",
        "license",
        "model",
        "name",
        "num",
        "number",
        "score",
        "source",
        "time",
        "timestamp",
        "tokens",
        "type",
        "url",
        "uuid",
        "version",
    ]
)


def sounds_like_content(name: str) -> bool:
    """Whether a field of this name may hold more than facts about its row."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)]
    return bool(words) and words[-1] not in _ABOUT and not _CONTENT.isdisjoint(words)


# The name of each field, and the role of the turns that have it; none for a field of the row.
Fields = frozenset[tuple[str, str]]


def fields_of(row: Conversation) -> Fields:
    """Fields of ``row`` and of its turns that no format of ours uses."""
    return frozenset(_of_row(row))


def unused_fields(rows: Iterable[Conversation]) -> list[UnusedField]:
    """All ``fields_of`` of ``rows``, and how many have each."""
    return counted(Counter(map(fields_of, rows)))


def counted(rows: Mapping[Fields, int]) -> list[UnusedField]:
    """As ``unused_fields``, of so many rows with these fields each."""
    counts: Counter[tuple[str, str]] = Counter()
    for fields, number in rows.items():
        counts.update(dict.fromkeys(fields, number))
    return [
        UnusedField(
            field=f"{name} of {role} turns" if role else name,
            rows=count,
            may_be_content=sounds_like_content(name),
        )
        for (name, role), count in counts.items()
    ]


def _of_row(row: Conversation) -> Iterator[tuple[str, str]]:
    told = [message["content"] for message in row.messages]
    for name, value in row.extra.items():
        # Many data sets repeat the first question in a field of its own.
        if value not in (None, "", [], {}) and value not in told:
            yield name, ""
    for message in row.messages:
        for name in message.get("unused", {}):
            yield name, message["role"]


def sentence(fields: Iterable[UnusedField]) -> str:
    """Which fields are not used, for a message; empty where there are none."""
    return ", ".join(f"'{field.field}' ({field.rows:,} rows)" for field in fields)
