"""Keys and values of the rows that are being answered: allocated once, written in place."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import psutil
import torch
from torch import Tensor
from transformers import PreTrainedConfig

_SHORT = 16  # tokens of a piece that is not part of a prompt
_GAIN = 8192  # keys that need not be read again, from which on a second call pays, on a CPU


class Cache:
    """Room for ``slots`` rows of ``room`` tokens; for fewer where memory does not hold them.

    Attributes:
        slots: how many there are.
        layers: of each layer, the heads' keys, then their values (slots, 2 x heads, room, d), so that
            what a head looks at lies in one piece.
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
        row = layers * room * 2 * heads * width * dtype.itemsize
        self.slots = rows_in_memory(slots, row, device)
        shape = self.slots, 2 * heads, room, width
        self.layers = [_zeros(shape, dtype, device) for _ in range(layers)]
        self.heads = heads
        self.room = room

    def copy(self, source: int, target: int, count: int) -> None:
        """Give slot ``target`` the first ``count`` tokens of slot ``source``."""
        for layer in self.layers:
            layer[target, :, :count] = layer[source, :, :count]


def bytes_of_token(config: PreTrainedConfig, size: int) -> int:
    """Memory of a token's keys and values, of numbers of ``size`` bytes; 0 where there are none."""
    text = config.get_text_config()
    heads = getattr(text, "num_attention_heads", 0)
    if not heads:
        return 0
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    shared = getattr(text, "num_key_value_heads", None) or heads
    return int(text.num_hidden_layers * shared * width * 2 * size)


def rows_in_memory(rows: int, size: int, device: torch.device) -> int:
    """How many of ``rows`` rows of ``size`` bytes fit into a quarter of free memory; 1 at least."""
    return int(max(1, min(rows, free_memory(device) // 4 // max(1, size))))


def free_memory(device: torch.device) -> float:
    """Bytes; infinite where nobody can say."""
    if device.type == "cpu":
        return float(psutil.virtual_memory().available)
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return float(torch.cuda.mem_get_info(device)[0] + unused)
    return math.inf


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
        common: first tokens that all pieces of this cache and adapter have in common.
    """

    cache: Cache
    slot: int
    start: int
    tokens: list[int]
    adapter: str | None = None
    common: int = 0

    @property
    def end(self) -> int:
        return self.start + len(self.tokens)


@dataclass(frozen=True)
class _Group:
    """Tokens that attend in one call: as many of each of some slots that lie side by side.

    Attributes:
        rows: their places among the tokens of the step; None where they are all, in their order.
        longest: tokens of a slot that are looked at.
        masks: by window; added to the scores, None where all is seen.
        common: first tokens that are read once for all rows with the same ones; 0 where each reads its own.
        leaders: of each set of such rows, their numbers in the group, and a slot that has the tokens.
    """

    cache: Cache
    slots: slice
    longest: int
    rows: Tensor | None
    masks: dict[int | None, Tensor | None]
    common: int
    leaders: list[tuple[Tensor, int]]


class Sight:
    """What the tokens of one step see: themselves, what came before in their row, and no more.

    Masks and indices are made once and used by all layers.

    Args:
        windows: by layer, how many tokens back it sees; None for all.
        shared: query heads that share a key head.
    """

    def __init__(self, pieces: list[Piece], windows: list[int | None], shared: int) -> None:
        self._pieces, self._windows, self._shared = pieces, windows, shared
        cache = pieces[0].cache
        self._device = cache.layers[0].device
        self._dtype = cache.layers[0].dtype
        self._places: tuple[Tensor, Tensor] | None = None  # slots and positions
        if all(piece.cache is cache for piece in pieces):
            places = [(p.slot, at) for p in pieces for at in range(p.start, p.end)]
            slots, positions = torch.tensor(places, device=self._device).unbind(1)
            self._places = slots, positions
        self._count = sum(len(piece.tokens) for piece in pieces)
        self._groups = list(self._grouped())

    def _grouped(self) -> Iterator[_Group]:
        """Long pieces by themselves; the first tokens of short ones together, then what is left."""
        start = 0
        singles: list[tuple[Piece, int]] = []  # with the place of its first token
        for piece in self._pieces:
            rest, skipped = piece, 0
            if len(piece.tokens) <= _SHORT:
                singles.append((piece, start))
                rest = replace(piece, start=piece.start + 1, tokens=piece.tokens[1:])
                skipped = 1
            if rest.tokens:
                places = range(start + skipped, start + len(piece.tokens))
                at = torch.arange(rest.end, device=self._device)
                own = at[rest.start :, None]
                masks = {w: self._mask(at > own, at <= own - w if w else None) for w in self._kinds}
                yield self._group([rest], places, rest.end, masks)
            start += len(piece.tokens)
        singles.sort(key=lambda single: single[0].slot)
        while singles:
            count = _side_by_side([piece for piece, _ in singles])
            chosen, singles = singles[:count], singles[count:]
            ends = torch.tensor([[piece.start + 1] for piece, _ in chosen], device=self._device)
            longest = max(piece.start + 1 for piece, _ in chosen)
            at = torch.arange(longest, device=self._device)
            masks = {w: self._mask(at >= ends, at < ends - w if w else None) for w in self._kinds}
            yield self._group(
                [piece for piece, _ in chosen], [place for _, place in chosen], longest, masks
            )

    @property
    def _kinds(self) -> set[int | None]:
        return set(self._windows)

    def _group(
        self,
        pieces: list[Piece],
        places: Sequence[int],
        longest: int,
        masks: dict[int | None, Tensor | None],
    ) -> _Group:
        """Masks (pieces x tokens, longest) become such of all heads (pieces, 1, tokens x shared, …)."""
        whole = {
            window: mask
            if mask is None
            else mask[:, None].expand(-1, self._shared, -1).reshape(len(pieces), 1, -1, longest)
            for window, mask in masks.items()
        }
        slots = slice(pieces[0].slot, pieces[-1].slot + 1)
        rows = None
        if list(places) != list(range(self._count)):
            rows = torch.tensor(list(places), device=self._device)
        common, leaders = self._leaders(pieces)
        return _Group(pieces[0].cache, slots, longest, rows, whole, common, leaders)

    def _leaders(self, pieces: list[Piece]) -> tuple[int, list[tuple[Tensor, int]]]:
        """As in ``_Group``; nothing where it would gain nothing."""
        common = min(min(piece.common, piece.start) for piece in pieces)
        numbers: dict[str | None, list[int]] = {}
        for number, piece in enumerate(pieces):
            numbers.setdefault(piece.adapter, []).append(number)
        if self._device.type != "cpu" or common * (len(pieces) - len(numbers)) < _GAIN:
            return 0, []
        return common, [(torch.tensor(some), pieces[some[0]].slot) for some in numbers.values()]

    def _mask(self, after: Tensor, before: Tensor | None) -> Tensor | None:
        hidden = after if before is None else after | before
        if self._device.type == "cpu" and not bool(hidden.any()):
            return None
        mask = torch.zeros(hidden.shape, dtype=self._dtype, device=self._device)
        return mask.masked_fill_(hidden, -torch.inf)

    def attend(self, layer: int, rotated: Tensor, scale: float, softcap: float | None) -> Tensor:
        """Remember this step's keys and values, and attend.

        Args:
            rotated: queries, keys and values of each token (N, heads x shared + 2 x heads, d).

        Returns:
            (N, heads x shared x d).
        """
        heads = self._pieces[0].cache.heads
        query, new = rotated.split([heads * self._shared, 2 * heads], dim=1)
        self._write(layer, new)
        whole = self._groups[0].rows is None
        outputs = query.new_empty(0) if whole else query.new_empty(len(query), query[0].numel())
        for group in self._groups:
            kept = group.cache.layers[layer][group.slots, :, : group.longest]
            part = query if whole else query[group.rows]
            asked = part.view(len(kept), -1, heads, self._shared, query.shape[-1])
            asked = asked.transpose(1, 2).flatten(2, 3)
            window = self._windows[layer]
            mask = group.masks[window]
            if group.common and window is None and softcap is None:
                seen = _attention_in_two(asked, group, layer, mask, scale)
            else:
                seen = _attention(asked, kept, mask, scale, softcap)
            seen = seen.unflatten(2, (-1, self._shared)).transpose(1, 2).reshape(len(part), -1)
            if whole:
                return seen
            outputs[group.rows] = seen
        return outputs

    def _write(self, layer: int, new: Tensor) -> None:
        """``new`` (N, 2 x heads, d) to where it belongs."""
        if self._places is not None:
            slots, positions = self._places
            self._pieces[0].cache.layers[layer][slots, :, positions] = new
            return
        start = 0
        for piece in self._pieces:
            count = len(piece.tokens)
            target = piece.cache.layers[layer][piece.slot, :, piece.start : piece.end]
            target.copy_(new[start : start + count].transpose(0, 1))
            start += count


def _side_by_side(pieces: list[Piece]) -> int:
    """How many of ``pieces``, from the first on, attend in one call: until padding costs more."""
    first = pieces[0]
    storage = first.cache.layers[0]
    size = storage.shape[1] * storage.shape[3] * storage.element_size()
    longest = total = 0
    for count, piece in enumerate(pieces):
        if piece.cache is not first.cache or piece.slot != first.slot + count:
            return count
        longest, total = max(longest, piece.start + 1), total + piece.start + 1
        padding = longest * (count + 1) - total
        # On a CPU, reading takes some 0.1 ns a byte; a call more takes 25 us.
        if storage.device.type == "cpu" and padding * size * 0.1 > count * 25_000:
            return count
    return len(pieces)


def _attention(
    query: Tensor, kept: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> Tensor:
    """Scaled dot-product attention of ``query`` (B, heads, n, d) over ``kept`` (B, 2 x heads, T, d).

    The query heads that share a key head are its ``n`` queries, so that no key is repeated.
    """
    keys, values = kept.chunk(2, dim=1)
    if softcap is None:
        return torch.nn.functional.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=scale
        )
    scores = torch.tanh(query @ keys.transpose(2, 3) * (scale / softcap)) * softcap
    if mask is not None:
        scores = scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(values.dtype) @ values


def _attention_in_two(
    query: Tensor, group: _Group, layer: int, mask: Tensor | None, scale: float
) -> Tensor:
    """As ``_attention``; of what rows have in common the keys are read once (Juravsky et al. 2024).

    Each part has its own softmax. The sum of a part's exponentials is its weight in the whole.
    """
    kept, common = group.cache.layers[layer], group.common
    attend = partial(torch.ops.aten._scaled_dot_product_flash_attention_for_cpu, scale=scale)
    rest = None if mask is None else mask[..., common:]
    keys, values = kept[group.slots, :, common : group.longest].chunk(2, dim=1)
    seen, weights = attend(query, keys, values, attn_mask=rest)
    for rows, slot in group.leaders:
        keys, values = kept[slot : slot + 1, :, :common].chunk(2, dim=1)
        together = query[rows].transpose(0, 1).flatten(1, 2)[None]  # (1, heads, rows x n, d)
        first, weight = (
            part[0].unflatten(1, (len(rows), -1)).transpose(0, 1)
            for part in attend(together, keys, values)
        )
        share = torch.sigmoid(weight - weights[rows])[..., None]
        seen[rows] = torch.lerp(seen[rows], first, share.to(seen.dtype))
    return seen
