"""From the recipe's data group to token rows, with a record of every row."""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from luthier.data.changes import note_changed_sources
from luthier.data.conversation import Conversation
from luthier.data.kept import (
    WORTH_KEEPING,
    KeptReport,
    find_report,
    find_split,
    keep_report,
    keep_split,
    sources_key,
    split_hash,
)
from luthier.data.pairs import fitting
from luthier.data.readers import BadRow, read_rows
from luthier.data.reading import FileReader, SkippedRows, bad_rows_message
from luthier.data.shards import check_free, find_shards, open_same, open_shards, write_shards
from luthier.data.sources import find_files
from luthier.data.split import RunningSample, chosen, sampled, split, split_key, without_overlap
from luthier.data.stored import RowFile, StoredRows, joined
from luthier.data.stream import RowStream, Stream, find_parts, open_stream
from luthier.data.template import TemplateRejects
from luthier.data.token_rows import (
    arranged,
    count_answers_apart,
    count_tokens,
    encoded_rows,
    judge,
    refuse_long,
    to_token_rows,
    unique,
)
from luthier.data.tokens import Tokenizer, TokenRow, cut
from luthier.data.unused import counted
from luthier.errors import UserError
from luthier.events import Event, Note, OnEvent, during, ignore, tracked
from luthier.files import sha256, staged_file, user_path, write_json
from luthier.recipe import DataGroup, ObjectiveGroup, Recipe
from luthier.records.data import (
    DataReport,
    DataSource,
    LeftOut,
    LongRow,
    Replay,
    RowCounts,
    SplitTokens,
    Streamed,
    StreamPlace,
    TokenizedData,
    UnusableRow,
)
from luthier.run import Run

_ANSWERS = ObjectiveGroup()  # what rows are read for where nothing else is said
_PAIRS = ObjectiveGroup(name="dpo")  # how pairs are tokenised, whatever learns from them


@dataclass
class Prepared:
    """Token rows of both sides of the split, and the report about how they came to be.

    Of a ``stream`` ``train`` is the window that the run begins, or goes on, with.
    """

    train: list[TokenRow]
    validation: list[TokenRow]
    report: DataReport
    stream: Stream | None = None


def prepare(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, on_event: OnEvent = ignore
) -> Prepared:
    """Read, split and tokenise the data of a recipe.

    Raises:
        UserError: a file or row is wrong, or nothing is left to train on.
    """
    data, objective = recipe.data, recipe.objective
    encoder = Tokenizer(tokenizer, data.train_on, data.history)
    shards = find_shards(data)
    if data.streaming:
        if shards is not None:
            raise UserError(
                f"{shards} holds tokenised rows, of which a batch reads its own alone: take data.streaming out"
            )
        return _prepare_stream(recipe, encoder, on_event)
    if shards is not None:
        sides, report = open_shards(shards, recipe, encoder, on_event)
        return Prepared(*sides, report)
    files = _find(recipe, on_event)
    hashes = _hashes_worth_keeping(files, on_event)
    if hashes is None:
        return _prepare(recipe, encoder, files, on_event)
    with during("looking for prepared rows in the cache", on_event):
        key = sources_key(recipe, encoder, hashes)
        found = find_report(key)
        both = find_split(found.split) if found is not None else None
    if found is not None and both is not None:
        for note in found.notes:
            on_event(note)
        return Prepared(*both, found.report)
    notes: list[Note] = []

    def listen(event: Event) -> None:
        if isinstance(event, Note):
            notes.append(event)
        on_event(event)

    prepared = _prepare(recipe, encoder, files, listen, hashes)
    with during("keeping the prepared rows in the cache", on_event):
        kept = split_hash(_line_hashes(prepared), data, objective.learns_from, encoder)
        keep_split(kept, prepared.train, prepared.validation)
        keep_report(key, KeptReport(kept, prepared.report, notes))
    return prepared


@dataclass(frozen=True)
class _Files:
    """The files of a recipe's sources."""

    train: list[str]
    validation: list[str]
    replay: list[str]


def _find(recipe: Recipe, on_event: OnEvent) -> _Files:
    data = recipe.data
    held_out = [data.validation] if data.validation is not None else []
    general = [data.replay.source] if data.replay is not None else []
    return _Files(
        *(
            [file for source in sources for file in find_files(source, on_event)]
            for sources in (recipe.train_files, held_out, general)
        )
    )


def _hashes_worth_keeping(files: _Files, on_event: OnEvent) -> dict[str, str] | None:
    """SHA-256 of each file; None where they are prepared sooner than looked up."""
    names = dict.fromkeys([*files.train, *files.validation, *files.replay])
    try:
        if sum(user_path(name).stat().st_size for name in names) < WORTH_KEEPING:
            return None
        return {name: _hash(name, on_event) for name in names}
    except OSError:
        return None  # reading it says what is wrong


def _hash(file: str, on_event: OnEvent) -> str:
    with during(f"hashing {file}", on_event):
        return sha256(user_path(file))


def tokenize_into(
    folder: Path,
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    shards: int | None = None,
    on_event: OnEvent = ignore,
) -> TokenizedData:
    """Prepare the rows of a recipe and write them to ``folder``, for many runs and machines.

    Args:
        shards: of each side of the split; None is one for each 500 MiB of tokens.

    Raises:
        UserError: as ``prepare`` and ``write_shards``.
    """
    if find_shards(recipe.data) is not None:
        raise UserError(f"data.train {recipe.data.train} holds tokenised rows already")
    if recipe.data.streaming:
        raise UserError(
            "data.streaming keeps no rows, and tokenising once is to keep them: take it out"
        )
    check_free(folder)
    prepared = prepare(recipe, tokenizer, on_event)
    report = prepared.report.model_copy(update={"split_sha256": _line_hashes(prepared)})
    encoder = Tokenizer(tokenizer, recipe.data.train_on, recipe.data.history)
    sides = prepared.train, prepared.validation
    return write_shards(folder, recipe, encoder, sides, report, shards, on_event)


def _line_hashes(prepared: Prepared) -> dict[str, str]:
    """What ``store`` will find the hashes of its files to be."""
    found = {}
    for name, rows in (("train", prepared.train), ("validation", prepared.validation)):
        digest = hashlib.sha256()
        for row in unique(rows):
            digest.update(row.line)
        found[f"{name}.jsonl"] = digest.hexdigest()
    return found


def _prepare(
    recipe: Recipe,
    encoder: Tokenizer,
    files: _Files,
    on_event: OnEvent,
    hashes: Mapping[str, str] | None = None,
) -> Prepared:
    """``hashes`` of the files, where they are known: the caller keeps what is prepared."""
    data, objective = recipe.data, recipe.objective
    left_out = SkippedRows()
    file = RowFile(split_key)
    sample = None if data.max_rows is None else RunningSample(data.max_rows, recipe.train.seed)
    train, sources = _read(
        files.train, data, left_out, on_event, file, objective, hashes, sample=sample
    )
    read = len(train) if sample is None else sample.seen
    if data.validation is not None:
        validation, more = _read(
            files.validation, data, left_out, on_event, file, objective, hashes
        )
        sources += more
        with during("looking for training rows in the validation file", on_event):
            train, left_out.overlap = without_overlap(train, validation)
    else:
        with during("splitting off validation rows", on_event):
            train, validation = split(train, data.validation_fraction, recipe.train.seed)
    replay: Replay | None = None
    if data.replay is not None:
        general, more = _read(
            files.replay, data, left_out, on_event, file, _ANSWERS, hashes, detect=True
        )
        sources += more
        general, _ = without_overlap(general, validation)
        wanted = round(len(train) * data.replay.share / (1 - data.replay.share))
        added = chosen(general, sampled(len(general), wanted, recipe.train.seed))
        replay = Replay(wanted=wanted, added=len(added), available=len(general))
        train = joined(train, added)
    keep = hashes is None
    train_rows = to_token_rows(train, data, encoder, left_out, on_event, objective, keep=keep)
    validation_rows = to_token_rows(
        validation, data, encoder, left_out, on_event, objective, keep=keep
    )
    judge(data, train_rows, left_out)
    report = _report(recipe, sources, read, (train_rows, validation_rows), left_out, replay)
    return Prepared(train_rows, validation_rows, report)


def _prepare_stream(recipe: Recipe, encoder: Tokenizer, on_event: OnEvent) -> Prepared:
    data, objective = recipe.data, recipe.objective
    skipped, sources = SkippedRows(), list[DataSource]()
    file = RowFile(split_key)
    parts = find_parts(recipe.train_files, on_event)
    head = 0
    if data.validation is not None:
        files = find_files(data.validation, on_event)
        held_out, sources = _read(files, data, skipped, on_event, file, objective)
    else:
        head = data.validation_rows or 0
        for row in RowStream(recipe, encoder, parts).first_rows(head, skipped):
            file.append(row)
        held_out = StoredRows(file, range(len(file)))
    validation = to_token_rows(held_out, data, encoder, skipped, on_event, objective, keep=True)
    if head and not validation:
        raise UserError(
            f"none of the first {head:,} rows of data.train, which data.validation_rows holds out, can be "
            f"used: {_why(skipped)}; set data.validation, or data.validation_rows=0 to hold out none"
        )
    keys = frozenset(file.key(place) for place in range(len(file)))
    stream = open_stream(RowStream(recipe, encoder, parts, head, keys), None, on_event)
    first = stream.first
    for note in first.notes:
        on_event(note)
    skipped.add(first.skipped)
    if skipped.bad and data.on_bad_row == "error":
        raise UserError(bad_rows_message(skipped.bad))
    refuse_long(data, skipped.too_long)
    read = first.place.read
    sides = first.rows, validation
    sources = [*first.formats.values(), *sources]
    report = _report(recipe, sources, read.rows, sides, skipped, streamed=read)
    # Of those that are not stored, so that a resumed run holds out the same rows.
    lost = keys - {split_key(row.conversation) for row in unique(validation)}
    report = report.model_copy(update={"keys_held_out": sorted(lost) or None})
    return Prepared(*sides, report, stream)


def _why(skipped: SkippedRows) -> str:
    """One reason why rows cannot be used, of those there are."""
    if skipped.bad:
        return str(skipped.bad[0])
    if skipped.too_long:
        return f"{skipped.too_long[0].origin} is longer than data.max_length"
    return "there are none"


def _report(
    recipe: Recipe,
    sources: list[DataSource],
    read: int,
    both: tuple[list[TokenRow], list[TokenRow]],
    left_out: SkippedRows,
    replay: Replay | None = None,
    streamed: Streamed | None = None,
) -> DataReport:
    objective = recipe.objective
    train_rows, validation_rows = both
    return DataReport(
        sources=sources,
        rows=RowCounts(
            read=read,
            train=sum(1 for _ in unique(train_rows)),
            validation=sum(1 for _ in unique(validation_rows)),
        ),
        replay=replay,
        tokens=SplitTokens(
            train=count_tokens(train_rows), validation=count_tokens(validation_rows)
        ),
        left_out=LeftOut(
            bad=[UnusableRow(row=str(bad.origin), why=bad.reason) for bad in left_out.bad],
            too_long=[LongRow(row=str(row.origin), tokens=len(row)) for row in left_out.too_long],
            also_in_validation=[str(row.origin) for row in left_out.overlap],
        ),
        unused_fields=[
            unused
            for unused in counted(
                Counter(
                    row.unused for rows in (train_rows, validation_rows) for row in unique(rows)
                )
            )
            if not (objective.learns_from == "labels" and unused.field == "label")
        ]
        or None,
        answers_apart=(objective.together == 1 and count_answers_apart(train_rows)) or None,
        streamed=streamed,
    )


def store(prepared: Prepared, run: Run) -> None:
    """Keep the split and the report in the run folder, the report last.

    Of a stream only the rows that are held out are kept.
    """
    sides = {run.train_path: prepared.train, run.validation_path: prepared.validation}
    if prepared.stream is not None:
        del sides[run.train_path]
        run.train_path.unlink(missing_ok=True)
    for path, rows in sides.items():
        with staged_file(path) as out:
            out.writelines(row.line for row in unique(rows))
    hashes = {path.name: sha256(path) for path in sides}
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
    report = _stored_report(run, on_event)
    note_changed_sources(data, run, on_event)
    encoder = Tokenizer(tokenizer, data.train_on, data.history)
    shards = find_shards(data)
    same = open_same(shards, report, data, encoder, on_event) if shards is not None else None
    if same is not None:
        return Prepared(*same, report)
    paths = (run.train_path, run.validation_path)
    worth = sum(path.stat().st_size for path in paths) >= WORTH_KEEPING
    if worth:
        with during("looking for prepared rows in the cache", on_event):
            hashes = report.split_sha256 or {}
            key = split_hash(hashes, data, objective.learns_from, encoder)
            both = find_split(key)
        if both is not None:
            return Prepared(*both, report)
    train, validation = (
        tokenise(
            _stored_rows(path, on_event),
            data,
            encoder,
            on_event,
            objective,
            keep=not worth,
            skips=data.on_too_long == "skip",
        )
        for path in paths
    )
    if worth:
        with during("keeping the prepared rows in the cache", on_event):
            keep_split(key, train, validation)
    return Prepared(train, validation, report)


def load_streamed(
    recipe: Recipe,
    tokenizer: PreTrainedTokenizerBase,
    run: Run,
    place: StreamPlace,
    on_event: OnEvent = ignore,
) -> Prepared:
    """What ``store`` kept of a stream, which goes on at ``place``.

    Raises:
        UserError: what was kept was edited or is gone, or the rows at ``place`` are others now.
    """
    data = recipe.data
    report = _stored_report(run, on_event)
    encoder = Tokenizer(tokenizer, data.train_on, data.history)
    rows = _stored_rows(run.validation_path, on_event)
    skips = data.on_too_long == "skip"
    validation = tokenise(rows, data, encoder, on_event, recipe.objective, skips=skips)
    parts = find_parts(recipe.train_files, on_event)
    head = 0 if data.validation is not None else data.validation_rows or 0
    with during("reading up to where the run was", on_event):
        keys = frozenset([*rows.keys(), *(report.keys_held_out or ())])
        stream = open_stream(RowStream(recipe, encoder, parts, head, keys), place, on_event)
    for note in [*stream.first.notes, *(stream.first.lost if place.used == 0 else ())]:
        on_event(note)
    return Prepared(stream.first.rows, validation, report.after(place.read), stream)


def _stored_report(run: Run, on_event: OnEvent) -> DataReport:
    """The report, once it is seen that the rows are as ``store`` left them."""
    report = run.data_report()
    with during("checking the run's data", on_event):
        whole = report is not None and _as_stored(report, run)
    if report is None or not whole:
        raise UserError(
            f"{run.train_path.parent} has changed since this run wrote it, so the run cannot be "
            "resumed exactly; choose another run.name to start over"
        )
    return report


def _as_stored(report: DataReport, run: Run) -> bool:
    hashes = report.split_sha256 or {}
    paths = [run.validation_path] if report.streamed else [run.train_path, run.validation_path]
    try:
        return all(sha256(path) == hashes.get(path.name) for path in paths)
    except OSError:
        return False


def held_out(run: Run, on_event: OnEvent = ignore) -> Sequence[Conversation]:
    """The run's validation rows, as conversations that are read where they are asked for.

    Raises:
        UserError: they are gone or damaged.
    """
    return _stored_rows(run.validation_path, on_event)


def trained_on(run: Run, on_event: OnEvent = ignore) -> Sequence[Conversation]:
    """The run's training rows, likewise; none of a run that streamed them, which is said.

    Raises:
        UserError: as ``held_out``.
    """
    report = run.data_report()
    if report is not None and report.streamed is not None:
        on_event(
            Note(
                f"{run} streamed its training rows and kept none of them, so what is compared with them is "
                "off: rows that were trained on are not found here"
            )
        )
        return []
    return _stored_rows(run.train_path, on_event)


def read_for_evaluation(
    file: str,
    data: DataGroup,
    on_event: OnEvent = ignore,
) -> Sequence[Conversation]:
    """The rows of one more file, pairs among them, by the recipe's rules for bad rows.

    Raises:
        UserError: the file or a row is wrong.
    """
    files = find_files(file, on_event)
    return _read(files, data, SkippedRows(), on_event, RowFile(split_key), None)[0]


def tokenise(
    rows: Sequence[Conversation],
    data: DataGroup,
    encoder: Tokenizer,
    on_event: OnEvent = ignore,
    objective: ObjectiveGroup = _ANSWERS,
    *,
    keep: bool = True,
    skips: bool = False,
) -> list[TokenRow]:
    """Token rows of conversations that were prepared before, cut as they were then.

    Args:
        keep: they may come from the cache, and are kept there.
        skips: a conversation may be here for one answer that fits; its longer ones are skipped again.
    """
    encoded = encoded_rows(rows, encoder, objective, on_event, keep=keep)
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
        return arranged(kept, data, objective)
    return [
        piece
        for rows in encoded
        if not isinstance(rows, TemplateRejects)
        for row in rows
        if not (skips and row.spoken and len(row) > data.max_length)
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


def _read(
    files: Sequence[str],
    data: DataGroup,
    left_out: SkippedRows,
    on_event: OnEvent,
    rows: RowFile,
    objective: ObjectiveGroup | None = _ANSWERS,
    hashes: Mapping[str, str] | None = None,
    *,
    detect: bool = False,
    sample: RunningSample | None = None,
) -> tuple[Sequence[Conversation], list[DataSource]]:
    """What is added to ``rows``, and where it came from.

    Args:
        objective: that they must be for; None takes them as they are.
        detect: tell the format whatever ``data.format`` says.
        sample: which of the rows are wanted; most others are not written anywhere.
    """
    places = array("q")  # of the rows by their numbers, as far as they are in the file
    numbers = array("q")
    count = 0
    read = []
    fmt = "auto" if detect else data.format
    columns = None if detect else data.columns
    for file in files:
        before = count
        reader = FileReader(file, fmt, columns, objective)
        for item in read_rows(file, on_event):
            try:
                for each in reader.read(item):
                    if sample is None or sample.takes():
                        places.append(len(rows))
                        numbers.append(count)
                        rows.append(each)
                    count += 1
            except BadRow as bad:
                # Its traceback holds the row, and all that was read with it.
                left_out.bad.append(bad.with_traceback(None))
        if reader.note:
            on_event(Note(reader.note))
        read.append(
            DataSource(
                file=file,
                format=reader.first.kind if reader.first is not None else "unknown",
                sha256=(hashes or {}).get(file) or _hash(file, on_event),
                rows=count - before,
                columns=reader.renamed or None,
            )
        )
    if left_out.bad and (data.on_bad_row == "error" or not count):
        raise UserError(bad_rows_message(left_out.bad))
    found = np.array(places, np.int64)
    if sample is not None:
        found = found[np.searchsorted(numbers, sample.indices)]
    return StoredRows(rows, found), read


def _stored_rows(path: Path, on_event: OnEvent) -> StoredRows:
    """The rows that a run wrote to ``path``, which stay there."""
    try:
        with path.open("rb") as lines:
            file = RowFile(split_key, path.open("rb"))
            for line in tracked(lines, f"reading {path}", on_event):
                file.add_known(Conversation.from_row(json.loads(line)), len(line))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"cannot read {path}, which the run wrote: {error}") from error
    return StoredRows(file, range(len(file)))
