"""The lines of text files, none of them without end."""

from collections.abc import Iterator
from typing import IO, AnyStr

from luthier.errors import UserError

LONGEST = 64 * 2**20  # of a row; a longer one is not training data


def bounded_lines(file: IO[AnyStr], name: str, first: int = 1) -> Iterator[AnyStr]:
    """The lines of ``file``, which is ``name`` to the user; its next line is number ``first``.

    Raises:
        UserError: a line is longer than ``LONGEST``.
    """
    number = first
    while line := file.readline(LONGEST + 1):
        if len(line) > LONGEST:
            raise UserError(
                f"{name}, line {number}: longer than {LONGEST >> 20} Mi characters, the limit for a row"
            )
        yield line
        number += 1
