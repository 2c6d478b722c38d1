"""Guess the next tokens from what stands in the prompt or in the answer so far (prompt lookup).

Answers that copy, as in extraction or over documents, repeat long pieces. The tokens that followed
the last three before are put to the model at once; those it would have written itself are kept
(Saxena 2023; Leviathan et al. 2023), so that a greedy answer is the same.
"""

_KEY = 3  # tokens that must have stood there before
_MOST = 8  # tokens that are guessed at once
_FIRST_HOPE = 0.5
_FORGETS = 0.02  # of the distance to the first hope, at each step without a guess


class Lookup:
    """The tokens of one row by what came before them, and how often guesses were right."""

    def __init__(self, tokens: list[int]) -> None:
        self._places: dict[tuple[int, ...], int] = {}
        self._known = _KEY
        self._hope = _FIRST_HOPE
        self._tokens = tokens  # the row's own list, which grows

    def guess(self, rows: int, room: int) -> list[int]:
        """Tokens that may come next, ``room`` at most; empty where trying would not pay.

        Args:
            rows: in the batch. A step of few rows waits for the weights to be read, so that more
                tokens cost it little; among many rows a guess must be right more often.
        """
        tokens = self._tokens
        for end in range(self._known, len(tokens)):
            self._places[tuple(tokens[end - _KEY : end])] = end
        self._known = max(self._known, len(tokens))
        start = self._places.get(tuple(tokens[-_KEY:])) if self._hope > 0.1 + 0.04 * rows else None
        if start is None:
            self._hope += _FORGETS * (_FIRST_HOPE - self._hope)
            return []
        count = min(room, _MOST if self._hope > 0.8 else 4 if self._hope > 0.4 else 2)
        return tokens[start : start + count]

    def learn(self, guessed: int, right: int) -> None:
        """Say how many of the guessed tokens were right."""
        if guessed:
            self._hope += 0.4 * (right / guessed - self._hope)
