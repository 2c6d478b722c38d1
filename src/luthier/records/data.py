"""What became of each row of the data: ``data/data-report.json``."""

from typing import Any

from luthier.records.record import Record


class DataSource(Record):
    """One file as it was read.

    Attributes:
        sha256, rows: None where it is streamed: nobody has read all of it.
        columns: fields of its format that its rows have under other names, and those names.
    """

    file: str
    format: str
    sha256: str | None = None
    rows: int | None = None
    columns: dict[str, str] | None = None


class RowCounts(Record):
    """Rows read from ``data.train``, and rows on each side of the split."""

    read: int
    train: int
    validation: int


class Replay(Record):
    """General examples among the training rows (``data.replay``)."""

    wanted: int
    added: int
    available: int


class TokenCounts(Record):
    """Tokens of one side of the split; ``longest`` is that of its longest row."""

    total: int
    supervised: int
    longest: int


class SplitTokens(Record):
    """Tokens of both sides of the split."""

    train: TokenCounts
    validation: TokenCounts


class UnusableRow(Record):
    """A row that cannot be used: its file and line, and the reason."""

    row: str
    why: str


class LongRow(Record):
    """A row longer than ``data.max_length``, by its file and line."""

    row: str
    tokens: int


class LeftOut(Record):
    """Rows that are skipped or truncated, by reason."""

    bad: list[UnusableRow]
    too_long: list[LongRow]
    also_in_validation: list[str]


class UnusedField(Record):
    """A field of rows that nothing used.

    Attributes:
        field: its name, and whose turns have it where it is a field of turns.
        may_be_content: its name sounds like what a model should see, or like what it should learn.
    """

    field: str
    rows: int
    may_be_content: bool


class Streamed(Record):
    """What was read of a stream (``data.streaming``), all passes together.

    Attributes:
        rows: of the sources.
        passes: over all of them, complete ones.
        kept: rows that became token rows to train on.
        tokens, supervised, longest: of those token rows, as in ``TokenCounts``.
        bad, too_long, also_in_validation: rows as in ``LeftOut``, how many.
        up_to: the last row that was read, by its file and line.
    """

    rows: int = 0
    passes: int = 0
    kept: int = 0
    tokens: int = 0
    supervised: int = 0
    longest: int = 0
    bad: int = 0
    too_long: int = 0
    also_in_validation: int = 0
    up_to: str = ""


class StreamPlace(Record):
    """A place in a stream, from which it can go on.

    Attributes:
        window: number of the window, of all passes.
        row: rows of this pass before the window.
        used: items of the window, in their shuffled order, that were trained on.
        digest: hash of the window's tokens; empty where it was not made yet.
        before: what was read before the window.
        read: the same with the window.
    """

    window: int = 0
    row: int = 0
    used: int = 0
    digest: str = ""
    before: Streamed = Streamed()
    read: Streamed = Streamed()


class DataReport(Record):
    """How the rows of a run came to be: ``data/data-report.json``.

    Attributes:
        left_out: of a stream, rows of the window that the run began with; ``streamed`` counts all.
        keys_held_out: of a stream, hashes of the prompts of validation rows that were skipped.
        streamed: of a stream, up to the last checkpoint; ``rows`` and ``tokens`` are so, too.
        answers_apart: conversations of which each answer is a row of its own (``data.history``).
        split_sha256: hash of ``train.jsonl`` and ``validation.jsonl`` by name, once they are stored.
    """

    sources: list[DataSource]
    rows: RowCounts
    replay: Replay | None
    tokens: SplitTokens
    left_out: LeftOut
    unused_fields: list[UnusedField] | None = None
    answers_apart: int | None = None
    split_sha256: dict[str, str] | None = None
    keys_held_out: list[str] | None = None
    streamed: Streamed | None = None

    def after(self, streamed: Streamed) -> "DataReport":
        """The same once so much of the stream was read."""
        tokens = TokenCounts(
            total=streamed.tokens, supervised=streamed.supervised, longest=streamed.longest
        )
        rows = {"read": streamed.rows, "train": streamed.kept}
        return self.model_copy(
            update={
                "rows": self.rows.model_copy(update=rows),
                "tokens": self.tokens.model_copy(update={"train": tokens}),
                "streamed": streamed,
            }
        )


class Shard(Record):
    """A part of the token rows of one side of a split, in three files.

    Attributes:
        rows: conversations in it.
        sha256: hash of each file, by its name.
    """

    name: str
    rows: int
    token_rows: int
    tokens: int
    sha256: dict[str, str]


class TokenizedData(Record):
    """Rows that were tokenised for many runs: ``tokenized.json`` beside their shards.

    Attributes:
        version: of the layout of the folder.
        model: whose tokenizer it was, as the recipe names it.
        tokenizer: SHA-256 of its vocabulary, merges, rules and special tokens.
        template: SHA-256 of the chat template.
        versions: of the packages that rendered and tokenised.
        settings: by key, what of the recipe decides which rows there are, and how they are cut.
        report: as a run's data report.
        train, validation: shards, in order.
    """

    version: int
    model: str
    tokenizer: str
    template: str
    versions: dict[str, str]
    settings: dict[str, Any]
    report: DataReport
    train: list[Shard]
    validation: list[Shard]
