"""Conversations to the token rows that a run trains on, by the recipe's rules for their lengths."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby

from luthier.data.blocks import in_blocks
from luthier.data.conversation import Conversation
from luthier.data.pairs import fitting, sides, together, with_mismatched
from luthier.data.readers import BadRow
from luthier.data.reading import SHOWN, SkippedRows, bad_rows_message
from luthier.data.split import split_key
from luthier.data.stored import RowFile, StoredRows
from luthier.data.template import TemplateRejects
from luthier.data.token_cache import encode_all
from luthier.data.tokens import Encoded, Tokenizer, TokenRow, cut
from luthier.errors import UserError
from luthier.events import OnEvent
from luthier.recipe import DataGroup, ObjectiveGroup
from luthier.records.data import TokenCounts


def to_token_rows(
    rows: Sequence[Conversation],
    data: DataGroup,
    encoder: Tokenizer,
    skipped: SkippedRows,
    on_event: OnEvent,
    objective: ObjectiveGroup,
    *,
    keep: bool,
) -> list[TokenRow]:
    """Token rows of new conversations; those that are skipped or shortened go to ``skipped``.

    Args:
        keep: they may come from the cache, and are kept there.

    Raises:
        UserError: the chat template refuses one, and ``data.on_bad_row`` is error.
    """
    kept: list[TokenRow] = []
    bad_before = len(skipped.bad)
    for index, encoded in enumerate(encoded_rows(rows, encoder, objective, on_event, keep=keep)):
        if isinstance(encoded, TemplateRejects):
            skipped.bad.append(BadRow(rows[index].origin, str(encoded)))
            continue
        if objective.together > 1:
            whole, long = fitting(encoded, data.max_length, data.on_too_long == "truncate")
            kept += whole
            skipped.too_long += long
            continue
        for piece in encoded:
            if len(piece) <= data.max_length or not piece.spoken:
                kept += cut(piece, data.max_length)
                continue
            skipped.too_long.append(piece)
            if data.on_too_long == "truncate":
                kept += cut(piece, data.max_length)
    if len(skipped.bad) > bad_before and data.on_bad_row == "error":
        raise UserError(bad_rows_message(skipped.bad))
    return arranged(kept, data, objective)


def judge(data: DataGroup, train: list[TokenRow], skipped: SkippedRows) -> None:
    """Stop where the data cannot make a run, or where rows are lost that must not be."""
    too_long = skipped.too_long
    refuse_long(data, too_long)
    if not train:
        longest = max((len(row) for row in too_long), default=0)
        why = [
            f"{len(skipped.bad)} cannot be used" if skipped.bad else "",
            f"{len(too_long)} are longer than data.max_length {data.max_length} "
            f"(the longest has {longest} tokens)"
            if too_long
            else "",
            f"{len(skipped.overlap)} are in the validation file too" if skipped.overlap else "",
        ]
        raise UserError("no rows are left to train on: " + "; ".join(filter(None, why)))


def refuse_long(data: DataGroup, too_long: Sequence[TokenRow]) -> None:
    """Raise ``UserError`` where ``data.on_too_long`` allows none of ``too_long``."""
    if too_long and data.on_too_long == "error":
        longest = max(len(row) for row in too_long)
        shown = ", ".join(f"{row.origin} ({len(row)})" for row in too_long[:SHOWN])
        raise UserError(
            f"{len(too_long)} rows are longer than data.max_length {data.max_length} tokens: "
            f"{shown}; increase it (the longest has {longest}), or set data.on_too_long"
        )


def encoded_rows(
    rows: Sequence[Conversation],
    encoder: Tokenizer,
    objective: ObjectiveGroup,
    on_event: OnEvent,
    *,
    keep: bool,
) -> list[Encoded]:
    """The token rows of each row; of a pair those of its sides."""
    if objective.together == 1:
        return encode_all(encoder, rows, on_event, keep=keep)
    apart = _on_disk(side for row in rows for side in sides(row))
    return list(together(rows, iter(encode_all(encoder, apart, on_event, keep=keep))))


def arranged(rows: list[TokenRow], data: DataGroup, objective: ObjectiveGroup) -> list[TokenRow]:
    return with_mismatched(rows, data.max_length) if objective.learns_from == "labels" else rows


def unique(rows: Sequence[TokenRow]) -> Iterator[TokenRow]:
    """The first token row of each conversation; a long text was cut into several."""
    return (next(same) for _, same in groupby(rows, lambda row: row.source))


def count_answers_apart(rows: Sequence[TokenRow]) -> int:
    """Conversations that became several token rows."""
    counts = Counter(row.source for row in rows if row.spoken)
    return sum(count > 1 for count in counts.values())


def count_tokens(rows: Sequence[TokenRow]) -> TokenCounts:
    """All tokens of ``rows``, those that are trained on, and the length of the longest."""
    return TokenCounts(
        total=sum(len(row) for row in rows),
        supervised=sum(int(block.mask.sum()) for block in in_blocks(rows)),
        longest=max((len(row) for row in rows), default=0),
    )


def _on_disk(rows: Iterable[Conversation]) -> StoredRows:
    file = RowFile(split_key)
    for row in rows:
        file.append(row)
    return StoredRows(file, range(len(file)))
