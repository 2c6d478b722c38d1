"""What the commands that leave no file in a run folder find: results of the door (``luthier.api``)."""

from typing import Any, Literal

from pydantic import ConfigDict

from luthier.records.record import Record


class Finding(Record):
    """One kind of thing that is wrong with rows.

    Attributes:
        examples: a few rows by file and line, each with a detail.
    """

    id: str
    severity: Literal["error", "warning", "info"]
    count: int
    title: str
    remedy: str
    examples: list[dict[str, Any]]


class DataCheck(Record):
    """What the data doctor found, the gravest first; its ``verdict`` is the worst severity."""

    model_config = ConfigDict(extra="allow")

    verdict: Literal["error", "warning", "info", "clean"]
    files: list[dict[str, Any]]
    rows: dict[str, int]
    findings: list[Finding]
    lengths: dict[str, Any]

    @property
    def errors(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.severity == "error"]


class Comparison(Record):
    """Variants of a recipe side by side, as in ``comparison.json``.

    Attributes:
        reference: the variant that the others are tested against.
        variants: quality with intervals, forgetting, memory, time and size of each.
    """

    model_config = ConfigDict(extra="allow")

    kind: str
    model: str
    data: str
    rows: int
    reference: str
    metrics: list[dict[str, Any]]
    variants: list[dict[str, Any]]


class Exported(Record):
    """What an export wrote, and how it answers beside the run."""

    model_config = ConfigDict(extra="allow")

    shape: str
    folder: str
