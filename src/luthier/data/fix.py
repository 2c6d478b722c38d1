"""`luthier data fix`: chosen remedies applied to a copy, with a log of every change."""

import json
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.data.check.row import answer_hash, exact_hash
from luthier.data.check.text import find_secrets
from luthier.data.conversation import Origin
from luthier.data.readers import BadRow, read_rows
from luthier.data.rows import find_layout, unknown_layout
from luthier.errors import UserError
from luthier.events import OnEvent, ignore
from luthier.files import staged_file, write_jsonl

_SHOWN = 200  # characters of a changed text in the log


def _fix_mojibake(text: str) -> str:
    from ftfy import fix_encoding

    return fix_encoding(text)


def _strip_controls(text: str) -> str:
    return "".join(
        c for c in text if c in "\t\n\r" or unicodedata.category(c) not in ("Cc", "Cs", "Co")
    )


def redact(text: str) -> str:
    """``text`` with each key and piece of personal data replaced by its kind: ``[EMAIL]``."""
    pieces, end = [], 0
    for secret in find_secrets(text):
        pieces += [text[end : secret.start], f"[{secret.kind.upper()}]"]
        end = secret.end
    return "".join([*pieces, text[end:]])


# Each changes one text; applied in this order, so that what is redacted was decoded before.
TEXT_REMEDIES: dict[str, Callable[[str], str]] = {
    "fix-mojibake": _fix_mojibake,
    "normalise-unicode": lambda text: unicodedata.normalize("NFC", text),
    "strip-control-characters": _strip_controls,
    "strip-whitespace": str.strip,
    "redact": redact,
}
# Each drops rows; judged after the texts were changed.
ROW_REMEDIES = {
    "drop-unreadable": "rows that cannot be read, or are in no known format",
    "drop-empty": "rows without an answer or a question",
    "drop-exact-duplicates": "rows that repeat an earlier one, spacing aside",
    "keep-first-of-conflicts": "rows whose prompt has another answer in an earlier row",
}
REMEDIES = (*TEXT_REMEDIES, *ROW_REMEDIES)


@dataclass
class Fixed:
    """What became of the rows; ``changes`` counts rows by remedy."""

    read: int = 0
    written: int = 0
    changes: Counter[str] = field(default_factory=Counter)


def fix_data(
    sources: Sequence[str],
    out: Path,
    remedies: Sequence[str],
    on_event: OnEvent = ignore,
    columns: Mapping[str, str] | None = None,
) -> Fixed:
    """Write the rows of ``sources`` to ``out`` (JSONL, their own fields) with ``remedies`` applied.

    Beside it ``<out>.changes.jsonl`` has a line for each change: row, remedy, field, before, after
    (for ``redact`` only what kind was there). Only conversation fields count for empty or equal rows;
    texts are changed wherever they are in a row. ``columns`` are as in a recipe.

    Raises:
        UserError: an unknown remedy, ``out`` exists or is not a .jsonl, or rows cannot be read and
            ``drop-unreadable`` was not asked for.
    """
    for remedy in remedies:
        if remedy not in REMEDIES:
            raise UserError(f"unknown remedy '{remedy}'; known: {', '.join(REMEDIES)}")
    if out.suffix != ".jsonl":
        raise UserError(
            f"{out}: the fixed rows are written as .jsonl; choose an --out that ends in it"
        )
    log = out.with_name(f"{out.name}.changes.jsonl")
    for path in (out, log):
        if path.exists():
            raise UserError(f"{path} exists; choose another --out (the source is never changed)")
    fixed = Fixed()
    fixer = _Fixer(set(remedies), fixed, columns)
    with staged_file(log) as changes:
        fixer.log = changes.write
        write_jsonl(out, fixer.rows(sources, on_event))
    return fixed


class _Fixer:
    def __init__(self, chosen: set[str], fixed: Fixed, columns: Mapping[str, str] | None) -> None:
        self.chosen = chosen
        self.columns = columns
        self.texts = {name: fix for name, fix in TEXT_REMEDIES.items() if name in chosen}
        self.fixed = fixed
        self.log: Callable[[bytes], Any] = lambda _line: None
        self.answers: dict[int, int] = {}  # prompt -> its first answer
        self.seen: set[int] = set()

    def rows(self, sources: Sequence[str], on_event: OnEvent) -> Iterator[dict[str, Any]]:
        for source in sources:
            for item in read_rows(source, on_event):
                self.fixed.read += 1
                row = self._kept(item)
                if row is not None:
                    self.fixed.written += 1
                    yield row

    def _kept(self, item: tuple[Origin, dict[str, Any]] | BadRow) -> dict[str, Any] | None:
        if isinstance(item, BadRow):
            self._unreadable(item.origin, item.reason)
            return None
        origin, row = item
        changed: set[str] = set()
        row = self._mended(origin, row, "", changed)
        self.fixed.changes.update(changed)
        layout = find_layout(row, self.columns)
        if layout is None:
            self._unreadable(origin, unknown_layout(row, self.columns))
            return None
        try:
            conversation = layout.conversation(row, origin)
        except BadRow as bad:
            if "is empty" in bad.reason and "drop-empty" in self.chosen:
                self._drop(origin, "drop-empty", bad.reason)
                return None
            return row  # the check reports such a row
        prompt, answer = exact_hash(conversation), answer_hash(conversation.reference)
        if prompt ^ (answer << 64) in self.seen and "drop-exact-duplicates" in self.chosen:
            self._drop(origin, "drop-exact-duplicates", "an earlier row is the same")
            return None
        first = self.answers.setdefault(prompt, answer)
        if first != answer and "keep-first-of-conflicts" in self.chosen:
            self._drop(origin, "keep-first-of-conflicts", "an earlier row has another answer")
            return None
        self.seen.add(prompt ^ (answer << 64))
        return row

    def _unreadable(self, origin: Origin, reason: str) -> None:
        if "drop-unreadable" not in self.chosen:
            raise UserError(f"{origin}: {reason}; fix it, or add the remedy drop-unreadable")
        self._drop(origin, "drop-unreadable", reason)

    def _drop(self, origin: Origin, remedy: str, why: str) -> None:
        self.fixed.changes[remedy] += 1
        self._note({"row": str(origin), "remedy": remedy, "why": why})

    def _mended(self, origin: Origin, value: Any, place: str, changed: set[str]) -> Any:
        """``value`` with the text remedies applied to every string in it."""
        if isinstance(value, dict):
            return {
                key: self._mended(origin, inner, f"{place}.{key}".lstrip("."), changed)
                for key, inner in value.items()
            }
        if isinstance(value, list):
            return [
                self._mended(origin, inner, f"{place}[{index}]", changed)
                for index, inner in enumerate(value)
            ]
        if not isinstance(value, str):
            return value
        for name, fix in self.texts.items():
            after = fix(value)
            if after == value:
                continue
            changed.add(name)
            line = {"row": str(origin), "remedy": name, "field": place}
            if name == "redact":  # the log must not keep what is taken out
                line["kinds"] = ", ".join(s.kind for s in find_secrets(value))
            else:
                line |= {"before": value[:_SHOWN], "after": after[:_SHOWN]}
            self._note(line)
            value = after
        return value

    def _note(self, line: dict[str, str]) -> None:
        self.log(json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
