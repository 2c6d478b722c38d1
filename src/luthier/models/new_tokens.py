"""Tokens that a recipe adds to a tokenizer (``data.add_tokens``)."""

import re
from collections.abc import Sequence

from transformers import AddedToken, PreTrainedTokenizerBase

from luthier.errors import UserError

# How chat templates write the tokens around turns: <|im_start|>, <start_of_turn>, [INST].
_MARK = re.compile(r"<\|[^|<>\s]{1,40}\|>|<(?:start|end)_of_[a-z_]{1,20}>|\[/?[A-Z_]{3,20}\]")


def add_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[int]:
    """Make each text one token, new where there is none such; their ids.

    Those that the chat template writes are special: answers are shown without them.

    Raises:
        UserError: a text is only white space, or stands there twice.
    """
    for number, text in enumerate(texts):
        if not text.strip():
            raise UserError(f"data.add_tokens: {text!r} is white space, which cannot be a token")
        if text in texts[:number]:
            raise UserError(f"data.add_tokens names {text!r} twice")
    template = str(tokenizer.chat_template or "")
    known = tokenizer.get_added_vocab()
    for text in texts:
        if text not in known:
            special = text in template
            tokenizer.add_tokens(
                [AddedToken(text, special=special, normalized=False)], special_tokens=special
            )
    vocabulary = tokenizer.get_vocab()
    return [int(vocabulary[text]) for text in texts]


def broken_marks(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Marks of turns in the chat template that are no token of the tokenizer: pieces of each."""
    marks = dict.fromkeys(_MARK.findall(str(tokenizer.chat_template or "")))
    pieces = {mark: len(tokenizer(mark, add_special_tokens=False).input_ids) for mark in marks}
    return {mark: count for mark, count in pieces.items() if count > 1}
