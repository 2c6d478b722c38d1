"""Batches without padding: rows laid end to end, each attending to itself alone.

A micro-batch of rows with n_1 … n_B tokens becomes one sequence of T = n_1 + … + n_B tokens whose
``position_ids`` start again at 0 with each row. Transformers reads the borders off the positions
and builds the block-diagonal causal mask (``find_packed_sequence_indices``), so the model sees what
it would see of each row alone, and no token is spent on padding.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from luthier.data.conversation import Origin
from luthier.data.packing import best_fit_decreasing
from luthier.data.token_file import arrays_of
from luthier.data.tokens import TokenRow
from luthier.models.copies import to_device

IGNORED = -100  # the label of a token without loss, as everywhere in PyTorch

Item = list[TokenRow]
Change = Callable[[Tensor], Tensor]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Judged:
    """What a preference objective knows of a batch besides its tokens; None where it has no use.

    Attributes:
        reference: (B,) log-probabilities of the rows by the reference model.
        desirable: (B,) bool, kto's labels.
        answers: (S,) bool, which of the supervised tokens are of answers.
        mismatched: kto's rows with the answers of others.
    """

    reference: Tensor | None = None
    desirable: Tensor | None = None
    answers: Tensor | None = None
    mismatched: "Batch | None" = None

    def each(self, change: Change) -> "Judged":
        """The same with its tensors changed."""
        reference, desirable, answers = (
            None if part is None else change(part)
            for part in (self.reference, self.desirable, self.answers)
        )
        others = self.mismatched
        return Judged(
            reference, desirable, answers, others.each(change) if others is not None else None
        )


@dataclass(frozen=True, slots=True)
class Taught:
    """What a teacher finds likely at each of S supervised tokens.

    Attributes:
        ids: (S, k) int32, the k likeliest tokens.
        log_probs: (S, k + 1) float32, their log-probabilities, and last that of all other tokens.
    """

    ids: Tensor
    log_probs: Tensor

    def part(self, start: int, end: int) -> "Taught":
        """Of the tokens from ``start`` to before ``end``."""
        return Taught(self.ids[start:end], self.log_probs[start:end])

    def each(self, change: Change) -> "Taught":
        """The same with its tensors changed."""
        return Taught(change(self.ids), change(self.log_probs))


@dataclass(frozen=True, slots=True)
class Batch:
    """One padding-free micro-batch: T tokens of B rows, S of them supervised.

    Attributes:
        input_ids: (1, T) int64.
        position_ids: (1, T) int64, from 0 in each row; None for a row alone, where they go
            without saying (not every model can be called with them).
        labels: (1, T) int64, the supervised tokens in place and ``IGNORED`` elsewhere. The first
            token of a row is never supervised, so no row predicts the next.
        predicts: (S,) int64, the positions whose logits predict a supervised token: those before one.
        row_lengths: B lengths, T in all.
        origins: where each of the B rows came from.
        judged: of preferences; of a pair the chosen row is followed by the rejected one.
        taught: of distillation.
        idle: another process learns from it. Here it only keeps this one in step, and counts nothing.
    """

    input_ids: Tensor
    position_ids: Tensor | None
    labels: Tensor
    predicts: Tensor
    row_lengths: tuple[int, ...]
    origins: tuple[Origin, ...] = ()
    judged: Judged | None = None
    taught: Taught | None = None
    idle: bool = False

    @property
    def tokens(self) -> int:
        """That go through the model."""
        others = self.judged.mismatched if self.judged is not None else None
        return self.input_ids.shape[1] + (others.tokens if others is not None else 0)

    @property
    def supervised(self) -> int:
        return self.predicts.numel()

    @property
    def targets(self) -> Tensor:
        """The supervised tokens, (S,)."""
        return self.labels[0, self.predicts + 1]

    def to(self, device: torch.device) -> "Batch":
        """The same with its tensors on ``device``, which does not wait for them."""
        return self.each(lambda tensor: to_device(tensor, device))

    def pin_memory(self) -> "Batch":
        """The same in memory that a GPU reads by itself; ``DataLoader`` calls it by this name."""
        return self.each(Tensor.pin_memory)

    def each(self, change: Change) -> "Batch":
        """The same with its tensors changed."""
        positions = self.position_ids
        return replace(
            self,
            input_ids=change(self.input_ids),
            position_ids=change(positions) if positions is not None else None,
            labels=change(self.labels),
            predicts=change(self.predicts),
            judged=self.judged.each(change) if self.judged is not None else None,
            taught=self.taught.each(change) if self.taught is not None else None,
        )

    def rows(self) -> list["Batch"]:
        """Each row as a batch of its own."""
        found, start, counted = [], 0, 0
        for index, length in enumerate(self.row_lengths):
            place = slice(start, start + length)
            labels = self.labels[:, place]
            predicts = (labels[0, 1:] != IGNORED).nonzero().squeeze(1)
            end = counted + predicts.numel()
            found.append(
                Batch(
                    self.input_ids[:, place],
                    None,
                    labels,
                    predicts,
                    (length,),
                    self.origins[index : index + 1],
                    taught=self.taught.part(counted, end) if self.taught is not None else None,
                )
            )
            start, counted = start + length, end
        return found


class RowDataset(Dataset[Item]):
    """Rows one by one, or with ``packing`` bins of complete rows up to ``max_length`` tokens.

    Which rows share a bin is decided once; the order of bins changes with each epoch.

    Args:
        together: so many rows in a row stay together: 2 for pairs. Bins are as many times as large.
    """

    def __init__(
        self, rows: Sequence[TokenRow], max_length: int, packing: bool, together: int = 1
    ) -> None:
        self.rows = rows
        self._together = together
        self._bins: list[list[int]] | None = None
        if packing:
            lengths = [len(row) for row in rows]
            groups = [sum(lengths[i : i + together]) for i in range(0, len(rows), together)]
            self._bins = best_fit_decreasing(groups, max_length * together)

    @property
    def items(self) -> Iterator[Item]:
        """All of them, in order."""
        return (self[index] for index in range(len(self)))

    def __len__(self) -> int:
        return len(self.rows) // self._together if self._bins is None else len(self._bins)

    def __getitem__(self, index: int) -> Item:
        groups = [index] if self._bins is None else self._bins[index]
        size = self._together
        return [self.rows[size * group + place] for group in groups for place in range(size)]


class StepBatches:
    """The micro-batches of each optimiser step, in an order that ``seed`` and the epoch decide.

    Of several processes each takes its share of the micro-batches of a step. Which those are depends on
    their number in all alone: two processes with four each take the steps of one with eight.

    Args:
        batch_size: items per micro-batch; the last of an epoch may have fewer.
        accumulated: micro-batches per step of each process.
        collate: makes one batch of a list of items.
        ahead: a thread makes the next step's batches while this one runs, in memory that a GPU reads
            by itself.
        rank: of this process, of ``ranks`` in all.
    """

    def __init__(
        self,
        data: RowDataset,
        batch_size: int,
        accumulated: int,
        seed: int,
        collate: Callable[[Sequence[Item]], Batch],
        ahead: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.data = data
        self.batch_size = batch_size
        self.per_step = accumulated * ranks
        self.seed = seed
        self.collate = collate
        self.ahead = ahead
        self.rank, self.ranks = rank, ranks

    @property
    def micro_batches(self) -> int:
        """Micro-batches per epoch, of all processes."""
        return math.ceil(len(self.data) / self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.micro_batches / self.per_step)

    def passes(self, epoch: int, steps_done: int) -> float:
        """Passes over the rows after so many steps of ``epoch``, with the fraction of the present one."""
        return min(epoch + steps_done * self.per_step / self.micro_batches, epoch + 1)

    def rows(self) -> Iterable[TokenRow]:
        """Those that a step may take rows from."""
        return self.data.rows

    def after(self, _step: int) -> None:
        """The rows are kept, and their order follows from the step: there is no place to go on at."""

    def close(self) -> None:
        """Nothing of it has to be ended."""

    def epoch(self, number: int, skipped_steps: int = 0) -> Iterator[list[Batch]]:
        """The steps of epoch ``number`` (from 0) but for the first ``skipped_steps``.

        All processes have the same number of micro-batches in a step: where the last of an epoch has
        none left for one, it gets one of another's, which is ``idle``.

        The call itself draws one number from PyTorch's global generator, as each new ``DataLoader``
        iterator does.
        """
        order = torch.randperm(
            len(self.data), generator=torch.Generator().manual_seed(self.seed + number)
        ).tolist()
        chosen = [order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size)]
        first = skipped_steps * self.per_step
        own = chosen[first + self.rank :: self.ranks]
        spare = -len(chosen) % self.ranks
        is_idle = self.rank >= self.ranks - spare and first < len(chosen)
        loader = DataLoader(
            self.data,
            batch_sampler=[*own, chosen[-1]] if is_idle else own,
            collate_fn=self.collate,
            pin_memory=self.ahead and torch.cuda.is_available(),
        )
        batches: Iterator[Batch] = iter(loader)
        if is_idle:
            batches = _last_idle(batches, len(own))
        steps = in_steps(batches, self.per_step // self.ranks)
        return one_ahead(steps) if self.ahead else steps


def _last_idle(batches: Iterator[Batch], number: int) -> Iterator[Batch]:
    """Those from ``number`` on are idle."""
    for place, batch in enumerate(batches):
        yield batch if place < number else replace(batch, idle=True)


def in_steps(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    """``size`` batches each, the last maybe fewer."""
    while step := list(islice(batches, size)):
        yield step


def one_ahead(values: Iterator[T]) -> Iterator[T]:
    """The same values, each made by a thread while the one before is in use."""
    nothing = object()
    with ThreadPoolExecutor(1, "next-batch") as worker:
        coming = worker.submit(next, values, nothing)
        while (value := coming.result()) is not nothing:
            coming = worker.submit(next, values, nothing)
            yield cast(T, value)


def collate(items: Sequence[Item]) -> Batch:
    """One padding-free batch of all rows of ``items``, in order."""
    rows = [row for item in items for row in item]
    ids, mask = arrays_of(rows)
    input_ids = ids.astype(np.int64)
    lengths = [len(row) for row in rows]
    positions = np.arange(len(ids)) - np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    return Batch(
        input_ids=torch.from_numpy(input_ids)[None],
        position_ids=torch.from_numpy(positions)[None],
        labels=torch.from_numpy(np.where(mask, input_ids, IGNORED))[None],
        predicts=torch.from_numpy(np.flatnonzero(mask) - 1),
        row_lengths=tuple(lengths),
        origins=tuple(row.origin for row in rows),
    )


def by_length(rows: Sequence[TokenRow], batch_size: int, together: int = 1) -> list[list[TokenRow]]:
    """Batches of ``batch_size`` rows of like length, for evaluation, where order does not matter.

    ``together`` rows in a row stay so, and count as one.
    """
    groups = [rows[i : i + together] for i in range(0, len(rows), together)]
    ordered = sorted(groups, key=lambda group: sum(map(len, group)))
    return [
        [row for group in ordered[i : i + batch_size] for row in group]
        for i in range(0, len(ordered), batch_size)
    ]
