"""A metric of one's own: is the answer in the style, whatever it says?"""

import re


def score(answer: str, row: dict[str, object]) -> bool:
    """One sentence that begins with a name in backticks and a colon: "`math.sqrt`: Return …"."""
    return re.fullmatch(r"`[\w.]+`: [A-Z][^\n]{10,200}\.", answer.strip()) is not None
