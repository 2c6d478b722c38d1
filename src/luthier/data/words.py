"""Texts tokenised word by word, each word once: most words of a data set have been seen before.

A byte-level tokenizer cuts a text into words, and the tokens of a word depend on nothing around it.
Patterns differ in how they cut. But where one space stands between two characters that are no white
space, all that are known here cut before the space, and cut both sides as each would be alone:

- no match holds a space behind a character that is no white space, so a match that holds this space
  begins with it;
- ``\\s+`` is one of the alternatives, so some match does hold it;
- nothing looks back, and nothing looks ahead but ``\\s+(?!\\S)``: what is left of the space ends in
  no white space, and so is matched as where the text ends there.

Steps before or after that cut apart something else (digits) match no space, which changes none of this.
"""

import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

_BORDER = re.compile(r" (?<=\S )(?=\S)")
_MOST = 100_000  # words to remember, of
_LONGEST = 40  # characters at most

_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LOWER, _UPPER = r"\p{Ll}\p{Lm}\p{Lo}\p{M}", r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}"
_ALTERNATIVES = (
    "'s", "'t", "'re", "'ve", "'m", "'ll", "'d", _SUFFIX,
    r"\p{N}", r"\p{N}{1,3}", r" ?\p{N}+", r"[一-龥぀-ゟ゠-ヿ]+",
    r" ?\p{L}+", r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+", r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+""",
    *(rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]{upper}[{_LOWER}]{lower}{ending}"
      for upper, lower in ("*+", "+*") for ending in ("", f"{_SUFFIX}?")),
    r" ?[^\s\p{L}\p{N}]+", r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*", r" ?[\p{P}\p{S}]+[\r\n]*", r"\s*[\r\n]+", r"\s*[\r\n]",
    r"\s+(?!\S)", r"\s+",
)  # fmt: skip
_ONE = "|".join(map(re.escape, _ALTERNATIVES))
_KNOWN = re.compile(rf"(?:{_ONE})(?:\|(?:{_ONE}))*")


def ids_of(backend: Any, texts: Sequence[str]) -> Iterator[bytes]:
    """The ids of each text, int32, by a tokenizer of the tokenizers library."""
    found = backend.encode_batch_fast(texts, add_special_tokens=False)
    return (array("i", each.ids).tobytes() for each in found)


class Words:
    """Tokens of texts by ``backend``, of whose steps ``cuts_at_spaces`` is true."""

    def __init__(self, backend: Any) -> None:
        self._backend = backend
        # The ids of words behind a space, by the words; where a space is written before a word, it
        # begins its text.
        self._known: dict[str, bytes] = {}

    def encode(self, texts: Iterable[str]) -> dict[str, bytes]:
        """The ids of each text, int32."""
        split = {text: _BORDER.split(text) for text in texts}
        for words in split.values():
            words[0] = f" {words[0]}"
        known = self._known
        if len(known) > _MOST:
            known.clear()
        new = [*set(chain.from_iterable(split.values())).difference(known)]
        as_written = [word[1:] if word[0] == " " else f" {word}" for word in new]
        known.update(zip(new, ids_of(self._backend, as_written), strict=True))
        ids = {text: b"".join(map(known.__getitem__, words)) for text, words in split.items()}
        for word in new:
            if len(word) > _LONGEST:
                del known[word]
        return ids


def cuts_at_spaces(cutters: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the steps of a pre-tokeniser are as this module says."""
    patterns = [pattern for each in cutters if (pattern := _pattern(each)) is not None]
    return all(map(_KNOWN.fullmatch, patterns)) and any(
        pattern.endswith(r"|\s+") for pattern in patterns
    )


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _pattern(cutter: Mapping[str, Any]) -> str | None:
    """What a step cuts apart; None where that holds no space, and empty where it does something else."""
    if cutter["type"] == "Digits":
        return None
    if cutter["type"] == "ByteLevel":
        return _GPT2 if cutter["use_regex"] else None
    if cutter["type"] == "Split" and cutter["behavior"] == "Isolated" and not cutter["invert"]:
        written: str = cutter["pattern"].get("Regex", "")
        return written.replace("\r", r"\r").replace("\n", r"\n")
    return ""
