"""Ask the same questions in several ways, one query at a time, and measure each."""

import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from luthier.compare.folder import ComparisonFolder
from luthier.compare.prompts import KINDS, Approach, Kind, make_prompt, searched_for
from luthier.data.conversation import Conversation
from luthier.data.prepare import read_for_evaluation, trained_on
from luthier.data.split import sample, split_key
from luthier.data.template import set_template
from luthier.errors import UserError
from luthier.evaluate.store import Store, key_of
from luthier.events import OnEvent, ignore, tracked
from luthier.files import sha256
from luthier.generate.answer import Model, Sampling, answer_all, encode_prompt
from luthier.models.plain import load_plain
from luthier.models.tuned import load_tuned
from luthier.recipe import Recipe
from luthier.retrieve.embed import Embedder
from luthier.retrieve.index import MANIFEST, Manifest, build_index, changes, read_manifest
from luthier.retrieve.search import Index
from luthier.run import Run

Record = dict[str, Any]  # of one query: answer, seconds, search_seconds, tokens, passages


@dataclass(frozen=True)
class Question:
    """What is compared.

    Attributes:
        recipe: the run's, else one that names the model; its ``evaluate`` group says how much is
            answered and how it is scored.
        data: rows with the questions and their references.
        documents: a folder of documents, or an index of them; None where nothing retrieves.
        run: None where nothing is tuned.
        examples: rows to take the few shots from; None: the run's training rows.
        passages: how many the model is shown per query.
    """

    approaches: tuple[Approach, ...]
    recipe: Recipe
    data: str
    documents: Path | None = None
    run: Run | None = None
    examples: str | None = None
    shots: int = 3
    passages: int = 3


@dataclass(frozen=True)
class Asked:
    """The rows, and what became of each by approach; ``manifest`` of the index that served."""

    rows: list[Conversation]
    records: dict[Approach, list[Record]]
    manifest: Manifest | None


def ask_all(question: Question, out: Path, on_event: OnEvent = ignore) -> Asked:
    """Answer every row by every approach; what was answered before is kept in ``out``.

    A query is timed alone, from the question to the complete answer, search included; the first of
    each approach is asked twice, and timed the second time.

    Raises:
        UserError: something that an approach needs is missing or wrong.
    """
    kinds = [KINDS[name] for name in question.approaches]
    _check(question, kinds)
    evaluate = question.recipe.evaluate
    read = read_for_evaluation(question.data, question.recipe.data, on_event)
    rows = [row for row in read if row.messages]
    rows = sample(rows, evaluate.max_rows, question.recipe.train.seed)
    if not rows:
        raise UserError(f"{question.data} has no row with a question and an answer to compare on")
    examples = _examples(question, rows, on_event) if any(kind.shots for kind in kinds) else []
    store = Store(ComparisonFolder(out).answers_path)
    records: dict[Approach, list[Record]] = {}
    with _index(question, kinds, out, on_event) as index, _models(question, on_event) as pick:
        for name, kind in zip(question.approaches, kinds, strict=True):
            with pick(kind.tuned) as (model, tokenizer, weights):
                asker = _Asker(model, tokenizer, weights, kind, examples, index, question, store)
                asked = tracked(rows, f"answers, {name}", on_event, len(rows), "questions")
                records[name] = [asker.ask(row) for row in asked]
        return Asked(rows, records, index.manifest if index else None)


def _check(question: Question, kinds: Sequence[Kind]) -> None:
    for name, kind in zip(question.approaches, kinds, strict=True):
        if kind.tuned and question.run is None:
            raise UserError(f"{name} needs a finished run: give --run")
        if kind.retrieves and question.documents is None:
            raise UserError(f"{name} needs documents: give --docs")
        if kind.shots and question.run is None and question.examples is None:
            raise UserError(f"{name} needs examples: give --examples, or a run with --run")


def _examples(
    question: Question, rows: Sequence[Conversation], on_event: OnEvent
) -> list[Conversation]:
    """The shots: a seeded sample, none of which is a question that is asked."""
    if question.examples is not None:
        pool = read_for_evaluation(question.examples, question.recipe.data, on_event)
    else:
        assert question.run is not None
        pool = trained_on(question.run, on_event)
    asked = {split_key(row) for row in rows}
    pool = [row for row in pool if row.messages and split_key(row) not in asked]
    if len(pool) < question.shots:
        raise UserError(
            f"{len(pool)} examples are not enough for --shots {question.shots} (questions that are "
            "asked do not count); give more with --examples"
        )
    return sample(pool, question.shots, question.recipe.train.seed)


@contextmanager
def _index(
    question: Question, kinds: Sequence[Kind], out: Path, on_event: OnEvent
) -> Iterator[Index | None]:
    """The index: the one given, or one of the documents, built where there is none up to date."""
    if not any(kind.retrieves for kind in kinds):
        yield None
        return
    assert question.documents is not None
    embedder = Embedder(on_event)
    folder = question.documents
    if not (folder / MANIFEST).is_file():
        folder = out / "index"
        if not _is_current(folder, question.documents):
            build_index(question.documents, folder, embedder, on_event=on_event)
    with closing(Index(folder, embedder)) as index:
        yield index


def _is_current(folder: Path, documents: Path) -> bool:
    try:
        manifest = read_manifest(folder)
    except UserError:  # none, or one to make anew
        return False
    return manifest.documents == str(documents.resolve()) and not changes(manifest)


@contextmanager
def _models(question: Question, on_event: OnEvent) -> Iterator[Any]:
    """A function that gives (model, tokenizer, name of its weights), tuned or not."""
    if question.run is None:
        source = question.recipe.model.source
        model, tokenizer = load_plain(source, on_event)
        set_template(tokenizer, question.recipe.data)

        @contextmanager
        def pick_plain(_tuned: bool) -> Iterator[Any]:
            yield model, tokenizer, source

        yield pick_plain
        return
    models, weights = (
        load_tuned(question.run, on_event=on_event),
        sha256(question.run.measured_path),
    )

    @contextmanager
    def pick(tuned: bool) -> Iterator[Any]:
        if tuned:
            yield models.tuned, models.tokenizer, f"tuned {weights}"
            return
        with models.as_base() as base:
            yield base, models.tokenizer, f"base {weights}"

    yield pick


class _Asker:
    """Asks one row after another in one way."""

    def __init__(
        self,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        weights: str,
        kind: Kind,
        examples: Sequence[Conversation],
        index: Index | None,
        question: Question,
        store: Store,
    ) -> None:
        self.model, self.tokenizer, self.weights = model, tokenizer, weights
        self.kind, self.examples, self.index = kind, examples, index
        self.passages, self.store = question.passages, store
        self.longest = question.recipe.evaluate.max_new_tokens
        self.warm = False

    def ask(self, row: Conversation) -> Record:
        """The record of this row: kept from before, or measured now."""
        started = time.perf_counter()
        hits, search_tokens = [], 0
        if self.kind.retrieves:
            assert self.index is not None
            query = searched_for(row)
            hits = self.index.search(query, self.passages)
            search_tokens = self.index.count_tokens(query)
        searched = time.perf_counter()
        prompt = make_prompt(row, self.kind, self.examples, [hit.passage for hit in hits])
        ids = encode_prompt(self.tokenizer, prompt)
        key = key_of(self.weights, ids, self.longest, self.kind.retrieves)
        if key in self.store:
            kept: Record = self.store[key]
            return kept
        if not self.warm:  # first-time costs belong to no query
            self.warm = True
            answer_all(self.model, self.tokenizer, [prompt], Sampling(4), 1)
            return self.ask(row)
        answer = answer_all(self.model, self.tokenizer, [prompt], Sampling(self.longest), 1)[0]
        ended = time.perf_counter()
        record: Record = {
            "answer": answer.strip(),
            "seconds": ended - started,
            "search_seconds": searched - started if self.kind.retrieves else 0.0,
            "prompt_tokens": len(ids),
            "search_tokens": search_tokens,
            "output_tokens": len(self.tokenizer(answer, add_special_tokens=False).input_ids),
            "passages": [hit.passage.place for hit in hits],
        }
        self.store.add({key: record})
        return record
