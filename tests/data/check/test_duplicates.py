import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.data.check.duplicates import (
    PERMUTATIONS,
    SIMILAR,
    groups_of_equal,
    near_clusters,
    signatures,
)


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


@pytest.mark.parametrize("shared", [50, 80, 95])
def test_signatures_estimate_jaccard_similarity(shared: int) -> None:
    estimates = []
    for trial in range(30):
        a = {f"{trial}-{i}" for i in range(100)}
        b = {f"{trial}-{i}" for i in range(100 - shared, 200 - shared)}
        first, second = signatures([sorted(a), sorted(b)])
        estimates.append(float((first == second).mean()))
        expected = jaccard(a, b)
    # Thirty means of 64 draws: the standard error is at most 0.012.
    assert np.mean(estimates) == pytest.approx(expected, abs=0.05)


def test_clusters_are_found_among_strangers() -> None:
    texts = [[f"{i}-{j}" for j in range(50)] for i in range(300)]
    texts[100] = [*texts[7][:49], "x"]
    texts[200] = [*texts[100][:49], "y"]
    texts[250] = texts[8][:20] + texts[9][:30]  # half alike to two: no near duplicate
    (cluster,) = near_clusters(signatures(texts))
    assert cluster.tolist() == [7, 100, 200]


def test_rows_without_pieces_are_like_nothing() -> None:
    signature = signatures([[], [], ["a"]])
    assert signature.shape == (3, PERMUTATIONS)
    assert near_clusters(signature) == []
    assert 0.5 < SIMILAR < 1


@settings(max_examples=60)
@given(st.lists(st.integers(0, 5), max_size=30))
def test_groups_of_equal(keys: list[int]) -> None:
    expected = {
        key: [i for i, k in enumerate(keys) if k == key]
        for key in set(keys)
        if key != 0 and keys.count(key) > 1
    }
    found = groups_of_equal(np.array(keys, np.uint64))
    assert sorted(g.tolist() for g in found) == sorted(expected.values())
