"""Texts tokenised in pieces, where that is exactly what tokenising them whole would give.

The tokenizers library first cuts a text at the added tokens that stand in it (``<|im_start|>``), and
then works on what is between them, each part by itself. So a rendering may be cut before such tokens:
its prompt and its answer are then tokenised once, where the whole text and the prompt alone were two
texts, and the mask follows from the numbers of tokens, without the offsets of each.

That holds for byte-level BPE and for BPE that writes unknown characters as bytes, with normalisers and
pre-tokenisers that lose no character: then equal tokens are equal text. For others, and for each
rendering whose answer doesn't end with such a token, ``cut`` gives None.
"""

import itertools
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import AddedToken, models
from transformers import PreTrainedTokenizerBase, TokenizersBackend
from transformers.convert_slow_tokenizer import bytes_to_unicode

from luthier.data.facts import once
from luthier.data.spans import Rendering
from luthier.data.words import Words, cuts_at_spaces, ids_of

_TAILS = 8  # ends of prompts and answers to remember
_LEN = 4  # bytes of a token
_WINDOW = 200  # characters before a border of a span in which an added token is looked for


@dataclass(frozen=True)
class Cut:
    """A rendering in pieces.

    Attributes:
        pieces: its text; each piece but the first begins with an added token.
        spans: for each span the piece that it begins in, and the text of that piece before it. It
            ends with the first token of the next piece.
    """

    pieces: list[str]
    spans: list[tuple[int, str]]

    @property
    def texts(self) -> list[str]:
        """All that must be tokenised for ``joined``."""
        return [*self.pieces, *(before for _, before in self.spans)]

    def joined(
        self, ids: Mapping[str, bytes]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_]] | None:
        """Ids of the whole text, and which are in its spans, from the ids (int32) of each of ``texts``.

        None where a prompt is tokenised otherwise once its answer follows.
        """
        pieces = [ids[piece] for piece in self.pieces]
        starts = [*itertools.accumulate((len(piece) // _LEN for piece in pieces), initial=0)]
        mask = np.zeros(starts[-1], np.bool_)
        for place, before in self.spans:
            prompt = ids[before]
            if not pieces[place].startswith(prompt):
                return None
            mask[starts[place] + len(prompt) // _LEN : starts[place + 1] + 1] = True
        return np.frombuffer(b"".join(pieces), np.int32), mask


class Borders:
    """Finds where the texts of one tokenizer may be cut."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._backend = tokenizer.backend_tokenizer
        self._added: dict[str, AddedToken] = {
            token.content: token
            for token in self._backend.get_added_tokens_decoder().values()
            if token.content
        }
        longest_first = sorted(self._added, key=len, reverse=True)
        self._token = re.compile("|".join(map(re.escape, longest_first)))
        self._apart: dict[str, bool] = {}
        # Most prompts end in the same words: texts from a last added token on, and its length.
        self._tails: list[tuple[str, int]] = []
        normalizers = _flat(_state(self._backend.normalizer), "normalizers")
        self._composes = any(each["type"] == "NFC" for each in normalizers)
        # A normaliser works between the tokens that are found before it, so on those found after it.
        self._normalizes = bool(normalizers)
        self._byte_level = _byte_level(self._backend)
        self._words = Words(self._backend) if self._has_words(normalizers) else None
        self._unspelt = _unspelt(self._backend) if self._byte_level else b""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "Borders | None":
        """None for a tokenizer of which it isn't known that pieces are the same as the whole."""
        return once(tokenizer, "borders", lambda known: cls(known) if _known(known) else None)

    def _has_words(self, normalizers: list[dict[str, Any]]) -> bool:
        """Whether texts are tokenised word by word: no added token takes or holds white space."""
        cutters = _flat(_state(self._backend.pre_tokenizer), "pretokenizers")
        return (
            self._byte_level
            and all(each["type"] == "NFC" for each in normalizers)
            and cuts_at_spaces(cutters)
            and not any(
                token.lstrip or token.rstrip or token.single_word or re.search(r"\s", token.content)
                for token in self._added.values()
            )
        )

    def cut(self, rendering: Rendering) -> Cut | None:
        """``rendering`` in pieces; None where it must be tokenised whole."""
        data = rendering.text.encode("utf-8", "surrogatepass")
        if self._unspelt and len(data.translate(None, self._unspelt)) < len(data):
            return None  # the tokenizer drops a byte that it has no token for
        if self._composes and not unicodedata.is_normalized("NFC", rendering.text):
            return None  # a character may be composed across a border
        text, bounds = rendering.text, [0]
        spans: list[tuple[int, str]] = []
        for start, end in rendering.spans:
            before = self._last(text, max(bounds[-1], start - _WINDOW), start)
            closing = self._last(text, max(start, end - _WINDOW), end)
            if closing is None or closing[1] != end:
                return None
            # The bytes of one character that are tokens each have offsets that say little.
            if not (self._byte_level or text[start].isascii()):
                return None
            if before is not None and before[0] > bounds[-1]:
                bounds.append(before[0])
            spans.append((len(bounds) - 1, text[bounds[-1] : start]))
            bounds.append(closing[0])
        bounds.append(len(text))
        pieces = [text[one:other] for one, other in itertools.pairwise(bounds)]
        return Cut(pieces, spans)

    def encode(self, texts: Iterable[str]) -> dict[str, bytes]:
        """The ids of each of a cut's texts, int32, without any that the tokenizer would put around one."""
        self._backend.no_truncation()
        self._backend.no_padding()
        self._backend.encode_special_tokens = False
        once_each = dict.fromkeys(texts)
        if self._words is not None:
            return self._words.encode(once_each)
        return dict(zip(once_each, ids_of(self._backend, [*once_each]), strict=True))

    def _last(self, text: str, start: int, end: int) -> tuple[int, int] | None:
        """The last added token in a part of ``text``, where it is one that stands apart."""
        for tail, length in self._tails:
            if text.endswith(tail, start, end):
                return end - len(tail), end - len(tail) + length
        found = [*self._token.finditer(text, start, end)] if self._added else []
        if not found or not self._stands_apart(found[-1][0]):
            return None
        first, last = found[-1].span()
        if len(self._tails) < _TAILS:
            self._tails.append((text[first:end], last - first))
        return first, last

    def _stands_apart(self, token: str) -> bool:
        """Whether ``token`` is found wherever it is written, and takes nothing of what is around it."""
        if token not in self._apart:
            added = self._added[token]
            self._apart[token] = not (
                added.lstrip
                or added.rstrip
                or added.single_word
                or (added.normalized and self._normalizes)
                or "Ġ" in token
                or any(map(str.isspace, token))
                or any(_may_overlap(token, other) for other in self._added)
            )
        return self._apart[token]


def _may_overlap(token: str, other: str) -> bool:
    """Whether a text may hold both with a character in common, the same token at the same place apart."""
    for at in range(1 - len(other), len(token)):  # where ``other`` would begin
        if at == 0 and other == token:
            continue
        first, last = max(0, at), min(len(token), at + len(other))
        if token[first:last] == other[first - at : last - at]:
            return True
    return False


_KEEPS = ("Isolated", "MergedWithPrevious", "MergedWithNext", "Contiguous")


def _known(tokenizer: PreTrainedTokenizerBase) -> bool:
    kind = type(tokenizer)
    if not isinstance(tokenizer, TokenizersBackend) or (
        kind._encode_plus is not TokenizersBackend._encode_plus
        or kind.__call__ is not PreTrainedTokenizerBase.__call__
        or tokenizer.split_special_tokens
    ):
        return False
    backend = tokenizer.backend_tokenizer
    try:
        normalizers = _flat(_state(backend.normalizer), "normalizers")
        cutters = _flat(_state(backend.pre_tokenizer), "pretokenizers")
        finishers = _flat(_state(backend.post_processor), "processors")
    except Exception:  # one written in Python has no state to look at
        return False
    return (
        all(map(_keeps_characters, normalizers))
        and all(map(_cuts_only, cutters))
        and all(each["type"] in ("ByteLevel", "TemplateProcessing") for each in finishers)
        and _is_lossless(backend)
    )


def _state(part: Any) -> Any:
    return None if part is None else json.loads(part.__getstate__())


def _flat(state: Any, members: str) -> list[dict[str, Any]]:
    if state is None:
        return []
    if state["type"] == "Sequence":
        return [each for member in state[members] for each in _flat(member, members)]
    return [state]


def _keeps_characters(normalizer: dict[str, Any]) -> bool:
    if normalizer["type"] == "Replace":
        return bool(normalizer["pattern"] == {"String": " "} and normalizer["content"] == "▁")
    return bool(normalizer["type"] == "NFC")


def _cuts_only(cutter: dict[str, Any]) -> bool:
    if cutter["type"] in ("Split", "Punctuation"):
        return cutter["behavior"] in _KEEPS
    return bool(
        cutter["type"] == "Digits"
        or (cutter["type"] == "ByteLevel" and not cutter["add_prefix_space"])
    )


def _byte_level(backend: Any) -> bool:
    cutters = _flat(_state(backend.pre_tokenizer), "pretokenizers")
    return any(each["type"] == "ByteLevel" for each in cutters)


def _unspelt(backend: Any) -> bytes:
    """The bytes that a byte-level vocabulary has no token for (SmolLM2's: some control characters)."""
    spelt = bytes_to_unicode().items()
    return bytes(byte for byte, sign in spelt if backend.model.token_to_id(sign) is None)


def _is_lossless(backend: Any) -> bool:
    """Whether its model has tokens for every text, or can be asked for those bytes that it has none for."""
    model = backend.model
    if type(model) is not models.BPE or (
        model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix
    ):
        return False
    needed = ["▁", *(f"<0x{byte:02X}>" for byte in range(256))]
    return _byte_level(backend) or (
        model.byte_fallback and all(model.token_to_id(each) is not None for each in needed)
    )
