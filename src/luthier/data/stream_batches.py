"""Batches of a stream: as those of rows that are kept, window after window."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice

import torch
from torch.utils.data import DataLoader, IterableDataset

from luthier.data.batches import Batch, Item, RowDataset, in_steps, one_ahead
from luthier.data.stream import Window, in_words
from luthier.data.tokens import TokenRow
from luthier.data.workers import Ahead
from luthier.events import Event, Note, OnEvent
from luthier.records.data import StreamPlace

Check = Callable[[Sequence[TokenRow], OnEvent], None]


@dataclass(frozen=True)
class _Begun:
    """A window of which items are in batches.

    Attributes:
        start: number of its first item among those of all windows.
        notes: to be said once the run comes to it.
    """

    start: int
    window: Window
    notes: list[Note]


class StreamBatches:
    """The micro-batches of each step, from windows that are shuffled one by one.

    Window n of a stream is shuffled, and packed, as epoch n of kept rows that it would be all of. Its
    items follow those of the window before; a micro-batch may have items of both. Of several processes
    each makes all windows and takes its share of the micro-batches of a step, as ``StepBatches`` do.

    Args:
        first, following: the windows from ``place`` on.
        place: where the stream begins.
        max_steps: of the run, all in one epoch: the stream begins its passes anew by itself.
        check: looks through the rows of each window but the first before they are trained on.
        Others: as of ``RowDataset`` and ``StepBatches``.
    """

    def __init__(
        self,
        first: Window,
        following: Ahead[Window],
        place: StreamPlace,
        max_length: int,
        packing: bool,
        together: int,
        batch_size: int,
        accumulated: int,
        seed: int,
        max_steps: int,
        collate: Callable[[Sequence[Item]], Batch],
        check: Check,
        on_event: OnEvent,
        ahead: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.first, self.following = first, following
        self.place = place
        self.max_length, self.packing, self.together = max_length, packing, together
        self.batch_size = batch_size
        self.per_step = accumulated * ranks
        self.seed = seed
        self.steps_per_epoch = max_steps
        self.collate = collate
        self.check, self.on_event = check, on_event
        self.ahead = ahead
        self.rank, self.ranks = rank, ranks
        self._begun: deque[_Begun] = deque()
        self._said: set[str] = set()

    def epoch(self, _number: int, skipped_steps: int = 0) -> Iterator[list[Batch]]:
        """The steps after the first ``skipped_steps``, without end.

        The call itself draws one number from PyTorch's global generator, as that of ``StepBatches``.
        """
        items = self._items(skipped_steps * self.per_step * self.batch_size, self.place.used)
        loader = DataLoader(
            _Own(self._own(items)),
            batch_size=None,
            collate_fn=self.collate,
            pin_memory=self.ahead and torch.cuda.is_available(),
        )
        steps = in_steps(iter(loader), self.per_step // self.ranks)
        return one_ahead(steps) if self.ahead else steps

    def passes(self, _epoch: int, _steps_done: int) -> float:
        """Complete passes over the source; of the present one nobody knows how far it is."""
        return float(self.place.read.passes)

    def after(self, step: int) -> StreamPlace:
        """The place after so many steps of the run. What is to be said of new windows is said."""
        used = step * self.per_step * self.batch_size
        while len(self._begun) > 1 and self._begun[1].start < used:
            self._begun.popleft()
            for note in self._begun[0].notes:
                self.on_event(note)
        here = self._begun[0]
        self.place = here.window.place.model_copy(update={"used": used - here.start})
        return self.place

    def close(self) -> None:
        """End the process that makes windows, and say how much was read."""
        self.following.close()
        if self.place.read.rows:
            self.on_event(Note(in_words(self.place.read)))

    def rows(self) -> Iterator[TokenRow]:
        """Those of the windows that the next step may take rows from."""
        return (row for begun in list(self._begun) for row in begun.window.rows)

    def _own(self, items: Iterator[Item]) -> Iterator[list[Item]]:
        while True:
            # Those of all processes, so that each knows the windows that they come from.
            chosen = [list(islice(items, self.batch_size)) for _ in range(self.ranks)]
            yield chosen[self.rank]

    def _items(self, used: int, of_first: int) -> Iterator[Item]:
        """The items after the first ``used`` of the run, ``of_first`` of which are of the first window."""
        start = used - of_first
        for window in chain([self.first], self.following):
            notes = [*window.notes, *window.lost]
            if window is not self.first:
                self.check(window.rows, partial(self._keep_once, notes))
            data = RowDataset(window.rows, self.max_length, self.packing, self.together)
            self._begun.append(_Begun(start, window, notes))
            generator = torch.Generator().manual_seed(self.seed + window.place.window)
            order = torch.randperm(len(data), generator=generator).tolist()
            for index in order[max(0, used - start) :]:
                yield data[index]
            start += len(data)

    def _keep_once(self, notes: list[Note], event: Event) -> None:
        """What is true of every window is said once."""
        if isinstance(event, Note) and event.text not in self._said:
            self._said.add(event.text)
            notes.append(event)


class _Own(IterableDataset[list[Item]]):
    """What an iterator gives, once, for a ``DataLoader``."""

    def __init__(self, items: Iterator[list[Item]]) -> None:
        self._items = items

    def __iter__(self) -> Iterator[list[Item]]:
        return self._items
