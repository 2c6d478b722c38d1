"""Rows of files to conversations, and those that cannot be used."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luthier.data.conversation import Conversation, Origin
from luthier.data.pairs import check_format, judged
from luthier.data.readers import BadRow, Item
from luthier.data.rows import Layout, add_names, find_layout, layout_as, read_as, unknown_layout
from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.recipe import ObjectiveGroup

SHOWN = 5  # examples in a message; the report holds all


@dataclass
class SkippedRows:
    """Skipped rows, by reason."""

    bad: list[BadRow] = field(default_factory=list)
    too_long: list[TokenRow] = field(default_factory=list)
    overlap: Sequence[Conversation] = ()

    def add(self, more: "SkippedRows") -> None:
        """Those of ``more``, too."""
        self.bad += more.bad
        self.too_long += more.too_long
        self.overlap = [*self.overlap, *more.overlap]


class FileReader:
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

    def read(self, item: Item) -> list[Conversation]:
        """What is learned from a row.

        Raises:
            BadRow: it cannot be used.
            UserError: it is of no known format, or of one that the objective cannot learn from.
        """
        if isinstance(item, BadRow):
            raise item
        row = self._conversation(*item)
        return [row] if self.objective is None else judged(row, self.objective)

    @property
    def note(self) -> str | None:
        """What to say of names that were found, and not mapped by the recipe."""
        if not self.renamed or self.columns:
            return None
        return f"{self.file}: reads {read_as(self.renamed)} (data.columns changes that)"

    def _conversation(self, origin: Origin, row: dict[str, Any]) -> Conversation:
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


def bad_rows_message(bad: list[BadRow]) -> str:
    shown = "\n  ".join(str(row) for row in bad[:SHOWN])
    more = f"\n  and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    count = "1 row" if len(bad) == 1 else f"{len(bad)} rows"
    return (
        f"{count} cannot be used:\n  {shown}{more}\n"
        "fix them, or set data.on_bad_row: skip to train without them"
    )
