"""A metric of one's own: is the fact in the answer, whatever its form?"""

import re


def score(answer: str, row: dict[str, str]) -> bool:
    return re.search(rf"(?<!\w){re.escape(row['fact'])}(?!\w)", answer, re.IGNORECASE) is not None
