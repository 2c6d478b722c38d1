"""Documents cut into passages that overlap, each with its place."""

import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from luthier.retrieve.documents import Document

# Where a passage had better end, the best first: before a heading, between paragraphs, between
# sentences, between lines, between words.
_BOUNDARIES = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (r"^(?=#{1,6} )", r"\n[ \t]*\n", r"(?<=[.!?])\s+", r"\n", r"\s+")
)
_HEADING = re.compile(r"^#{1,6} +(.*?) *#* *$", re.MULTILINE)


@dataclass(frozen=True)
class Passage:
    """A piece of a document, from ``first_line`` to ``last_line`` of its file.

    ``title`` is the heading it stands under; both are searched.
    """

    file: str
    first_line: int
    last_line: int
    title: str
    text: str

    @property
    def place(self) -> str:
        """As editors and people read it: ``guide.md:12-20``."""
        lines = f"{self.first_line}"
        if self.last_line != self.first_line:
            lines += f"-{self.last_line}"
        return f"{self.file}:{lines}"


def cut_passages(document: Document, tokenizer: Any, size: int, overlap: int) -> Iterator[Passage]:
    """Passages of at most ``size`` tokens; each begins about ``overlap`` tokens before the last ended.

    A passage ends at the best boundary in its second half, and no passage crosses a heading that
    stands there. Every character but white space is in some passage.

    Args:
        tokenizer: a fast one, which tells the characters of each token.
    """
    text = document.text
    offsets = tokenizer(
        text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False
    )["offset_mapping"]
    line_starts = [0, *(match.end() for match in re.finditer("\n", text))]
    headings = [(match.start(), match[1]) for match in _HEADING.finditer(text)]
    first = 0
    while first < len(offsets):
        last = min(first + size, len(offsets))
        start, end = offsets[first][0], offsets[last - 1][1]
        if last < len(offsets):
            end = _boundary(text, offsets[first + size // 2][0], end)
            last = first + sum(offset[1] <= end for offset in offsets[first:last])
        piece = text[start:end]
        body = piece.strip()
        if body:
            begin = start + len(piece) - len(piece.lstrip())
            yield Passage(
                document.file,
                *_lines(document, line_starts, begin, begin + len(body)),
                document.title or _heading_of(headings, begin, body),
                body,
            )
        if last >= len(offsets):
            return
        first = max(first + 1, _overlapping(text, offsets, first, last, end, overlap))


def _boundary(text: str, least: int, most: int) -> int:
    """The best place to end in ``(least, most]``; ``most`` itself where there is none."""
    for pattern in _BOUNDARIES:
        ends = [match.end() for match in pattern.finditer(text, least + 1, most)]
        if ends:
            return ends[-1]
    return most


def _overlapping(
    text: str, offsets: list[tuple[int, int]], first: int, last: int, end: int, overlap: int
) -> int:
    """The token to go on from: the start of a sentence, else a word, among the last ``overlap``.

    After a heading's boundary nothing is repeated: what stood above has another subject.
    """
    if text.startswith("#", end) or not overlap:
        return last
    earliest = max(first + 1, last - overlap)
    for pattern in _BOUNDARIES[2:]:
        starts = [match.end() for match in pattern.finditer(text, offsets[earliest][0], end)]
        inside = [start for start in starts if start < end]
        if inside:
            return next(i for i in range(earliest, last) if offsets[i][1] > inside[0])
    return last


def _lines(document: Document, starts: list[int], begin: int, end: int) -> tuple[int, int]:
    if document.is_row:
        return document.line, document.line
    return bisect_right(starts, begin), bisect_right(starts, end - 1)


def _heading_of(headings: list[tuple[int, str]], begin: int, body: str) -> str:
    """The heading over the passage, unless the passage shows it itself."""
    at = bisect_right(headings, begin, key=lambda heading: heading[0])
    return headings[at - 1][1] if at and not body.startswith("#") else ""
