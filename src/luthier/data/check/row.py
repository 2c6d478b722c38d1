"""What one row tells: its findings, its keys, its size. Runs in worker processes."""

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from luthier.data.check import preferences
from luthier.data.check.text import (
    control_characters,
    find_secrets,
    is_mojibake,
    refusal_in,
    special_token_in,
    template_text_in,
)
from luthier.data.conversation import Conversation, Origin, spoken
from luthier.data.readers import BadRow
from luthier.data.rows import add_names, find_layout, mapping_to_write
from luthier.data.split import split_key
from luthier.data.template import TemplateRejects, split_thought
from luthier.data.tokens import Tokenizer
from luthier.data.unused import unused_fields

LABEL_LENGTH = 60  # characters; a longer answer is not a label
_SHINGLE = 3  # words
_LEAST_WORDS = 8  # shorter texts are near duplicates of too much
_DETAIL = 160  # characters of text shown with an example

IS_JSON, IS_SQL = 1, 2  # bits of RowFacts.form


@dataclass(slots=True)
class RowFacts:
    """What the check keeps of a row; its size is bounded.

    Attributes:
        hits: what was found, kind -> detail of the first place.
        renamed: fields of the format that have another name in the row, and that name.
        prompt_key, exact_key, answer_key: 64-bit hashes, 0 where there is none. Rows with one
            ``prompt_key`` have the same prompt, spacing and case aside; with one ``exact_key``,
            spacing aside.
        prompt_length, answer_length: in tokens where a tokenizer is given, else in characters.
        form: bits ``IS_JSON`` and ``IS_SQL`` of the last answer.
        label: the last answer if it is short, for finding label sets.
        system: the system prompt's hash, 0 without one.
        shingles: three-word pieces of the row, lower case, for near duplicates.
        sample: the start of the last answer, for telling its language.
        judged, longer: see ``preferences.kind_of`` and ``preferences.longer``.
    """

    origin: Origin
    format: str | None
    hits: dict[str, str] = field(default_factory=dict)
    renamed: dict[str, str] = field(default_factory=dict)
    usable: bool = False
    prompt_key: int = 0
    exact_key: int = 0
    answer_key: int = 0
    prompt_length: int = 0
    answer_length: int = 0
    form: int = 0
    label: str | None = None
    system: int = 0
    shingles: list[str] = field(default_factory=list)
    sample: str = ""
    judged: int = 0
    longer: int = 0


@dataclass(frozen=True)
class Model:
    """What a model's tokenizer adds to the check: lengths in tokens, what its template refuses."""

    encoder: Tokenizer
    max_length: int

    @cached_property
    def special_tokens(self) -> list[str]:
        """Texts that the tokenizer reads as control tokens: the special ones, and the template's."""
        tokenizer = self.encoder.tokenizer
        template = str(tokenizer.chat_template)
        added = {str(token) for token in tokenizer.get_added_vocab()}
        return sorted(
            {t for t in added if t in template and t.strip()} | set(tokenizer.all_special_tokens)
        )


def examine(
    origin: Origin,
    row: dict[str, Any] | str,
    model: Model | None,
    columns: Mapping[str, str] | None = None,
) -> RowFacts:
    """Everything that one row alone can tell.

    Args:
        row: the row, or in words why it could not be read.
        model: None measures lengths in characters.
        columns: as in a recipe.
    """
    if isinstance(row, str):
        kind = "encoding" if "not UTF-8" in row or "surrogate" in row else "unreadable"
        return RowFacts(origin, None, {kind: row})
    layout = find_layout(row, columns)
    if layout is None:
        fields = ", ".join(map(str, row)) or "(none)"
        detail = f"fields {shortened(fields)}; {mapping_to_write(row)}"
        return RowFacts(origin, None, {"unknown_format": detail})
    facts = RowFacts(origin, layout.kind)
    add_names(facts.renamed, row, layout.columns)
    try:
        conversation = layout.conversation(row, origin)
    except BadRow as bad:
        facts.hits[_kind_of(bad.reason)] = bad.reason
        return facts
    facts.usable = True
    facts.judged, facts.longer = preferences.kind_of(conversation), preferences.longer(conversation)
    for unused in unused_fields([conversation]):
        if unused.field == "label" and facts.judged != preferences.NOT_JUDGED:
            continue
        kind = "unused_content" if unused.may_be_content else "unused_fields"
        facts.hits.setdefault(kind, f"'{unused.field}'")
    _keys(conversation, facts)
    _lengths(conversation, facts, model)
    special = model.special_tokens if model is not None else []
    for role, text in _texts(conversation):
        _look_into(role, text, special, facts)
    if conversation.text is None:
        _answer(conversation.reference, facts)
    facts.hits |= preferences.hits(conversation)
    if conversation.rejected is not None:
        _look_into("rejected", spoken(conversation.rejected), special, facts)
    return facts


def shortened(text: str, limit: int = _DETAIL) -> str:
    """One line of at most ``limit`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _kind_of(reason: str) -> str:
    if reason == "an answer is empty":
        return "empty_answer"
    if reason in ("a question is empty", "'text' is empty"):
        return "empty_prompt"
    if (
        "no answer" in reason
        or "no assistant turn" in reason
        or reason.startswith(("'output' is missing", "'completion' is missing"))
    ):
        return "no_answer"
    return "bad_turns"


def _texts(conversation: Conversation) -> list[tuple[str, str]]:
    if conversation.text is not None:
        return [("text", conversation.text)]
    pairs = []
    for message in conversation.messages:
        said = spoken(message)
        # The marks of a thought are tokens of many models, and in their place here.
        thought = split_thought(said) if message["role"] == "assistant" else None
        pairs += [(message["role"], part) for part in (thought or (said,))]
        if "reasoning_content" in message:
            pairs.append((message["role"], message["reasoning_content"]))
        if message.get("input"):
            pairs.append((message["role"], message["input"]))
    return pairs


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def exact_hash(conversation: Conversation) -> int:
    """The ``exact_key`` of a prompt: "press y" and "press Y" ask for different things."""
    return int(split_key(conversation, fold_case=False)[:16], 16)


def answer_hash(answer: str) -> int:
    """The ``answer_key`` of an answer: spacing makes no difference."""
    return _hash(" ".join(answer.split()))


def _keys(conversation: Conversation, facts: RowFacts) -> None:
    facts.prompt_key = int(split_key(conversation)[:16], 16)
    facts.exact_key = exact_hash(conversation)
    if conversation.text is None:
        worse = conversation.rejected  # two pairs with one chosen answer are not the same
        other = f"\0{spoken(worse)}" if worse is not None else ""
        facts.answer_key = answer_hash(conversation.reference + other)
        first = conversation.messages[0]
        if first["role"] == "system":
            facts.system = _hash(first["content"])
    words = " ".join(text for _, text in _texts(conversation)).casefold().split()
    if len(words) >= _LEAST_WORDS:
        facts.shingles = [
            " ".join(words[i : i + _SHINGLE]) for i in range(len(words) - _SHINGLE + 1)
        ]


def _lengths(conversation: Conversation, facts: RowFacts, model: Model | None) -> None:
    if model is None:
        answer = sum(len(m["content"]) for m in conversation.messages if m["role"] == "assistant")
        total = sum(len(text) for _, text in _texts(conversation))
        facts.answer_length = total if conversation.text is not None else answer
        facts.prompt_length = total - facts.answer_length
        return
    try:
        pieces = model.encoder.encode(conversation)
    except TemplateRejects as error:
        facts.hits.setdefault("template_refuses", str(error))
        facts.usable = False
        return
    tokens = max(pieces, key=len)  # one, or one for each answer
    facts.answer_length = sum(tokens.supervised)
    facts.prompt_length = len(tokens) - facts.answer_length
    if len(tokens) > model.max_length and conversation.text is None:
        lost = sum(tokens.supervised[model.max_length :])
        detail = f"{len(tokens)} tokens, {lost} of {facts.answer_length} answer tokens past the end"
        facts.hits.setdefault("over_length", detail)


def _look_into(role: str, text: str, special: list[str], facts: RowFacts) -> None:
    token = special_token_in(text, special)
    if token is not None:
        facts.hits.setdefault("special_tokens", f"{token} in the {role} turn")
    template = template_text_in(text) if role != "text" else None
    if template is not None:
        facts.hits.setdefault("template_text", f"{template} in the {role} turn")
    controls = control_characters(text)
    if controls:
        facts.hits.setdefault("control_characters", f"{', '.join(controls[:4])} in the {role} turn")
    if is_mojibake(text):
        facts.hits.setdefault("mojibake", shortened(text))
    secrets = find_secrets(text)
    for kind, wanted in (("secrets", True), ("personal_data", False)):
        names = sorted({s.kind.replace("_", " ") for s in secrets if s.is_key == wanted})
        if names:
            facts.hits.setdefault(kind, f"{', '.join(names)} in the {role} turn")


def _answer(answer: str, facts: RowFacts) -> None:
    refusal = refusal_in(answer)
    if refusal is not None:
        facts.hits.setdefault("refusals", shortened(refusal))
    if answer != answer.strip():
        facts.hits.setdefault("edge_whitespace", repr(answer[:20] + " … " + answer[-20:]))
    stripped = answer.strip()
    if stripped[:1] in "{[" and _is_json(stripped):
        facts.form |= IS_JSON
    if _is_sql(stripped):
        facts.form |= IS_SQL
    if len(stripped) <= LABEL_LENGTH and "\n" not in stripped:
        facts.label = stripped
    facts.sample = answer[:500]


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


_SQL_STARTS = ("select", "with", "insert", "update", "delete", "create", "alter", "drop")
_sqlite = sqlite3.connect(":memory:", check_same_thread=False)


def _is_sql(text: str) -> bool:
    """Whether SQLite's parser takes it; tables that are not there do not matter."""
    if not text[:10].lower().startswith(_SQL_STARTS):
        return False
    try:
        _sqlite.execute(f"EXPLAIN {text}")
    except sqlite3.Error as error:
        return str(error).startswith(("no such", "ambiguous column"))
    return True
