"""Keys and values of the rows that are being answered: allocated once, written in place."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


class Cache:
    """Room for ``slots`` rows of ``room`` tokens.

    Attributes:
        layers: of each layer, keys then values of each token (slots, room, 2 x heads, d).
    """

    def __init__(
        self,
        layers: int,
        heads: int,
        width: int,
        slots: int,
        room: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        shape = slots, room, 2 * heads, width
        self.layers = [_zeros(shape, dtype, device) for _ in range(layers)]
        self.heads = heads
        self.room = room

    def copy(self, source: int, target: int, count: int) -> None:
        """Give slot ``target`` the first ``count`` tokens of slot ``source``."""
        for layer in self.layers:
            layer[target, :count] = layer[source, :count]


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros: a masked value counts 0 times, which is not 0 where it is not finite.

    On a CPU the system gives memory that it has cleared, at the first write to each page;
    ``torch.zeros`` would write to all of it.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)


@dataclass(frozen=True)
class Piece:
    """``tokens`` of one row, the first of them at position ``start``; those before are in the cache.

    Attributes:
        adapter: that is on for this row; None for the base.
    """

    cache: Cache
    slot: int
    start: int
    tokens: list[int]
    adapter: str | None = None

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


class Sight:
    """What the tokens of one step see: themselves, what came before in their row, and no more.

    Masks and indices are made once and used by all layers.

    Args:
        windows: by layer, how many tokens back it sees; None for all.
    """

    def __init__(self, pieces: list[Piece], windows: list[int | None], groups: int) -> None:
        first = pieces[0].cache
        self._pieces, self._groups, self._windows = pieces, groups, windows
        storage = first.layers[0]
        device = storage.device
        self._dtype = storage.dtype
        self._together = all(piece.cache is first for piece in pieces) and self._pays_together()
        kinds = set(windows)
        self._masks: dict[tuple[int, int | None], Tensor | None] = {}
        if all(piece.cache is first for piece in pieces):
            places = [
                piece.slot * first.room + at
                for piece in pieces
                for at in range(piece.start, piece.end)
            ]
            self._places: Tensor | None = torch.tensor(places, device=device)
        else:
            self._places = None
        if self._together:
            ends = torch.tensor([[piece.end] for piece in pieces], device=device)
            self._longest = max(piece.end for piece in pieces)
            at = torch.arange(self._longest, device=device)
            for window in kinds:
                hidden = at >= ends
                if window is not None:
                    hidden |= at < ends - window
                mask = torch.zeros(hidden.shape, dtype=self._dtype, device=device)
                self._masks[0, window] = mask.masked_fill_(hidden, -torch.inf)[:, None, None]
            if len({piece.end for piece in pieces}) == 1:
                for window in kinds:
                    if window is None or window >= self._longest:
                        self._masks[0, window] = None
            return
        for number, piece in enumerate(pieces):
            for window in kinds:
                self._masks[number, window] = self._mask(piece, window, device)

    def _pays_together(self) -> bool:
        """One token of each of the first slots: one call for all, unless padding would cost more."""
        pieces = self._pieces
        if any(len(piece.tokens) != 1 or piece.slot != slot for slot, piece in enumerate(pieces)):
            return False
        storage = pieces[0].cache.layers[0]
        if storage.device.type != "cpu":
            return True
        longest = max(piece.end for piece in pieces)
        padding = len(pieces) * longest - sum(piece.end for piece in pieces)
        # Reading takes some 0.1 ns a byte; a call more takes 25 us.
        size = storage.shape[2] * storage.shape[3] * storage.element_size()
        return padding * size * 0.1 <= (len(pieces) - 1) * 25_000

    def _mask(self, piece: Piece, window: int | None, device: torch.device) -> Tensor | None:
        """(tokens x groups, end), added to the scores; None where all is seen."""
        count = len(piece.tokens)
        if count == 1 and (window is None or window >= piece.end):
            return None
        at = torch.arange(piece.end, device=device)
        own = at[piece.start :, None]
        hidden = at > own
        if window is not None:
            hidden |= at <= own - window
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=device)
        mask.masked_fill_(hidden, -torch.inf)
        return mask[:, None].expand(-1, self._groups, -1).reshape(count * self._groups, -1)

    def attend(self, layer: int, rotated: Tensor, scale: float, softcap: float | None) -> Tensor:
        """Remember this step's keys and values, and attend.

        Args:
            rotated: queries, keys and values of each token (N, heads x groups + 2 x heads, d).

        Returns:
            (N, heads x groups x d).
        """
        heads, groups, width = self._pieces[0].cache.heads, self._groups, rotated.shape[-1]
        query, new = rotated.split([heads * groups, 2 * heads], dim=1)
        self._write(layer, new)
        window = self._windows[layer]
        if self._together:
            kept = self._pieces[0].cache.layers[layer][: len(self._pieces), : self._longest]
            seen = _attention(
                query.view(-1, heads, groups, width), kept, self._masks[0, window], scale, softcap
            )
            return seen.reshape(len(query), -1)
        outputs = []
        lengths = [len(piece.tokens) for piece in self._pieces]
        for number, (piece, part) in enumerate(
            zip(self._pieces, query.split(lengths), strict=True)
        ):
            kept = piece.cache.layers[layer][piece.slot : piece.slot + 1, : piece.end]
            count, mask = len(piece.tokens), self._masks[number, window]
            asked = part.view(count, heads, groups, width).transpose(0, 1)
            asked = asked.reshape(1, heads, count * groups, width)
            seen = _attention(asked, kept, mask, scale, softcap)
            seen = seen.reshape(heads, count, groups, width).transpose(0, 1)
            outputs.append(seen.reshape(count, -1))
        return torch.cat(outputs) if len(outputs) > 1 else outputs[0]

    def _write(self, layer: int, new: Tensor) -> None:
        """``new`` (N, 2 x heads, d) to where it belongs."""
        if self._places is not None:
            storage = self._pieces[0].cache.layers[layer]
            storage.view(-1, *storage.shape[2:]).index_copy_(0, self._places, new)
            return
        start = 0
        for piece in self._pieces:
            count = len(piece.tokens)
            target = piece.cache.layers[layer][piece.slot, piece.start : piece.end]
            target.copy_(new[start : start + count])
            start += count


def _attention(
    query: Tensor, kept: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """Scaled dot-product attention of ``query`` (B, heads, n, d) over ``kept`` (B, T, 2 x heads, d).

    The query heads that share a key head are its ``n`` queries, so that no key is repeated.
    """
    keys, values = kept.transpose(1, 2).chunk(2, dim=1)
    if softcap is None:
        return torch.nn.functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=scale
        )
    scores = torch.tanh(query @ keys.transpose(2, 3) * (scale / softcap)) * softcap
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ values
