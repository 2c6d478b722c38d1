"""Perplexity of a mean loss, the one place that says what a very large one is."""

import math

_MOST = 700.0  # exp(710) is more than a float can hold, and JSON has no infinity


def perplexity(loss: float) -> float:
    """exp(loss), of a mean loss in nats per token; at most exp(700), about 1e304."""
    return math.exp(min(loss, _MOST))
