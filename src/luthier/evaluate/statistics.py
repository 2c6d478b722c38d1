"""How sure a mean of scores is, and whether one side beats the other on the same rows.

Rows are what is drawn at random, so rows are what is drawn again: the unit of every interval and
test here is the row, never the token.
"""

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from luthier.records.evaluation import Interval, PairedTest, Verdict

RESAMPLES = 10_000
CONFIDENCE = 0.95

Floats: TypeAlias = NDArray[np.float64]

_BLOCK = 2_000_000  # numbers drawn at once


def mean_interval(
    scores: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean of one score per row, with its confidence interval.

    Percentile bootstrap over rows (Efron 1979; Efron and Tibshirani 1993, chapter 13). Scores that
    are all 0 or 1, unweighted, get Wilson's interval (1927) instead: the bootstrap of "none of 20"
    would be exactly zero wide.

    Args:
        scores: (N,) one per row.
        weights: (N,) such as tokens per row: the mean is then sum(w s) / sum(w).
        seed: of the resampling; the same input gives the same interval.

    Raises:
        ValueError: no scores, or weights of another length or not positive in sum.
    """
    values, weighing = _arrays(scores, weights)
    rows = len(values)
    mean = float(values @ weighing / weighing.sum())
    if weights is None and np.isin(values, (0.0, 1.0)).all():
        return share_interval(mean, rows, confidence=confidence)
    low, high = _bootstrap(values, weighing, confidence, seed, resamples)
    return Interval(mean=mean, low=low, high=high, rows=rows, confidence=confidence)


def share_interval(share: float, rows: int, *, confidence: float = CONFIDENCE) -> Interval:
    """A share of ``rows`` with Wilson's interval (1927)."""
    low, high = _wilson(share, rows, confidence)
    return Interval(mean=share, low=low, high=high, rows=rows, confidence=confidence)


def paired_test(
    first: Sequence[float],
    second: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    higher_is_better: bool = True,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> PairedTest:
    """Whether ``second`` beats ``first``, row i of one being row i of the other.

    The interval is the percentile bootstrap of the differences. p is that of the sign-flip
    permutation test (Fisher 1935; Dror et al. 2018 recommend it for language tasks), two-sided,
    (b + 1) / (resamples + 1) as in Phipson and Smyth 2010, so never zero. A verdict other than
    "no evidence" needs both: an interval without zero, which few rows give too easily, and
    p below 1 - ``confidence``, which fewer than six rows cannot reach.

    Raises:
        ValueError: as ``mean_interval``, or sides of different length.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} scores against {len(second)}")
    differences, weighing = _arrays(
        np.subtract(np.asarray(second, float), np.asarray(first, float)), weights
    )
    rows, total = len(differences), weighing.sum()
    difference = float(differences @ weighing / total)
    low, high = _bootstrap(differences, weighing, confidence, seed, resamples)
    parts = differences * weighing / total
    flipped = _drawn(
        lambda rng, count: rng.choice((-1.0, 1.0), size=(count, rows)) @ parts,
        rows,
        seed,
        resamples,
    )
    # A flip that gives the observed sum again must count, whatever order it was added in.
    as_large = np.abs(flipped) >= abs(difference) - 1e-12 * np.abs(parts).sum()
    p = float((as_large.sum() + 1) / (resamples + 1))
    verdict: Verdict = "no evidence"
    if p < 1 - confidence and not low <= 0 <= high:
        verdict = "better" if (difference > 0) == higher_is_better else "worse"
    return PairedTest(
        difference=difference,
        low=low,
        high=high,
        p=p,
        rows=rows,
        verdict=verdict,
        confidence=confidence,
    )


def _arrays(
    scores: Sequence[float] | Floats, weights: Sequence[float] | None
) -> tuple[Floats, Floats]:
    values = np.asarray(scores, float)
    if not len(values):
        raise ValueError("no scores")
    weighing = np.ones(len(values)) if weights is None else np.asarray(weights, float)
    if weighing.shape != values.shape or (weighing < 0).any() or weighing.sum() <= 0:
        raise ValueError("weights must be one per row, none negative, and some positive")
    return values, weighing


def _drawn(
    draw: Callable[[np.random.Generator, int], Floats], rows: int, seed: int, resamples: int
) -> Floats:
    """(resamples,) statistics, drawn in blocks of bounded memory."""
    rng = np.random.default_rng(seed)
    block = max(1, _BLOCK // rows)
    counts = [min(block, resamples - start) for start in range(0, resamples, block)]
    return np.concatenate([draw(rng, count) for count in counts])


def _bootstrap(
    values: Floats, weights: Floats, confidence: float, seed: int, resamples: int
) -> tuple[float, float]:
    rows, weighted = len(values), values * weights

    def draw(rng: np.random.Generator, count: int) -> Floats:
        picks = rng.integers(0, rows, size=(count, rows))
        sums = weights[picks].sum(axis=1)
        means: Floats = weighted[picks].sum(axis=1) / np.where(sums > 0, sums, np.nan)
        return means

    means = _drawn(draw, rows, seed, resamples)
    tail = (1 - confidence) / 2
    low, high = np.nanquantile(means, (tail, 1 - tail))
    return float(low), float(high)


def _wilson(share: float, rows: int, confidence: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z * z / (2 * rows)) / (1 + z * z / rows)
    half = z / (1 + z * z / rows) * np.sqrt(share * (1 - share) / rows + z * z / (4 * rows * rows))
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))
