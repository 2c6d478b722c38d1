"""Answers that are JSON, or JSON of a schema: tokens that would break it are not allowed.

By llguidance (Microsoft), which walks the grammar and the vocabulary together.
"""

import json
from typing import Any

import llguidance
import llguidance.hf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from luthier.errors import UserError

# As `json.dumps` writes it. With free white space a small model may write nothing else, for ever.
_OPTIONS: Any = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}


class Vocabulary:
    """A tokenizer's tokens as bytes.

    Args:
        size: of the model's output layer, which may be longer than the tokenizer's vocabulary.
        stops: tokens that end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, stops: list[int]) -> None:
        known = max(size, len(tokenizer))
        self._tokens = llguidance.hf.from_tokenizer(tokenizer, n_vocab=known, eos_token=stops)  # type: ignore[arg-type]

    def bytes_of(self, token: int) -> bytes:
        """The bytes of ``token``; not always complete characters."""
        return self._tokens.decode_bytes([token])

    def grammar(self, schema: dict[str, Any] | None) -> "Grammar":
        """Of one answer: an object by ``schema``, or any object.

        Raises:
            UserError: it is not a JSON schema, or asks for what cannot be enforced.
        """
        source = json.dumps({"type": "object"} if schema is None else schema)
        try:
            compiled = llguidance.LLMatcher.grammar_from_json_schema(source, overrides=_OPTIONS)
            matcher = llguidance.LLMatcher(self._tokens, compiled, log_level=0)
        except ValueError as error:
            raise UserError(f"the JSON schema cannot be used: {error}") from None
        if matcher.is_error():
            raise UserError(f"the JSON schema cannot be used: {matcher.get_error()}")
        return Grammar(matcher, source)


class Grammar:
    """The position of one answer in its grammar.

    Attributes:
        schema: the JSON schema as text.
    """

    def __init__(self, matcher: llguidance.LLMatcher, schema: str) -> None:
        self._matcher = matcher
        self.schema = schema

    def allowed(self, size: int) -> Tensor:
        """True for each token (``size``,) that may come next."""
        packed = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[:size].astype(bool)
        mask = torch.zeros(size, dtype=torch.bool)
        mask[: len(bits)] = torch.from_numpy(bits)
        if not mask.any():
            raise RuntimeError(f"the grammar allows no token: {self._matcher.get_error()}")
        return mask

    def accept(self, token: int) -> None:
        """The token that was chosen."""
        self._matcher.consume_token(token)

    @property
    def complete(self) -> bool:
        """True when nothing may follow."""
        return self._matcher.is_stopped()
