"""The reference of ``Tokenizer.encode_all``: row by row, each text by a call of its own, in lists."""

import itertools
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from luthier.data.conversation import Conversation
from luthier.data.shown import check_shown
from luthier.data.spans import History, Rendering, answer_spans, renderings
from luthier.data.template import render


@dataclass(frozen=True)
class SlowRow:
    input_ids: list[int]
    supervised: list[bool]


@dataclass(frozen=True)
class SlowTokenizer:
    tokenizer: PreTrainedTokenizerBase
    train_on: str
    history: History = "split"

    def encode(self, row: Conversation) -> list[SlowRow]:
        if row.text is not None:
            return [self._encode_text(row, row.text)]
        if self.train_on == "all":
            return [self._encode_whole(row)]
        rows = []
        for rendering in renderings(self.tokenizer, row.messages, self.history):
            input_ids, supervised = self._encode_rendering(rendering)
            supervised[0] = False
            rows.append(SlowRow(input_ids, supervised))
        return rows

    def _encode_whole(self, row: Conversation) -> SlowRow:
        """All tokens count but those of answers that are excluded."""
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
            input_ids, masked = self._encode_rendering(Rendering(text, silent))
            supervised = [not counts for counts in masked]
        else:
            input_ids, _ = self._encode_rendering(Rendering(text, spans))
            supervised = [True] * len(input_ids)
        supervised[0] = False
        return SlowRow(input_ids, supervised)

    def _encode_text(self, row: Conversation, text: str) -> SlowRow:
        # As the model was pretrained: its own beginning token, if any, and an end.
        input_ids = list(self.tokenizer(text).input_ids)
        eos = self.tokenizer.eos_token_id
        if input_ids[-1:] != [eos]:
            input_ids.append(eos)
        return SlowRow(input_ids, [False] + [True] * (len(input_ids) - 1))

    def _encode_rendering(self, rendering: Rendering) -> tuple[list[int], list[bool]]:
        # The template has written any beginning-of-text token itself.
        encoding = self.tokenizer(
            rendering.text, add_special_tokens=False, return_offsets_mapping=True
        )
        input_ids, offsets = list(encoding.input_ids), list(encoding.offset_mapping)
        if not all(self._begins(input_ids, rendering.text[:start]) for start, _ in rendering.spans):
            pieces = self._encode_pieces(rendering)
            if pieces is not None:
                return pieces
        supervised = [False] * len(input_ids)
        for start, end in rendering.spans:
            for index, (first, last) in enumerate(offsets):
                # A token over the border counts: the model cannot write the answer without it.
                if last > start and first < end:
                    supervised[index] = True
        return input_ids, supervised

    def _begins(self, input_ids: list[int], prompt: str) -> bool:
        """Whether ``prompt``, tokenised alone as at inference, is what ``input_ids`` begin with.

        What follows can change the tokens of a prompt: GPT-2's rules split two line breaks in two
        before a letter and join them at the end of a text.
        """
        ids = self.tokenizer(prompt, add_special_tokens=False).input_ids
        return bool(input_ids[: len(ids)] == ids)

    def _encode_pieces(self, rendering: Rendering) -> tuple[list[int], list[bool]] | None:
        """Tokenise prompts and answers apart, as inference does, where that changes no text.

        None where the tokenizer does not allow it (one that puts a space before every text).
        """
        borders = [0, *(b for span in rendering.spans for b in span), len(rendering.text)]
        input_ids: list[int] = []
        supervised: list[bool] = []
        for number, (start, end) in enumerate(itertools.pairwise(borders)):
            piece = self.tokenizer(rendering.text[start:end], add_special_tokens=False).input_ids
            input_ids += piece
            supervised += [number % 2 == 1] * len(piece)
        whole = self.tokenizer(rendering.text, add_special_tokens=False).input_ids
        if self.tokenizer.decode(input_ids) != self.tokenizer.decode(whole):
            return None
        return input_ids, supervised
