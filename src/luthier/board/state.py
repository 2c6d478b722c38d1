"""What the pages share while the board is up."""

from dataclasses import dataclass, field

from luthier.board.folders import Folders
from luthier.board.index import Index
from luthier.board.models import Shelf


@dataclass
class Board:
    """One board.

    Attributes:
        drafts: recipes on their way to the page of a new run, as YAML.
    """

    folders: Folders
    index: Index = field(init=False)
    shelf: Shelf = field(default_factory=Shelf)
    drafts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.index = Index(self.folders)

    def draft(self, text: str) -> str:
        """Keep a recipe, and give the address of the page that shows it."""
        self.drafts.append(text)
        return f"/new?draft={len(self.drafts) - 1}"
