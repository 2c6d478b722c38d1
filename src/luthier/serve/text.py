"""From tokens to text as they come: complete characters only, and nothing past a stop sequence."""

from collections.abc import Sequence
from functools import cached_property

from transformers import PreTrainedTokenizerBase

from luthier.data.thoughts import PLAIN, AnswerShape

_BROKEN = "\ufffd"  # for bytes that are not a complete character (yet)
_PATIENCE = 8  # tokens; no character is spread over more


class TextStream:
    """The text of one answer.

    Args:
        stops: sequences that end it; they are not part of the text, even where they span tokens.

        shape: what the template writes before the content, which is no part of the text.

    Attributes:
        stopped: a stop sequence was found.
        length: characters so far, those held back included.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        stops: Sequence[str] = (),
        shape: AnswerShape = PLAIN,
    ) -> None:
        self._tokenizer = tokenizer
        self._shape = shape
        self._special = tokenizer.all_special_tokens if shape.special else []
        self._framed = not shape.plain
        self._taken_off = 0  # characters of the frame
        self._thought = ""
        self._stops = tuple(stops)
        self._ids: list[int] = []
        self._context = self._read = 0  # ids before `_read` are in `_text`; decode from `_context`
        self._text = ""
        self._sent = 0
        self.stopped = False

    @property
    def length(self) -> int:
        return len(self._text)

    def add(self, token: int) -> str:
        """The text that is certain now and was not before."""
        self._ids.append(token)
        # A token's text depends on those before it (spaces between words, bytes of a character):
        # it is what it adds to them.
        before = self._decode(self._ids[self._context : self._read])
        text = self._decode(self._ids[self._context :])
        waiting = len(self._ids) - self._read
        if text.endswith(_BROKEN) and waiting < _PATIENCE:
            return ""
        self._text += text[len(before) :]
        # A context without text of its own would lose a space: some decoders strip the first one.
        if self._decode(self._ids[self._read :]):
            self._context = self._read
        self._read = len(self._ids)
        return self._release()

    def add_text(self, text: str) -> str:
        """The same for text that somebody else has decoded, special tokens included."""
        if not self._special:
            for token in self._hidden:
                text = text.replace(token, "")
        self._text += text
        return self._release()

    @cached_property
    def _hidden(self) -> list[str]:
        """Tokens that decoding skips."""
        added = self._tokenizer.added_tokens_decoder.values()
        return [token.content for token in added if token.special]

    def take_thought(self) -> str:
        """What the model thought before the content, once, as soon as it is known."""
        thought, self._thought = self._thought, ""
        return thought

    def finish(self) -> str:
        """The rest: what was held back because more might have come."""
        if not self.stopped:
            if self._ids:
                whole = self._decode(self._ids)
                self._text += whole[self._taken_off + len(self._text) :]
            self._unframe()
            self._cut()
            rest = self._text[self._sent :]
            self._sent = len(self._text)
            return self._clean(rest)
        return ""

    def _unframe(self) -> None:
        if self._framed:
            thought, content = self._shape.split(self._text)
            self._thought = self._clean(thought)
            self._taken_off = len(self._text) - len(content)
            self._text, self._framed = content, False

    def _clean(self, text: str) -> str:
        for token in self._special:
            text = text.replace(token, "")
        return text

    def _release(self) -> str:
        if self._framed:
            if not self._shape.settled(self._text):
                return ""
            self._unframe()
        self._cut()
        end = len(self._text)
        if not self.stopped:
            end -= max((_overlap(self._text, stop) for stop in self._stops), default=0)
        piece = self._text[self._sent : end]
        self._sent = max(self._sent, end)
        return self._clean(piece)

    def _cut(self) -> None:
        found = [at for stop in self._stops if (at := self._text.find(stop, self._sent)) >= 0]
        if found:
            self._text = self._text[: min(found)]
            self.stopped = True

    def _decode(self, ids: list[int]) -> str:
        text = self._tokenizer.decode(ids, skip_special_tokens=not self._special)
        assert isinstance(text, str)
        return text


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of ``text`` may be the beginning of ``stop``."""
    for length in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
