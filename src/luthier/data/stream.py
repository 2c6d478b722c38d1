"""Rows of sources that nobody holds whole: read in order, a window at a time, trained on and dropped.

Each row goes through what prepares rows that are kept: reading, format, template, mask, tokens, the
policy for long ones. What is in memory is two windows in the process that makes them (the next, and
that as it is sent) and two in the one that trains (the present, and the next as it comes), each of
``WINDOW`` rows or 4 million tokens, whichever is less, and a block more. No row is kept on disk.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from luthier.data.conversation import Conversation
from luthier.data.hub_rows import hub_rows
from luthier.data.readers import BadRow, Item, read_rows
from luthier.data.reading import SHOWN, FileReader, SkippedRows, bad_rows_message
from luthier.data.sources import find_files
from luthier.data.split import split_key
from luthier.data.token_cache import WORTH
from luthier.data.token_rows import count_tokens, refuse_long, to_token_rows, unique
from luthier.data.tokens import Tokenizer, TokenRow
from luthier.data.workers import Ahead
from luthier.errors import UserError
from luthier.events import Note, OnEvent, ignore
from luthier.files import user_path
from luthier.recipe import Recipe, hub_dataset
from luthier.records.data import DataSource, Streamed, StreamPlace

WINDOW = 4096  # rows that are shuffled, and packed, together
_TOKENS = 2**22  # of a window; long texts fill it with fewer rows
_BLOCK = WORTH // 4  # rows that are tokenised at once, in memory also where each is two


@dataclass(frozen=True)
class Window:
    """Token rows that come together.

    Attributes:
        place: of its beginning, what was read up to its end with it.
        row: rows of this pass up to its end.
        notes: what is to be said of it.
        lost: what is to be said of rows of it that cannot be used.
        formats: of each file whose rows are among its own, by its name.
        skipped: rows that are not among its own, or not whole; they stay in the process that made it.
    """

    place: StreamPlace
    row: int
    rows: list[TokenRow]
    notes: list[Note]
    lost: list[Note]
    formats: dict[str, DataSource]
    skipped: SkippedRows

    @property
    def after(self) -> StreamPlace:
        """The beginning of the next one."""
        read = self.place.read
        return StreamPlace(window=self.place.window + 1, row=self.row, before=read, read=read)


@dataclass(frozen=True)
class Part:
    """A file, or a data set of the hub, whose rows can be read again and again."""

    name: str
    rows: Callable[[OnEvent], Iterator[Item]]


def find_parts(sources: Sequence[str], on_event: OnEvent) -> list[Part]:
    """What ``sources`` mean, in the order in which it is read; of the hub's nothing is fetched yet.

    Raises:
        UserError: there is nothing there.
    """
    parts: list[Part] = []
    for source in sources:
        hub = hub_dataset(source)
        if hub is not None:
            parts.append(Part(source, partial(_hub_items, source, *hub)))
        else:
            files = find_files(source, on_event)
            once = next((file for file in files if user_path(file).is_fifo()), None)
            if once is not None:
                raise UserError(
                    f"{once} is a pipe, whose rows come once: a run reads its first rows twice, and those "
                    "before its place again when it is resumed; write them to a file, compressed maybe"
                )
            parts += [Part(file, partial(read_rows, file)) for file in files]
    return parts


def _hub_items(source: str, hub_id: str, wanted: str | None, on_event: OnEvent) -> Iterator[Item]:
    return hub_rows(source, hub_id, wanted, on_event)


@dataclass(frozen=True)
class RowStream:
    """The rows of ``parts`` as windows of token rows, pass after pass without end.

    Attributes:
        head: so many rows at the beginning of each pass are held out.
        held_out: ``split_key``s of rows that are not trained on, wherever they come.
    """

    recipe: Recipe
    encoder: Tokenizer
    parts: Sequence[Part]
    head: int = 0
    held_out: frozenset[str] = frozenset()

    def windows(self, place: StreamPlace, on_event: OnEvent = ignore) -> Iterator[Window]:
        """From the window at ``place`` on.

        Raises:
            UserError: as where all rows are prepared before; or a pass has no row to train on.
        """
        kept = place.row > 0  # rows of the pass that was trained on before
        told: set[str] = set()
        while True:
            window: Window | None = None
            for window in self._pass(place, told, on_event):
                kept = kept or bool(window.rows)
                yield window
            place = place if window is None else window.after
            if not kept:
                raise UserError(self._none_left(place.read))
            kept = False
            read = place.read.model_copy(update={"passes": place.read.passes + 1})
            place = StreamPlace(window=place.window, before=read, read=read)

    def first_rows(self, count: int, skipped: SkippedRows) -> Iterator[Conversation]:
        """Conversations in the first ``count`` rows, which a run may hold out."""
        for number, _, found in self._read(0, ignore):
            if number > count:
                return
            if isinstance(found, BadRow):
                skipped.bad.append(found)
            else:
                yield from found

    def _none_left(self, read: Streamed) -> str:
        if read.passes:
            return (
                f"data.train has changed while the run trained: pass {read.passes + 1} over it has no row "
                "to train on; mend it and run the same command again, or set train.max_steps lower"
            )
        if read.rows == 0:
            return (
                f"no rows are left to train on: data.train has no more than the {self.head:,} that "
                "data.validation_rows holds out; set it lower"
                if self.head
                else "data.train has no rows"
            )
        return (
            f"no rows are left to train on: of {read.rows:,} rows behind those that are held out {read.bad:,} "
            f"cannot be used, {read.too_long:,} are longer than data.max_length "
            f"{self.recipe.data.max_length} and {read.also_in_validation:,} are held out, too"
        )

    def _pass(self, place: StreamPlace, told: set[str], on_event: OnEvent) -> Iterator[Window]:
        """The windows of one pass, from ``place`` to its end; ``told`` are notes that were made before."""
        making = _Making(self, place)
        if place.row == 0 and place.before.passes:
            making.notes.append(
                Note(
                    f"all rows of data.train have been read once ({place.before.up_to} was the last), so "
                    f"pass {place.before.passes + 1} over them begins"
                )
            )
        for number, reader, found in self._read(max(place.row, self.head), on_event):
            making.take(number, reader, found)
            if making.full:
                window = making.window(told)
                making = _Making(self, window.after)
                yield window
        if making.count:
            yield making.window(told)

    def _read(
        self, skip: int, on_event: OnEvent
    ) -> Iterator[tuple[int, FileReader, list[Conversation] | BadRow]]:
        """Number, and what is learned, of each row of a pass after the first ``skip``."""
        data = self.recipe.data
        number = 0
        for part in self.parts:
            reader = FileReader(part.name, data.format, data.columns, self.recipe.objective)
            for item in part.rows(on_event):
                number += 1
                # The first row of a file tells how the others are read.
                if number <= skip and reader.first is not None:
                    continue
                try:
                    found: list[Conversation] | BadRow = reader.read(item)
                except BadRow as bad:
                    found = bad.with_traceback(None)
                if number > skip:
                    yield number, reader, found


@dataclass
class _Making:
    """A window in the making."""

    stream: RowStream
    place: StreamPlace
    notes: list[Note] = field(default_factory=list)
    skipped: SkippedRows = field(default_factory=SkippedRows)
    rows: list[TokenRow] = field(default_factory=list)
    readers: dict[str, FileReader] = field(default_factory=dict)
    count: int = 0  # rows of the sources
    tokens: int = 0
    number: int = 0  # of the last row in this pass
    last: str = ""
    _block: list[Conversation] = field(default_factory=list)
    _held_out: list[Conversation] = field(default_factory=list)
    _characters: int = 0

    @property
    def full(self) -> bool:
        return self.count >= WINDOW or self.tokens >= _TOKENS

    def take(self, number: int, reader: FileReader, found: list[Conversation] | BadRow) -> None:
        """Add a row."""
        self.count += 1
        self.number = number
        self.readers[reader.file] = reader
        if isinstance(found, BadRow):
            self.skipped.bad.append(found)
            self.last = str(found.origin)
            return
        for row in found:
            self.last = str(row.origin)
            if self.stream.held_out and split_key(row) in self.stream.held_out:
                self._held_out.append(row)
                continue
            self._block.append(row)
            self._characters += len(row.text or "") + sum(len(m["content"]) for m in row.messages)
        if len(self._block) >= _BLOCK or self._characters >= _TOKENS:
            self._tokenise()

    def _tokenise(self) -> None:
        recipe, longer = self.stream.recipe, len(self.skipped.too_long)
        made = to_token_rows(
            self._block,
            recipe.data,
            self.stream.encoder,
            self.skipped,
            ignore,
            recipe.objective,
            keep=False,
        )
        self.rows += made
        self.tokens += sum(map(len, [*made, *self.skipped.too_long[longer:]]))
        self._block, self._characters = [], 0

    def window(self, told: set[str]) -> Window:
        """It, whole; ``told`` are notes about files that were made before."""
        self._tokenise()
        skipped, data = self.skipped, self.stream.recipe.data
        skipped.overlap = self._held_out
        if skipped.bad and data.on_bad_row == "error":
            raise UserError(bad_rows_message(skipped.bad))
        refuse_long(data, skipped.too_long)
        about = {reader.note for reader in self.readers.values() if reader.note} - told
        told |= about
        notes = [*self.notes, *map(Note, sorted(about))]
        before, tokens = self.place.before, count_tokens(self.rows)
        read = Streamed(
            rows=before.rows + self.count,
            passes=before.passes,
            kept=before.kept + sum(1 for _ in unique(self.rows)),
            tokens=before.tokens + tokens.total,
            supervised=before.supervised + tokens.supervised,
            longest=max(before.longest, tokens.longest),
            bad=before.bad + len(skipped.bad),
            too_long=before.too_long + len(skipped.too_long),
            also_in_validation=before.also_in_validation + len(skipped.overlap),
            up_to=self.last,
        )
        place = self.place.model_copy(update={"digest": _digest(self.rows), "read": read})
        formats = {
            name: DataSource(
                file=name,
                format=reader.first.kind if reader.first is not None else "unknown",
                columns=reader.renamed or None,
            )
            for name, reader in self.readers.items()
        }
        lost = _lost(skipped.bad)
        return Window(place, self.number, self.rows, notes, lost, formats, skipped)


def _lost(bad: Sequence[BadRow]) -> list[Note]:
    if not bad:
        return []
    shown = "; ".join(map(str, bad[:SHOWN]))
    more = f"; and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    has = (
        "1 row cannot be used and is"
        if len(bad) == 1
        else f"{len(bad)} rows cannot be used and are"
    )
    return [Note(f"{has} skipped: {shown}{more}", warning=True)]


def in_words(read: Streamed) -> str:
    """What was read of a stream, and what of it was skipped."""
    lost = [
        f"{count:,} {what}"
        for count, what in (
            (read.bad, "cannot be used"),
            (read.too_long, "are longer than data.max_length"),
            (read.also_in_validation, "ask what a held-out row asks"),
        )
        if count
    ]
    passes = f", after {read.passes} complete passes" if read.passes else ""
    return f"streamed {read.rows:,} rows, up to {read.up_to}{passes}" + (
        f"; of them {', '.join(lost)}" if lost else ""
    )


def _digest(rows: Sequence[TokenRow]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for row in rows:
        digest.update(len(row).to_bytes(4, "little"))
        digest.update(row.ids.tobytes())
        digest.update(row.mask.tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Stream:
    """A stream whose first window is here already."""

    source: RowStream
    first: Window

    def following(self) -> Ahead[Window]:
        """The windows after the first, which another process makes, from this call on."""
        return Ahead(partial(_sent, self.source, self.first.after))


def _sent(source: RowStream, place: StreamPlace) -> Iterator[Window]:
    return (replace(window, skipped=SkippedRows()) for window in source.windows(place))


def open_stream(source: RowStream, place: StreamPlace | None, on_event: OnEvent) -> Stream:
    """Make the first window with rows to train on, or that at ``place``; what those before lost is with it.

    Raises:
        UserError: as ``RowStream.windows``; or the rows at ``place`` are others than they were.
    """
    notes, lost, skipped = list[Note](), list[Note](), SkippedRows()
    for window in source.windows(place or StreamPlace(), on_event):
        if place is not None and window.place.digest != place.digest:
            raise UserError(
                "data.train has changed since the last checkpoint: the rows up to "
                f"{place.read.up_to} are not those that the run was trained on, so it cannot be resumed "
                "exactly; choose another run.name to start over"
            )
        notes += window.notes
        lost += window.lost
        skipped.add(window.skipped)
        if window.rows:
            return Stream(source, replace(window, notes=notes, lost=lost, skipped=skipped))
    raise AssertionError("a stream has no end")
