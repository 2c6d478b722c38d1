"""All rows of all files through ``examine``, on every core, in memory that does not hold them."""

import os
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from luthier.data.check.duplicates import PERMUTATIONS, U32, signatures
from luthier.data.check.row import Model, RowFacts, examine
from luthier.data.conversation import Origin
from luthier.data.readers import BadRow, read_rows
from luthier.data.template import pin_template
from luthier.data.tokens import Tokenizer
from luthier.events import OnEvent, ignore, tracked

ROLES = ("train", "validation", "evaluation")
_CHUNK = 1000  # rows handed to a worker at once
_WORTH_WORKERS = 4000  # fewer rows take less time than starting processes
_EXAMPLES = 10  # kept of each kind of finding
_SAMPLE = 2000  # answers kept for telling languages
_MOST_LABELS = 10_000  # more different short answers than this are not labels

Raw = tuple[Origin, dict[str, Any] | str]

_COLUMNS: dict[str, type] = {
    "role": np.uint8,
    "file": np.uint32,
    "line": np.uint64,
    "usable": np.bool_,
    "prompt_key": np.uint64,
    "exact_key": np.uint64,
    "answer_key": np.uint64,
    "prompt_length": np.uint32,
    "answer_length": np.uint32,
    "form": np.uint8,
    "system": np.uint64,
    "short": np.bool_,
    "judged": np.uint8,
    "longer": np.int8,
}


@dataclass(frozen=True)
class TokenizerChoice:
    """Which tokenizer measures rows; given to workers, which load their own."""

    folder: Path
    template: str
    max_length: int
    trust_remote_code: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def load(self) -> Model:
        from luthier.models.load import load_tokenizer  # brings torch: for those who need it

        tokenizer = load_tokenizer(self.folder, self.trust_remote_code)
        pin_template(tokenizer, self.template, self.template_kwargs)
        return Model(Tokenizer(tokenizer, "completions"), self.max_length)


@dataclass(frozen=True)
class Example:
    """One row that shows a finding."""

    row: str
    detail: str


@dataclass
class Scan:
    """What is known of the rows after one pass.

    Attributes:
        files: names as the user gave them; ``columns["file"]`` points into it.
        columns: one array per fact, with an entry per row (unreadable ones included).
        signature: MinHash signatures (rows, PERMUTATIONS).
        hits: how often each kind of finding was met.
        examples: the first rows of each kind.
        formats: rows of each format by file.
        renamed: by file, fields of formats that its rows have under other names, and those names.
        labels: how often each short answer occurs; None when they are too many to be labels.
        samples: (row, start of its answer) of the first training rows.
        label_set: the labels and their numbers, where the answers turn out to be some.
    """

    files: list[str] = field(default_factory=list)
    columns: dict[str, NDArray[Any]] = field(default_factory=dict)
    signature: U32 = field(default_factory=lambda: np.zeros((0, PERMUTATIONS), np.uint32))
    hits: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[Example]] = field(default_factory=lambda: defaultdict(list))
    formats: dict[str, Counter[str]] = field(default_factory=dict)
    renamed: dict[str, dict[str, str]] = field(default_factory=dict)
    labels: Counter[str] | None = field(default_factory=Counter)
    samples: list[tuple[str, str]] = field(default_factory=list)
    label_set: dict[str, int] = field(default_factory=dict)

    def place(self, position: int) -> str:
        """``file:line`` of a row."""
        return f"{self.files[self.columns['file'][position]]}:{self.columns['line'][position]}"

    def hit(self, kind: str, example: Example) -> None:
        self.hits[kind] += 1
        if len(self.examples[kind]) < _EXAMPLES:
            self.examples[kind].append(example)


def scan(
    files: Sequence[tuple[str, str]],
    tokenizer: TokenizerChoice | None,
    on_event: OnEvent = ignore,
    columns: Mapping[str, str] | None = None,
) -> Scan:
    """Read and examine ``files``, pairs of a role of ``ROLES`` and a path.

    ``columns`` are as in a recipe.

    Raises:
        UserError: a file cannot be read at all, or the model's tokenizer cannot.
    """
    found = Scan()
    chunks: list[dict[str, NDArray[Any]]] = []
    prints: list[U32] = []
    examined = _examined(files, tokenizer, columns)
    for role, facts, signature in tracked(
        examined, "examining rows", on_event, size=lambda chunk: len(chunk[1])
    ):
        chunks.append(_take(found, role, facts))
        prints.append(signature)
    found.columns = {
        name: np.concatenate([chunk[name] for chunk in chunks]) for name in _COLUMNS if chunks
    }
    found.signature = np.concatenate(prints)
    return found


def _examined(
    files: Sequence[tuple[str, str]],
    tokenizer: TokenizerChoice | None,
    columns: Mapping[str, str] | None,
) -> Iterator[tuple[int, list[RowFacts], U32]]:
    """Chunks in order, few of them in flight, so that memory stays bounded."""
    work = _chunks(files)
    first: list[tuple[int, list[Raw]]] = []
    while sum(len(rows) for _, rows in first) < _WORTH_WORKERS and (chunk := next(work, None)):
        first.append(chunk)
    if sum(len(rows) for _, rows in first) < _WORTH_WORKERS:
        model = tokenizer.load() if tokenizer is not None else None
        for role, rows in first:
            yield role, *_examine_chunk(rows, model, columns)
        return
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=_start_worker, initargs=(tokenizer, columns)
    ) as pool:
        waiting: deque[tuple[int, Future[tuple[list[RowFacts], U32]]]] = deque()
        try:
            for role, rows in chain(first, work):
                waiting.append((role, pool.submit(_work, rows)))
                if len(waiting) > 3 * (workers or 1):
                    role_done, future = waiting.popleft()
                    yield role_done, *future.result()
            while waiting:
                role_done, future = waiting.popleft()
                yield role_done, *future.result()
        finally:
            pool.shutdown(cancel_futures=True)


def _chunks(files: Sequence[tuple[str, str]]) -> Iterator[tuple[int, list[Raw]]]:
    for role, file in files:
        rows = (_raw(item) for item in read_rows(file))
        while chunk := list(islice(rows, _CHUNK)):
            yield ROLES.index(role), chunk


def _raw(item: tuple[Origin, dict[str, Any]] | BadRow) -> Raw:
    return (item.origin, item.reason) if isinstance(item, BadRow) else item


# Of this worker process.
_model: Model | None = None
_columns: Mapping[str, str] | None = None


def _start_worker(tokenizer: TokenizerChoice | None, columns: Mapping[str, str] | None) -> None:
    global _model, _columns
    _columns = columns
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    _model = tokenizer.load() if tokenizer is not None else None


def _work(rows: list[Raw]) -> tuple[list[RowFacts], U32]:
    return _examine_chunk(rows, _model, _columns)


def _examine_chunk(
    rows: Iterable[Raw], model: Model | None, columns: Mapping[str, str] | None
) -> tuple[list[RowFacts], U32]:
    facts = [examine(origin, row, model, columns) for origin, row in rows]
    signature = signatures([fact.shingles for fact in facts])
    for fact in facts:
        fact.shingles = []  # the signature replaces them from here on
    return facts, signature


def _take(found: Scan, role: int, facts: list[RowFacts]) -> dict[str, NDArray[Any]]:
    """Count what a chunk found, and return its columns."""
    columns: dict[str, list[Any]] = {name: [] for name in _COLUMNS}
    for fact in facts:
        file = fact.origin.file
        if file not in found.formats:
            found.files.append(file)
            found.formats[file] = Counter()
            found.renamed[file] = {}
        names = found.renamed[file]
        names |= {o: t for o, t in fact.renamed.items() if t not in names.values()}
        if fact.format is not None:
            found.formats[file][fact.format] += 1
        for kind, detail in fact.hits.items():
            found.hit(kind, Example(str(fact.origin), detail))
        if fact.label is not None and role == 0 and found.labels is not None:
            found.labels[fact.label] += 1
            if len(found.labels) > _MOST_LABELS:
                found.labels = None
        if role == 0 and fact.sample and len(found.samples) < _SAMPLE:
            found.samples.append((str(fact.origin), fact.sample))
        columns["role"].append(role)
        columns["file"].append(found.files.index(file))
        columns["line"].append(fact.origin.line)
        columns["short"].append(fact.label is not None)
        for name in ("usable", "prompt_key", "exact_key", "answer_key", "prompt_length", "answer_length",
                     "form", "system", "judged", "longer"):  # fmt: skip
            columns[name].append(getattr(fact, name))
    return {name: np.array(columns[name], dtype) for name, dtype in _COLUMNS.items()}
