"""What one row of preferences tells: a pair that prefers nothing, an answer with its question in it."""

from luthier.data.conversation import Conversation, spoken

NOT_JUDGED, PAIR, GOOD, BAD = range(4)  # of a row: `RowFacts.judged`

_PROMPT_WORDS = 4  # shorter questions are in many answers


def kind_of(row: Conversation) -> int:
    """Whether a row is a pair, or an answer with a label."""
    if row.rejected is not None:
        return PAIR
    label = row.extra.get("label")
    return NOT_JUDGED if not isinstance(label, bool) else GOOD if label else BAD


def hits(row: Conversation) -> dict[str, str]:
    """What one pair alone can tell: kind of finding -> detail."""
    if row.rejected is None:
        return {}
    found = {}
    chosen, rejected = _words(row.reference), _words(spoken(row.rejected))
    if chosen == rejected:
        found["equal_pairs"] = f"both are {row.reference[:60]!r}"
    question = row.prompt[-1]["content"]
    asked = _words(question)
    if len(asked.split()) >= _PROMPT_WORDS:
        sides = [
            name
            for name, answer in (("chosen", chosen), ("rejected", rejected))
            if answer.startswith(asked)
        ]
        if sides:
            found["leaked_prompts"] = (
                f"the {' and the '.join(sides)} answer begins with the question"
            )
    return found


def longer(row: Conversation) -> int:
    """1 where the chosen answer is longer than the rejected one, -1 where it is shorter, else 0."""
    if row.rejected is None:
        return 0
    chosen, rejected = len(row.reference), len(spoken(row.rejected))
    return (chosen > rejected) - (chosen < rejected)


def _words(text: str) -> str:
    return " ".join(text.split()).casefold()
