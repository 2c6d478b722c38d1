"""What a tool does where its configuration says nothing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Default:
    """A setting that is not in the file.

    Attributes:
        name: the tool's.
        value: as a recipe has it.
        there: as the tool has it, where that differs.
    """

    name: str
    value: Any
    there: Any = None


Usual = Mapping[str, Default]  # by key of ours
