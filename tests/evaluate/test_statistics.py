"""Intervals and paired tests: known values, coverage, and what chance must not be taken for."""

import math
import random

import numpy as np
import pytest

from luthier.evaluate.statistics import mean_interval, paired_test


def test_wilson_agrees_with_published_values() -> None:
    """Newcombe 1998, table I: 81/263, 15/148, 0/20, 1/29, method 3 (score, no continuity)."""
    for hits, rows, low, high in [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ]:
        found = mean_interval([1.0] * hits + [0.0] * (rows - hits))
        assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
        assert found.mean == hits / rows


def test_bootstrap_is_the_normal_interval_where_that_holds() -> None:
    scores = np.random.default_rng(3).gamma(2.0, size=400).tolist()
    found = mean_interval(scores)
    error = float(np.std(scores) / math.sqrt(400))
    assert found.low == pytest.approx(found.mean - 1.96 * error, abs=0.25 * error)
    assert found.high == pytest.approx(found.mean + 1.96 * error, abs=0.25 * error)
    assert mean_interval(scores) == found
    assert mean_interval(scores, seed=1) != found
    assert mean_interval(scores, confidence=0.5).high < found.high


def test_weights_are_tokens_of_a_row() -> None:
    found = mean_interval([1.0, 3.0, 2.0], weights=[10, 30, 0])
    assert found.mean == pytest.approx(2.5)
    assert 1.0 <= found.low <= 2.5 <= found.high <= 3.0
    many = mean_interval([random.Random(n).random() for n in range(300)], weights=[5] * 300)
    assert many.high - many.low < 0.1


def test_coverage_of_the_interval_and_false_alarms_of_the_test() -> None:
    """Under chance alone a 95% interval misses about 5% of the time, and the test errs so often."""
    rng = np.random.default_rng(0)
    missed = alarms = 0
    for trial in range(200):
        first, second = rng.exponential(size=(2, 60))
        found = mean_interval(first.tolist(), seed=trial, resamples=500)
        missed += not found.low <= 1.0 <= found.high
        alarms += paired_test(
            first.tolist(), second.tolist(), seed=trial, resamples=500
        ).verdict != ("no evidence")
    assert missed <= 28  # 10 expected; the percentile bootstrap runs a little short at 60 rows
    assert alarms <= 20


def test_verdicts_and_their_direction() -> None:
    low, high = [0.1 * (n % 3) for n in range(40)], [0.5 + 0.1 * (n % 2) for n in range(40)]
    up = paired_test(low, high)
    assert (up.verdict, up.difference > 0) == ("better", True)
    assert up.low > 0
    assert up.p == pytest.approx(1 / 10_001)
    assert paired_test(high, low).verdict == "worse"
    assert paired_test(low, high, higher_is_better=False).verdict == "worse"
    assert paired_test(high, low, higher_is_better=False).verdict == "better"
    same = paired_test(low, low)
    assert (same.verdict, same.p, same.low, same.high) == ("no evidence", 1.0, 0.0, 0.0)


def test_pairing_finds_what_two_intervals_hide() -> None:
    rng = np.random.default_rng(1)
    first = rng.normal(size=80)
    second = first + 0.1 + 0.05 * rng.normal(size=80)
    one, two = mean_interval(first.tolist()), mean_interval(second.tolist())
    assert one.high > two.low  # they overlap
    assert paired_test(first.tolist(), second.tolist()).verdict == "better"


def test_sign_flips_are_mcnemar_for_right_and_wrong() -> None:
    """Discordant pairs 9 against 1: the exact two-sided binomial p is 22/1024."""
    first = [0.0] * 9 + [1.0] + [1.0] * 30
    second = [1.0] * 9 + [0.0] + [1.0] * 30
    assert paired_test(first, second).p == pytest.approx(22 / 1024, abs=0.005)


def test_five_rows_are_never_evidence() -> None:
    found = paired_test([0.0] * 5, [0.9, 1.0, 0.8, 0.9, 1.0])
    assert found.low > 0  # the bootstrap alone would call it
    assert found.verdict == "no evidence"


def test_bad_input() -> None:
    for scores, weights in [([], None), ([1.0], [1.0, 2.0]), ([1.0], [0.0]), ([1.0, 2.0], [-1, 3])]:
        with pytest.raises(ValueError, match=r"no scores|weights"):
            mean_interval(scores, weights)
    with pytest.raises(ValueError, match="2 scores against 1"):
        paired_test([1.0, 2.0], [1.0])


def test_json_is_plain() -> None:
    assert mean_interval([1.0, 0.0]).rows == 2
    assert paired_test([1.0, 0.0], [1.0, 1.0]).verdict == "no evidence"
