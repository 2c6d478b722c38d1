"""Token rows by the thousand, as arrays: what looks at every token does so without a loop over rows."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from luthier.data.token_file import arrays_of
from luthier.data.tokens import Ids, Mask, TokenRow

_TOKENS = 2**20  # of a block


@dataclass(frozen=True)
class Block:
    """B rows end to end.

    Attributes:
        first: number of the first of them.
        ids: (T,) int32.
        mask: (T,) bool, as that of a ``TokenRow``.
        starts: (B,) int64, where in ``ids`` each begins.
    """

    first: int
    ids: Ids
    mask: Mask
    starts: NDArray[np.int64]

    def any(self, where: Mask) -> NDArray[np.bool_]:
        """(B,) whether ``where``, (T,), is true anywhere in a row."""
        found: NDArray[np.bool_] = np.logical_or.reduceat(where, self.starts)
        return found

    def begins(self, with_ids: Sequence[int]) -> NDArray[np.bool_]:
        """(B,) whether a row begins with these tokens."""
        lengths = np.diff(self.starts, append=len(self.ids))
        found = lengths >= len(with_ids)
        for place, token in enumerate(with_ids):
            at = np.minimum(self.starts + place, len(self.ids) - 1)
            found &= self.ids[at] == token
        return found


def in_blocks(rows: Sequence[TokenRow]) -> Iterator[Block]:
    """All of ``rows`` in blocks of about a million tokens."""
    group: list[TokenRow] = []
    first = tokens = 0
    for number, row in enumerate(rows):
        group.append(row)
        tokens += len(row)
        if tokens >= _TOKENS or number + 1 == len(rows):
            yield Block(first, *arrays_of(group), np.cumsum([0, *map(len, group[:-1])]))
            group, tokens, first = [], 0, number + 1
