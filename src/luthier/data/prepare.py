"""From the recipe's data group to token rows, with a record of every row."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from luthier.data.changes import note_changed_sources
from luthier.data.conversation import Conversation, Origin
from luthier.data.pairs import check_format, fitting, judged, sides, together, with_mismatched
from luthier.data.readers import BadRow, read_rows
from luthier.data.rows import Layout, add_names, find_layout, layout_as, read_as, unknown_layout
from luthier.data.sources import find_files
from luthier.data.split import sample, split, without_overlap
from luthier.data.template import TemplateRejects
from luthier.data.token_cache import encode_all
from luthier.data.tokens import Tokenizer, TokenRow, cut
from luthier.data.unused import unused_fields
from luthier.errors import UserError
from luthier.events import Note, OnEvent, during, ignore, tracked
from luthier.files import sha256, user_path, write_json, write_jsonl
from luthier.recipe import DataGroup, ObjectiveGroup, Recipe
from luthier.records.data import (
    DataReport,
    DataSource,
    LeftOut,
    LongRow,
    Replay,
    RowCounts,
    SplitTokens,
    TokenCounts,
    UnusableRow,
)
from luthier.run import Run

_SHOWN = 5  # examples in a message; the report holds all
_ANSWERS = ObjectiveGroup()  # what rows are read for where nothing else is said
_PAIRS = ObjectiveGroup(name="dpo")  # how pairs are tokenised, whatever learns from them


@dataclass
class Prepared:
    """Token rows of both sides of the split, and the report about how they came to be."""

    train: list[TokenRow]
    validation: list[TokenRow]
    report: DataReport


@dataclass
class _LeftOut:
    """Skipped rows, by reason."""

    bad: list[BadRow] = field(default_factory=list)
    too_long: list[TokenRow] = field(default_factory=list)
    overlap: list[Conversation] = field(default_factory=list)


def prepare(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, on_event: OnEvent = ignore
) -> Prepared:
    """Read, split and tokenise the data of a recipe.

    Raises:
        UserError: a file or row is wrong, or nothing is left to train on.
    """
    data, objective = recipe.data, recipe.objective
    encoder = Tokenizer(tokenizer, data.train_on, data.history)
    left_out = _LeftOut()
    train, sources = _read(recipe.train_files, data, left_out, on_event, objective)
    read = len(train)
    if data.max_rows is not None:
        train = sample(train, data.max_rows, recipe.train.seed)
    if data.validation is not None:
        validation, more = _read([data.validation], data, left_out, on_event, objective)
        sources += more
        with during("looking for training rows in the validation file", on_event):
            train, left_out.overlap = without_overlap(train, validation)
    else:
        with during("splitting off validation rows", on_event):
            train, validation = split(train, data.validation_fraction, recipe.train.seed)
    replay: Replay | None = None
    if data.replay is not None:
        general, more = _read([data.replay.source], data, left_out, on_event, detect=True)
        sources += more
        general, _ = without_overlap(general, validation)
        wanted = round(len(train) * data.replay.share / (1 - data.replay.share))
        added = sample(general, wanted, recipe.train.seed)
        replay = Replay(wanted=wanted, added=len(added), available=len(general))
        train = [*train, *added]
    train_rows = _tokenise(train, data, encoder, left_out, on_event, objective)
    validation_rows = _tokenise(validation, data, encoder, left_out, on_event, objective)
    _judge(data, train_rows, left_out)
    report = DataReport(
        sources=sources,
        rows=RowCounts(
            read=read, train=len(_unique(train_rows)), validation=len(_unique(validation_rows))
        ),
        replay=replay,
        tokens=SplitTokens(train=_count(train_rows), validation=_count(validation_rows)),
        left_out=LeftOut(
            bad=[UnusableRow(row=str(bad.origin), why=bad.reason) for bad in left_out.bad],
            too_long=[
                LongRow(row=str(row.conversation.origin), tokens=len(row))
                for row in left_out.too_long
            ],
            also_in_validation=[str(row.origin) for row in left_out.overlap],
        ),
        unused_fields=[
            unused
            for unused in unused_fields([*_unique(train_rows), *_unique(validation_rows)])
            if not (objective.learns_from == "labels" and unused.field == "label")
        ]
        or None,
        answers_apart=(objective.together == 1 and _answers_apart(train_rows)) or None,
    )
    return Prepared(train_rows, validation_rows, report)


def store(prepared: Prepared, run: Run) -> None:
    """Keep the split and the report in the run folder, the report last."""
    write_jsonl(run.train_path, (row.to_row() for row in _unique(prepared.train)))
    write_jsonl(run.validation_path, (row.to_row() for row in _unique(prepared.validation)))
    hashes = {path.name: sha256(path) for path in (run.train_path, run.validation_path)}
    write_json(
        run.data_report_path, prepared.report.model_copy(update={"split_sha256": hashes}).to_dict()
    )


def load_stored(
    data: DataGroup,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    on_event: OnEvent = ignore,
    objective: ObjectiveGroup = _ANSWERS,
) -> Prepared:
    """The split that ``store`` kept: the sources may have changed since.

    Raises:
        UserError: it was edited, or is gone.
    """
    report = run.data_report()
    with during("checking the run's data", on_event):
        whole = report is not None and _as_stored(report, run)
    if report is None or not whole:
        raise UserError(
            f"{run.train_path.parent} has changed since this run wrote it, so the run cannot be "
            "resumed exactly; choose another run.name to start over"
        )
    note_changed_sources(data, run, on_event)
    encoder = Tokenizer(tokenizer, data.train_on, data.history)
    train, validation = (
        tokenise(list(_stored_rows(path, on_event)), data, encoder, on_event, objective)
        for path in (run.train_path, run.validation_path)
    )
    return Prepared(train, validation, report)


def _as_stored(report: DataReport, run: Run) -> bool:
    hashes = report.split_sha256 or {}
    try:
        return all(
            sha256(path) == hashes.get(path.name) for path in (run.train_path, run.validation_path)
        )
    except OSError:
        return False


def held_out(run: Run, on_event: OnEvent = ignore) -> list[Conversation]:
    """The run's validation rows, as conversations.

    Raises:
        UserError: they are gone or damaged.
    """
    return list(_stored_rows(run.validation_path, on_event))


def trained_on(run: Run, on_event: OnEvent = ignore) -> list[Conversation]:
    """The run's training rows, as conversations.

    Raises:
        UserError: as ``held_out``.
    """
    return list(_stored_rows(run.train_path, on_event))


def read_for_evaluation(
    file: str,
    data: DataGroup,
    on_event: OnEvent = ignore,
) -> list[Conversation]:
    """The rows of one more file, pairs among them, by the recipe's rules for bad rows.

    Raises:
        UserError: the file or a row is wrong.
    """
    return _read([file], data, _LeftOut(), on_event, None)[0]


def tokenise(
    rows: Sequence[Conversation],
    data: DataGroup,
    encoder: Tokenizer,
    on_event: OnEvent = ignore,
    objective: ObjectiveGroup = _ANSWERS,
) -> list[TokenRow]:
    """Token rows of conversations that were prepared before, cut as they were then."""
    encoded = _encoded(rows, encoder, objective, on_event)
    refused = next((row for row in encoded if isinstance(row, TemplateRejects)), None)
    if refused is not None:
        raise UserError(str(refused))
    if objective.together > 1:
        kept = [
            piece
            for rows in encoded
            if not isinstance(rows, TemplateRejects)
            for piece in fitting(rows, data.max_length, truncate=True)[0]
        ]
        return _arranged(kept, data, objective)
    return [
        piece
        for rows in encoded
        if not isinstance(rows, TemplateRejects)
        for row in rows
        for piece in cut(row, data.max_length)
    ]


def tokenise_pairs(
    rows: Sequence[Conversation],
    data: DataGroup,
    tokenizer: PreTrainedTokenizerBase,
    on_event: OnEvent = ignore,
) -> list[TokenRow]:
    """Chosen and rejected token rows, by turns, of those ``rows`` that are pairs and fit."""
    pairs = [row for row in rows if row.rejected is not None]
    return tokenise(pairs, data, Tokenizer(tokenizer, "completions"), on_event, _PAIRS)


def _encoded(
    rows: Sequence[Conversation], encoder: Tokenizer, objective: ObjectiveGroup, on_event: OnEvent
) -> list[list[TokenRow] | TemplateRejects]:
    """The token rows of each row; of a pair those of its sides."""
    if objective.together == 1:
        return encode_all(encoder, rows, on_event)
    apart = encode_all(encoder, [side for row in rows for side in sides(row)], on_event)
    return list(together(rows, iter(apart)))


def _arranged(rows: list[TokenRow], data: DataGroup, objective: ObjectiveGroup) -> list[TokenRow]:
    return with_mismatched(rows, data.max_length) if objective.learns_from == "labels" else rows


def _read(
    sources: Sequence[str],
    data: DataGroup,
    left_out: _LeftOut,
    on_event: OnEvent,
    objective: ObjectiveGroup | None = _ANSWERS,
    *,
    detect: bool = False,
) -> tuple[list[Conversation], list[DataSource]]:
    """Rows and their files.

    Args:
        objective: that they must be for; None takes them as they are.
        detect: tell the format whatever ``data.format`` says.
    """
    rows: list[Conversation] = []
    read = []
    fmt = "auto" if detect else data.format
    columns = None if detect else data.columns
    for file in (file for source in sources for file in find_files(source, on_event)):
        before = len(rows)
        reader = _FileReader(file, fmt, columns, objective)
        for item in read_rows(file, on_event):
            try:
                if isinstance(item, BadRow):
                    raise item
                row = reader.conversation(*item)
                rows += [row] if objective is None else judged(row, objective)
            except BadRow as bad:
                left_out.bad.append(bad)
        if reader.renamed and not columns:
            on_event(Note(f"{file}: reads {read_as(reader.renamed)} (data.columns changes that)"))
        with during(f"hashing {file}", on_event):
            digest = sha256(user_path(file))
        read.append(
            DataSource(
                file=file,
                format=reader.first.kind if reader.first is not None else "unknown",
                sha256=digest,
                rows=len(rows) - before,
                columns=reader.renamed or None,
            )
        )
    if left_out.bad and (data.on_bad_row == "error" or not rows):
        raise UserError(_bad_rows_message(left_out.bad))
    return rows, read


class _FileReader:
    """Reads the rows of one file. The first that can be read tells the format of all.

    Attributes:
        first: how that row is read.
        renamed: fields of formats that were found under other names, and those.
    """

    def __init__(
        self,
        file: str,
        fmt: str,
        columns: Mapping[str, str] | None,
        objective: ObjectiveGroup | None,
    ) -> None:
        self.file, self.fmt, self.columns, self.objective = file, fmt, columns, objective
        self.first: Layout | None = None
        self.renamed: dict[str, str] = {}

    def conversation(self, origin: Origin, row: dict[str, Any]) -> Conversation:
        layout = self._layout(row)
        if layout is None:
            raise UserError(f"{origin}: {unknown_layout(row, self.columns)}")
        if self.objective is not None:
            check_format(self.file, layout.format, row, self.objective, self.fmt == "auto")
        self.first = self.first or layout
        add_names(self.renamed, row, layout.columns)
        return layout.conversation(row, origin)

    def _layout(self, row: dict[str, Any]) -> Layout | None:
        if self.fmt != "auto":
            return layout_as(row, self.fmt, self.columns)
        found = find_layout(row, self.columns)
        # Rows with other names may lack some of them, or have more: an `input`, a `system`.
        same = found is not None and (
            found.columns or found.format == getattr(self.first, "format", "")
        )
        return found if self.first is None or same else self.first


def _bad_rows_message(bad: list[BadRow]) -> str:
    shown = "\n  ".join(str(row) for row in bad[:_SHOWN])
    more = f"\n  and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
    count = "1 row" if len(bad) == 1 else f"{len(bad)} rows"
    return (
        f"{count} cannot be used:\n  {shown}{more}\n"
        "fix them, or set data.on_bad_row: skip to train without them"
    )


def _tokenise(
    rows: Sequence[Conversation],
    data: DataGroup,
    encoder: Tokenizer,
    left_out: _LeftOut,
    on_event: OnEvent,
    objective: ObjectiveGroup,
) -> list[TokenRow]:
    kept: list[TokenRow] = []
    bad_before = len(left_out.bad)
    for row, encoded in zip(rows, _encoded(rows, encoder, objective, on_event), strict=True):
        if isinstance(encoded, TemplateRejects):
            left_out.bad.append(BadRow(row.origin, str(encoded)))
            continue
        if objective.together > 1:
            whole, long = fitting(encoded, data.max_length, data.on_too_long == "truncate")
            kept += whole
            left_out.too_long += long
            continue
        for piece in encoded:
            if len(piece) <= data.max_length or row.text is not None:
                kept += cut(piece, data.max_length)
                continue
            left_out.too_long.append(piece)
            if data.on_too_long == "truncate":
                kept += cut(piece, data.max_length)
    if len(left_out.bad) > bad_before and data.on_bad_row == "error":
        raise UserError(_bad_rows_message(left_out.bad))
    return _arranged(kept, data, objective)


def _judge(data: DataGroup, train: list[TokenRow], left_out: _LeftOut) -> None:
    """Stop where the data cannot make a run, or where rows are lost that must not be."""
    too_long = left_out.too_long
    longest = max((len(row) for row in too_long), default=0)
    if too_long and data.on_too_long == "error":
        shown = ", ".join(f"{row.conversation.origin} ({len(row)})" for row in too_long[:_SHOWN])
        raise UserError(
            f"{len(too_long)} rows are longer than data.max_length {data.max_length} tokens: "
            f"{shown}; increase it (the longest has {longest}), or set data.on_too_long"
        )
    if not train:
        why = [
            f"{len(left_out.bad)} cannot be used" if left_out.bad else "",
            f"{len(too_long)} are longer than data.max_length {data.max_length} "
            f"(the longest has {longest} tokens)"
            if too_long
            else "",
            f"{len(left_out.overlap)} are in the validation file too" if left_out.overlap else "",
        ]
        raise UserError("no rows are left to train on: " + "; ".join(filter(None, why)))


def _unique(rows: Sequence[TokenRow]) -> list[Conversation]:
    """The conversations behind token rows; a long text was cut into several."""
    return list({id(row.conversation): row.conversation for row in rows}.values())


def _answers_apart(rows: Sequence[TokenRow]) -> int:
    """Conversations that became several token rows."""
    counts = Counter(id(row.conversation) for row in rows if row.conversation.messages)
    return sum(count > 1 for count in counts.values())


def _count(rows: Sequence[TokenRow]) -> TokenCounts:
    return TokenCounts(
        total=sum(len(row) for row in rows),
        supervised=sum(sum(row.supervised) for row in rows),
        longest=max((len(row) for row in rows), default=0),
    )


def _stored_rows(path: Path, on_event: OnEvent) -> Iterator[Conversation]:
    try:
        with path.open(encoding="utf-8") as file:
            for line in tracked(file, f"reading {path}", on_event):
                yield Conversation.from_row(json.loads(line))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {path}, which the run wrote: {error}") from error
