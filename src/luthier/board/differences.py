"""What differs between two answers, word by word."""

import re
from difflib import SequenceMatcher

Piece = tuple[str, bool]  # some text, and whether it differs

_WORDS = re.compile(r"\s+|[\w']+|[^\w\s]")
_LONGEST = 4_000  # words of both; a longer pair is shown without marks


def differences(base: str, tuned: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces, which join to the text again."""
    mine, theirs = _WORDS.findall(base), _WORDS.findall(tuned)
    if len(mine) + len(theirs) > _LONGEST or base == tuned:
        return [(base, False)], [(tuned, False)]
    left: list[Piece] = []
    right: list[Piece] = []
    for kind, i, j, k, m in SequenceMatcher(None, mine, theirs, autojunk=False).get_opcodes():
        changed = kind != "equal"
        if i < j:
            left.append(("".join(mine[i:j]), changed))
        if k < m:
            right.append(("".join(theirs[k:m]), changed))
    return left, right
