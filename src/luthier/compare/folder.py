"""The folder of a comparison: its names."""

from dataclasses import dataclass
from pathlib import Path

from luthier.run import WorkFolder


@dataclass(frozen=True)
class ComparisonFolder(WorkFolder):
    """A comparison at ``root``: of variants, which are runs in it, or of approaches."""

    @property
    def record_path(self) -> Path:
        return self.root / "comparison.json"

    @property
    def page_path(self) -> Path:
        return self.root / "comparison.html"

    @property
    def document_path(self) -> Path:
        return self.root / "comparison.md"

    @property
    def runs_path(self) -> Path:
        """The runs of the variants."""
        return self.root / "runs"

    @property
    def answers_path(self) -> Path:
        """What approaches answered so far, with what each answer took."""
        return self.root / "answers.jsonl"
