"""What all preferences together tell: that they prefer length, or have labels of one kind."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.check.preferences import BAD, GOOD, PAIR
from luthier.data.check.scan import Example, Scan

_LEAST = 20  # rows; fewer show no habit
_NEARLY_ALL = 0.8  # so many pairs whose better answer is longer (or shorter) teach its length
_UNEVEN = 2  # so many times as many labels of one kind


def judge_preferences(scan: Scan) -> None:
    """Add what all training rows together tell."""
    columns = scan.columns
    rows = columns["usable"] & (columns["role"] == 0)
    _lengths(scan, columns["longer"][rows & (columns["judged"] == PAIR)])
    good, bad = (int((rows & (columns["judged"] == kind)).sum()) for kind in (GOOD, BAD))
    if good + bad < _LEAST:
        return
    if not good or not bad:
        only = "true" if good else "false"
        scan.hit("one_sided_labels", Example("", f"every label is {only}"))
        scan.hits["one_sided_labels"] = good + bad
    elif max(good, bad) > _UNEVEN * min(good, bad):
        few, key = (("true", "desirable_weight"), ("false", "undesirable_weight"))[good > bad]
        weight = max(good, bad) / min(good, bad)
        detail = f"{good} are true and {bad} false: for {few} set objective.{key}={weight:.3g}"
        scan.hit("uneven_labels", Example("", detail))
        scan.hits["uneven_labels"] = min(good, bad)


def _lengths(scan: Scan, sides: NDArray[Any]) -> None:
    if len(sides) < _LEAST:
        return
    for sign, kind, word in ((1, "chosen_longer", "longer"), (-1, "chosen_shorter", "shorter")):
        count = int(np.count_nonzero(sides == sign))
        if count >= _NEARLY_ALL * len(sides):
            scan.hit(kind, Example("", f"{word} in {count / len(sides):.0%} of {len(sides)} pairs"))
            scan.hits[kind] = count
