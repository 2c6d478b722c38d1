"""Guess the next tokens from what stands in the prompt or in the answer so far (prompt lookup).

Answers that copy, as in extraction or over documents, repeat long pieces. The tokens that followed
the last three before are put to the model at once; those it would have written itself are kept
(Saxena 2023; Leviathan et al. 2023), so that a greedy answer is the same.
"""

_KEY = 3  # tokens that must have stood there before
_FIRST_HOPE = 0.5
_COUNTS = ((0.95, 16), (0.8, 8), (0.4, 4), (0.0, 2))  # the more is hoped, the more tokens
# A step takes as long as the weights are read, and its tokens are multiplied: on a CPU, reading takes
# the time of some 20 tokens. So the time of a token falls with their number, and with it what a
# guess may cost: from 60 on none is tried.
_READING = 20
_DOUBT = 0.25  # a guess that is just worth its product is not worth its attention


class Lookup:
    """The tokens of one row by what came before them, and how often guesses were right.

    Args:
        tokens: the row's own list, which grows.
    """

    def __init__(self, tokens: list[int]) -> None:
        self._places: dict[tuple[int, ...], int] = {}
        self._known = _KEY
        self._hope = _FIRST_HOPE
        self._tokens = tokens
        self._next: int | None = None  # token that may come next, guessed or not

    def guess(self, step: int, room: int) -> list[int]:
        """Tokens that may come next, ``room`` at most; empty where trying would not pay.

        Args:
            step: tokens that are read in the same step anyhow. The fewer they are, the less a guess
                costs.
        """
        tokens = self._tokens
        for end in range(self._known, len(tokens)):
            self._places[tuple(tokens[end - _KEY : end])] = end
        self._known = max(self._known, len(tokens))
        start = self._places.get(tuple(tokens[-_KEY:]))
        self._next = None if start is None else tokens[start]
        if start is None or self._hope <= step / (step + _READING) + _DOUBT:
            return []
        most = next(count for hope, count in _COUNTS if self._hope > hope)
        return tokens[start : start + min(room, most)]

    def learn(self, guessed: int, right: int, said: int) -> None:
        """Say how many of the guessed tokens were right; without a guess, what the row ``said``."""
        if guessed:
            self._hope += 0.4 * (right / guessed - self._hope)
        elif self._next is not None:
            self._hope += 0.4 * ((said == self._next) - self._hope)
