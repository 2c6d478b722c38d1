"""Which rows share a bin."""

import bisect
from collections import defaultdict
from collections.abc import Sequence


def best_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices of ``lengths`` grouped into bins of at most ``capacity`` tokens.

    Longest first, each into the fullest bin that still takes it (Johnson 1973: at most 11/9 of the
    least possible number of bins). Time n log capacity.

    Raises:
        ValueError: one length is over ``capacity``.
    """
    bins: list[list[int]] = []
    by_space: dict[int, list[list[int]]] = defaultdict(list)
    spaces: list[int] = []  # the free spaces that occur, rising
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        if length > capacity:
            raise ValueError(f"a row of {length} tokens does not fit {capacity}")
        at = bisect.bisect_left(spaces, length)
        if at == len(spaces):
            space = capacity
            bins.append([])
            chosen = bins[-1]
        else:
            space = spaces[at]
            chosen = by_space[space].pop()
            if not by_space[space]:
                del by_space[space], spaces[at]
        chosen.append(index)
        left = space - length
        if left not in by_space:
            bisect.insort(spaces, left)
        by_space[left].append(chosen)
    return bins
