"""What a chat template that inserts the contents of turns writes, without running it.

Where no condition, filter or call looks at a content, what stands between the contents depends on the
roles alone. It is rendered once for each sequence of roles, with stand-ins, and rows of these roles
are joined of it. ``looks.py`` says for which templates and contents that holds.
"""

import re
from collections.abc import Sequence

# White space that ``trim`` takes away stands around a stand-in, to tell whether it was taken.
_SPACE = "\x1f"
_MARK = "\u2063{}\u2063"
_FOUND = re.compile(f"({_SPACE}?)\u2063(\\d+)\u2063({_SPACE}?)")

_Piece = str | tuple[int, bool]  # a text, or the place of a content and whether it is trimmed


class Skeleton:
    """What a template writes around the contents of turns, for one sequence of roles."""

    def __init__(self, pieces: Sequence[_Piece]) -> None:
        self._pieces = pieces

    @classmethod
    def of(cls, text: str) -> "Skeleton | None":
        """From the rendering of ``stand_in``s; None where they cannot be told apart in it."""
        pieces: list[_Piece] = []
        at = 0
        for found in _FOUND.finditer(text):
            if found[1] != found[3]:
                return None
            pieces += [text[at : found.start()], (int(found[2]), not found[1])]
            at = found.end()
        pieces.append(text[at:])
        texts = "".join(piece for piece in pieces if isinstance(piece, str))
        return cls(pieces) if _SPACE not in texts and "\u2063" not in texts else None

    def fill(self, contents: Sequence[str]) -> str:
        """The rendering of turns with these contents."""
        return "".join(self._texts(contents))

    def place(self, contents: Sequence[str], index: int, size: int) -> tuple[int, int] | None:
        """Where the content of turn ``index`` is in what ``fill`` gives, of ``size`` characters.

        None where it is not there once, or the size is another.
        """
        places = [
            number
            for number, piece in enumerate(self._pieces)
            if not isinstance(piece, str) and piece[0] == index
        ]
        lengths = [len(text) for text in self._texts(contents)]
        if len(places) != 1 or sum(lengths) != size:
            return None
        start = sum(lengths[: places[0]])
        return start, start + lengths[places[0]]

    def _texts(self, contents: Sequence[str]) -> list[str]:
        return [
            piece
            if isinstance(piece, str)
            else (contents[piece[0]].strip() if piece[1] else contents[piece[0]])
            for piece in self._pieces
        ]


def stand_in(index: int) -> str:
    """The content to render in the place of that of turn ``index``."""
    return f"{_SPACE}{_MARK.format(index)}{_SPACE}"
