"""Conversations to token ids and the mask of those that count in the loss."""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from luthier.data.borders import Borders
from luthier.data.bounded import TooMuch, bounded
from luthier.data.conversation import Conversation, Origin
from luthier.data.facts import unchanged
from luthier.data.shown import check_shown
from luthier.data.spans import History, Rendering, answer_spans, renderings
from luthier.data.stored import RowFile, StoredRows, line_of
from luthier.data.template import TemplateRejects, render
from luthier.data.unused import Fields, fields_of

Ids = NDArray[np.int32]
Mask = NDArray[np.bool_]


class TokenRow:
    """One row as the model sees it.

    Attributes:
        conversation: the row it was made from.
    """

    __slots__ = ("_arrays", "_index", "_rows")

    def __init__(
        self,
        input_ids: Sequence[int] | Ids,
        supervised: Sequence[bool] | Mask,
        conversation: Conversation,
    ) -> None:
        """As attributes; ``input_ids`` and ``supervised`` have the same length."""
        self._arrays = _as_arrays(input_ids, supervised)
        self._rows: Sequence[Conversation] = (conversation,)
        self._index = 0

    @classmethod
    def of(
        cls,
        rows: Sequence[Conversation],
        index: int,
        input_ids: Sequence[int] | Ids,
        supervised: Sequence[bool] | Mask,
    ) -> "TokenRow":
        """A token row of ``rows[index]``, which is not loaded for that."""
        made = cls.__new__(cls)
        made._arrays = _as_arrays(input_ids, supervised)
        made._rows, made._index = rows, index
        return made

    def part(self, start: int, end: int) -> "TokenRow":
        """Its tokens from ``start`` to before ``end``; nothing predicts the first of them."""
        ids, mask = self._arrays
        kept = mask[start:end].copy()
        kept[:1] = False
        return TokenRow.of(self._rows, self._index, ids[start:end], kept)

    def with_tokens(
        self, input_ids: Sequence[int] | Ids, supervised: Sequence[bool] | Mask
    ) -> "TokenRow":
        """Other tokens of the same conversation."""
        return TokenRow.of(self._rows, self._index, input_ids, supervised)

    def of_row(self, rows: Sequence[Conversation], index: int) -> "TokenRow":
        """The same tokens as those of ``rows[index]``."""
        made = copy(self)
        made._rows, made._index = rows, index
        return made

    @property
    def arrays(self) -> tuple[Ids, Mask]:
        """``ids`` and ``mask``, read together."""
        return self._arrays

    @property
    def ids(self) -> Ids:
        """Token ids, (n,) int32."""
        return self.arrays[0]

    @property
    def mask(self) -> Mask:
        """(n,) bool, True where the token must be predicted.

        Never the first token, which nothing predicts.
        """
        return self.arrays[1]

    @property
    def input_ids(self) -> list[int]:
        """``ids`` as a list, made anew each time."""
        listed: list[int] = self.ids.tolist()
        return listed

    @property
    def supervised(self) -> list[bool]:
        """``mask`` as a list, made anew each time."""
        listed: list[bool] = self.mask.tolist()
        return listed

    @property
    def conversation(self) -> Conversation:
        return self._rows[self._index]

    @property
    def stored(self) -> tuple[RowFile, int] | None:
        """The file that holds its conversation, and the place there; None where it is in memory."""
        rows = self._rows
        if not isinstance(rows, StoredRows):
            return None
        return rows.file, int(rows.places[self._index])

    @property
    def source(self) -> int:
        """A number that token rows of the same conversation share, and no others at the same time."""
        stored = self.stored
        return id(self.conversation) if stored is None else (stored[0].number << 48) + stored[1]

    @property
    def line(self) -> bytes:
        """Its conversation as a line of JSON, the end of the line included."""
        stored = self.stored
        return line_of(self.conversation) if stored is None else stored[0].line(stored[1])

    @property
    def origin(self) -> Origin:
        stored = self.stored
        return self.conversation.origin if stored is None else stored[0].origin(stored[1])

    @property
    def unused(self) -> Fields:
        """The ``fields_of`` its conversation."""
        stored = self.stored
        return fields_of(self.conversation) if stored is None else stored[0].unused(stored[1])

    @property
    def spoken(self) -> bool:
        """Whether it was made of messages, not of plain text."""
        stored = self.stored
        return bool(self.conversation.messages) if stored is None else stored[0].spoken(stored[1])

    def __len__(self) -> int:
        return len(self._arrays[0])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, TokenRow):
            return NotImplemented
        same = all(map(np.array_equal, self.arrays, other.arrays))
        return same and self.conversation == other.conversation

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"TokenRow({self.input_ids}, {self.supervised}, {self.conversation})"


def _as_arrays(
    input_ids: Sequence[int] | Ids, supervised: Sequence[bool] | Mask
) -> tuple[Ids, Mask]:
    return np.asarray(input_ids, np.int32), np.asarray(supervised, np.bool_)


@dataclass(frozen=True)
class _Part:
    """A rendering of row ``number``.

    ``counts`` says which of its tokens do: those of its spans, those of no span, or all.
    """

    number: int
    rendering: Rendering
    counts: Literal["spans", "others", "all"] = "spans"


Encoded = list[TokenRow] | TemplateRejects

# Rows that are rendered and tokenised together, and characters of them.
_ROWS, _CHARACTERS = 512, 2_000_000


class Tokenizer:
    """Turns conversations into ``TokenRow``s by one tokenizer, its template and ``train_on``.

    ``history`` says what becomes of earlier answers, see ``renderings``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        train_on: Literal["completions", "all"],
        history: History = "split",
    ) -> None:
        self.tokenizer = tokenizer
        self.train_on = train_on
        self.history = history

    def encode(self, row: Conversation) -> list[TokenRow]:
        """Tokens and mask of ``row``, not yet cut to any length.

        One token row, or one for each learned answer where the template writes earlier turns
        otherwise than the last.

        Raises:
            TemplateRejects: the chat template refuses the row, or omits something of it.
        """
        (encoded,) = self._tokenised([row], [] if row.text is not None else self._parts(0, row))
        return encoded

    def encode_all(self, rows: Iterable[Conversation]) -> Iterator[Encoded]:
        """``encode`` of each row, or its error; rows are taken a block at a time.

        The texts of a block are tokenised in one call, on all cores that the tokenizer's library uses.
        """
        for block in _blocks(rows):
            with unchanged(self.tokenizer):
                encoded = self._encode_block(block)
            yield from encoded

    def _encode_block(self, rows: Sequence[Conversation]) -> list[Encoded]:
        refused: set[int] = set()
        parts: list[_Part] = []
        try:
            with bounded():
                for number, row in enumerate(rows):
                    try:
                        parts += self._parts(number, row) if row.text is None else []
                    except TemplateRejects:
                        refused.add(number)
        except (TooMuch, MemoryError):
            return [self._alone(row) for row in rows]
        encoded = self._tokenised(rows, parts)
        # The bounds were those of the block: a row alone may need less than they are.
        return [
            self._alone(row) if number in refused else encoded[number]
            for number, row in enumerate(rows)
        ]

    def _alone(self, row: Conversation) -> Encoded:
        try:
            return self.encode(row)
        except TemplateRejects as error:
            return error

    def _parts(self, number: int, row: Conversation) -> list[_Part]:
        if self.train_on != "all":
            found = renderings(self.tokenizer, row.messages, self.history)
            return [_Part(number, rendering) for rendering in found]
        # All tokens count but those of answers that are excluded.
        check_shown(self.tokenizer, row.messages[: row.answers[-1] + 1])
        text = render(self.tokenizer, row.messages, add_generation_prompt=False)
        excluded = [
            index
            for index, message in enumerate(row.messages)
            if message["role"] == "assistant" and index not in row.answers
        ]
        spans = answer_spans(self.tokenizer, row.messages, text, [*row.answers, *excluded])
        silent = spans[len(row.answers) :]
        if silent:  # ids and mask of one encoding: another border may cut the text otherwise
            return [_Part(number, Rendering(text, silent), "others")]
        return [_Part(number, Rendering(text, spans), "all")]

    def _tokenised(
        self, rows: Sequence[Conversation], parts: Sequence[_Part]
    ) -> list[list[TokenRow]]:
        """Token rows of each of ``rows``, whose conversations were rendered as ``parts``."""
        made: list[list[TokenRow]] = [[] for _ in rows]
        covered = self._encode_renderings([part.rendering for part in parts])
        for part, (ids, mask) in zip(parts, covered, strict=True):
            if part.counts != "spans":
                mask = ~mask if part.counts == "others" else np.ones_like(mask)
            mask[0] = False
            made[part.number].append(TokenRow(ids, mask, rows[part.number]))
        plain = [number for number, row in enumerate(rows) if row.text is not None]
        texts = [text for row in rows if (text := row.text) is not None]
        # As the model was pretrained: its own beginning token, if any, and an end.
        eos = self.tokenizer.eos_token_id
        for number, ids in zip(plain, self._ids(texts, special=True), strict=True):
            whole = ids if ids[-1:] == [eos] else [*ids, eos]
            made[number].append(TokenRow(whole, _all_but_the_first(len(whole)), rows[number]))
        return made

    def _encode_renderings(
        self, renderings: Sequence[Rendering]
    ) -> list[tuple[Sequence[int] | Ids, Mask]]:
        """Ids of each, and which of them are in its spans."""
        borders = Borders.of(self.tokenizer)
        cuts = [borders.cut(each) if borders is not None else None for each in renderings]
        texts = (text for each in cuts if each is not None for text in each.texts)
        ids = borders.encode(texts) if borders is not None else {}
        joined = [each.joined(ids) if each is not None else None for each in cuts]
        pairs = zip(renderings, joined, strict=True)
        others = iter(self._encode_whole([each for each, found in pairs if found is None]))
        return [next(others) if found is None else found for found in joined]

    def _encode_whole(
        self, renderings: Sequence[Rendering]
    ) -> list[tuple[Sequence[int] | Ids, Mask]]:
        """The same by the offsets of each token, for any tokenizer."""
        if not renderings:
            return []
        # The template has written any beginning-of-text token itself.
        encoding = self.tokenizer(
            [each.text for each in renderings],
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        all_ids: list[list[int]] = encoding.input_ids
        offsets: list[list[tuple[int, int]]] = encoding.offset_mapping
        apart = self._apart(renderings, all_ids)
        return [
            apart[place] if place in apart else (ids, _within(offsets[place], each.spans))
            for place, (each, ids) in enumerate(zip(renderings, all_ids, strict=True))
        ]

    def _apart(
        self, renderings: Sequence[Rendering], all_ids: Sequence[list[int]]
    ) -> dict[int, tuple[Sequence[int], Mask]]:
        """Renderings whose prompts and answers must be tokenised apart, by their places.

        ``all_ids`` should begin with each prompt as it is tokenised alone, at inference. What
        follows can change that: GPT-2's rules split two line breaks in two before a letter and join
        them at the end of a text. Tokenised apart they are where that changes no text, so not by a
        tokenizer that puts a space before every text.
        """
        prompts = self._ids([e.text[:start] for e in renderings for start, _ in e.spans])
        following = iter(prompts)
        heads = [list(itertools.islice(following, len(each.spans))) for each in renderings]
        changed = [
            place
            for place, (ids, before) in enumerate(zip(all_ids, heads, strict=True))
            if any(ids[: len(head)] != head for head in before)
        ]
        texts = [_pieces(renderings[place]) for place in changed]
        pieces = iter(self._ids([text for each in texts for text in each]))
        found: dict[int, tuple[Sequence[int], Mask]] = {}
        for place, each in zip(changed, texts, strict=True):
            parts = list(itertools.islice(pieces, len(each)))
            ids = list(itertools.chain.from_iterable(parts))
            if self.tokenizer.decode(ids) == self.tokenizer.decode(all_ids[place]):
                lengths = [len(part) for part in parts]
                found[place] = ids, np.repeat(np.arange(len(parts)) % 2 == 1, lengths)
        return found

    def _ids(self, texts: list[str], special: bool = False) -> list[list[int]]:
        if not texts:
            return []
        ids: list[list[int]] = self.tokenizer(
            texts,
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
        ).input_ids
        return ids


def _blocks(rows: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    block: list[Conversation] = []
    characters = 0
    for row in rows:
        block.append(row)
        characters += len(row.text or "") + sum(len(turn["content"]) for turn in row.messages)
        if len(block) == _ROWS or characters > _CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


def _pieces(rendering: Rendering) -> list[str]:
    """Its text, cut at the borders of its spans."""
    borders = [0, *(b for span in rendering.spans for b in span), len(rendering.text)]
    return [rendering.text[start:end] for start, end in itertools.pairwise(borders)]


def _within(offsets: Sequence[tuple[int, int]], spans: Sequence[tuple[int, int]]) -> Mask:
    """Which tokens reach into one of ``spans``: (n,) bool, from the (start, end) characters of each."""
    flat = np.fromiter(itertools.chain.from_iterable(offsets), np.int64, 2 * len(offsets))
    firsts, lasts = flat[::2], flat[1::2]
    mask = np.zeros(len(offsets), np.bool_)
    for start, end in spans:
        # A token over the border counts: the model cannot write the answer without it.
        mask |= (lasts > start) & (firsts < end)
    return mask


def _all_but_the_first(length: int) -> Mask:
    mask = np.ones(length, np.bool_)
    mask[:1] = False
    return mask


def cut(row: TokenRow, max_length: int) -> list[TokenRow]:
    """Shorten ``row`` to at most ``max_length`` tokens.

    A conversation loses its end, and is lost altogether (an empty list) if no supervised token is
    left. Plain text becomes several rows, one after the other, so that nothing is lost.
    """
    if len(row) <= max_length:
        return [row]
    if row.spoken:
        head = row.part(0, max_length)
        return [head] if head.mask.any() else []
    windows = [row.part(start, start + max_length) for start in range(0, len(row), max_length)]
    return [window for window in windows if len(window) > 1]  # a single token predicts nothing
