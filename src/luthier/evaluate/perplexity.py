"""Loss and perplexity of two sides on the same rows, with intervals over rows."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from luthier.evaluate.likelihood import RowLoss
from luthier.evaluate.statistics import Interval, mean_interval, paired_test


def loss_and_perplexity(
    base: Sequence[RowLoss], tuned: Sequence[RowLoss]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``evaluation.json`` says of the mean loss (nats a token), and of its exponential.

    exp rises, so it carries the intervals of the loss over to perplexities, and that of the
    difference of losses to the ratio of perplexities: nothing is assumed twice.
    """
    tokens = [loss.tokens for loss in base]
    before, after = ([loss.mean for loss in side] for side in (base, tuned))
    intervals = {"base": mean_interval(before, tokens), "tuned": mean_interval(after, tokens)}
    test = paired_test(before, after, tokens, higher_is_better=False)
    common = {"share": False, "higher_is_better": False}
    loss = {
        "label": "loss",
        **common,
        **{side: interval.to_json() for side, interval in intervals.items()},
        "test": test.to_json(),
    }
    perplexity = {
        "label": "perplexity",
        **common,
        **{side: _exponential(interval).to_json() for side, interval in intervals.items()},
        "ratio": {"ratio": _exp(test.difference), "low": _exp(test.low), "high": _exp(test.high)},
        "test": {"p": test.p, "verdict": test.verdict, "rows": test.rows},
    }
    return loss, perplexity


def _exponential(interval: Interval) -> Interval:
    return replace(
        interval, mean=_exp(interval.mean), low=_exp(interval.low), high=_exp(interval.high)
    )


def _exp(value: float) -> float:
    return math.exp(min(value, 700.0))  # beyond, there is no such float
