"""A metric of one's own: the share of the fields that are right."""

import json


def score(answer: str, row: dict[str, str]) -> float:
    """0 where the answer is no JSON object."""
    wanted = json.loads(row["reference"])
    try:
        found = json.loads(answer)
    except ValueError:
        return 0.0
    if not isinstance(found, dict):
        return 0.0
    return sum(name in found and found[name] == value for name, value in wanted.items()) / len(
        wanted
    )
