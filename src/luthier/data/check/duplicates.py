"""Equal and nearly equal rows, among a million of them, from hashes alone."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rensa import RMinHash

PERMUTATIONS = 64
_BANDS = 16  # of four values: a pair of similarity 0.8 shares one with probability 0.9998
SIMILAR = 0.8  # Jaccard similarity of three-word pieces from which rows count as near duplicates

U32 = NDArray[np.uint32]
Ints = NDArray[np.int64]


def signatures(shingles: Sequence[list[str]]) -> U32:
    """MinHash signatures (n, PERMUTATIONS) of sets of strings (Broder 1997); zeros for empty sets.

    Two rows agree at a position with a probability that is their Jaccard similarity.
    """
    matrix = RMinHash.digest_matrix_from_token_sets(shingles, PERMUTATIONS, 1)
    rows = np.array(matrix.to_rows(), dtype=np.uint32).reshape(len(shingles), PERMUTATIONS)
    rows[[not pieces for pieces in shingles]] = 0
    return rows


def groups_of_equal(keys: NDArray[np.uint64]) -> list[Ints]:
    """Positions that share a key, for each key that occurs twice or more; key 0 means none."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[starts[1:], len(ordered)]
    return [
        order[start:end]
        for start, end in zip(starts, ends, strict=True)
        if end - start > 1 and ordered[start] != 0
    ]


def near_clusters(signature: U32) -> list[Ints]:
    """Clusters of rows linked by similarity of at least ``SIMILAR``, largest first.

    Candidates come from locality-sensitive hashing (Indyk and Motwani 1998): rows that agree in all
    values of a band. Each is then judged by the full signature, to within about 0.05.
    """
    filled = np.flatnonzero(signature.any(axis=1))
    width = PERMUTATIONS // _BANDS
    multipliers = np.random.default_rng(0).integers(1, 2**63, width, dtype=np.uint64) | np.uint64(1)
    links = _Links(len(signature))
    for band in range(_BANDS):
        values = signature[filled, band * width : (band + 1) * width].astype(np.uint64)
        hashes = (values * multipliers).sum(axis=1, dtype=np.uint64)
        order = filled[np.argsort(hashes, kind="stable")]
        ordered = np.sort(hashes, kind="stable")
        same = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        if not len(same):
            continue
        first = np.maximum.accumulate(
            np.where(np.r_[True, ordered[1:] != ordered[:-1]], np.arange(len(ordered)), 0)
        )
        # Each row of a run with the run's first and with the one before it.
        for other in (first[same], same - 1):
            links.join(order[same], order[other], signature)
    return links.clusters()


class _Links:
    """Union-find over row positions."""

    def __init__(self, count: int) -> None:
        self.parent = np.arange(count)

    def find(self, position: int) -> int:
        parent = self.parent
        while parent[position] != position:
            parent[position] = parent[parent[position]]
            position = parent[position]
        return int(position)

    def join(self, left: Ints, right: Ints, signature: U32) -> None:
        """Link the pairs whose signatures agree in a share of at least ``SIMILAR``."""
        for start in range(0, len(left), 100_000):  # bounds the memory of the comparison
            a, b = left[start : start + 100_000], right[start : start + 100_000]
            alike = (signature[a] == signature[b]).mean(axis=1) >= SIMILAR
            for one, other in zip(a[alike].tolist(), b[alike].tolist(), strict=True):
                first, second = sorted((self.find(one), self.find(other)))
                self.parent[second] = first

    def clusters(self) -> list[Ints]:
        linked = np.flatnonzero(self.parent != np.arange(len(self.parent)))
        roots: dict[int, list[int]] = {}
        for position in linked.tolist():
            root = self.find(position)
            roots.setdefault(root, [root]).append(position)
        return sorted((np.array(sorted(m)) for m in roots.values()), key=len, reverse=True)
