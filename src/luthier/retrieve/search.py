"""Search an index by words and by meaning at once."""

import re
import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luthier.errors import UserError
from luthier.files import sha256
from luthier.retrieve.embed import Embedder
from luthier.retrieve.index import PASSAGES, VECTORS, Manifest, read_manifest
from luthier.retrieve.passages import Passage
from luthier.retrieve.vectors import new_store

# Reciprocal rank fusion's constant (Cormack, Clarke and Büttcher 2009), and how far down each of the
# two rankings is read.
_FUSION = 60
_DEPTH = 50
_EXACT = 50_000  # vectors; beyond, the store's graph (HNSW, Malkov and Yashunin 2018) finds them


@dataclass(frozen=True)
class Hit:
    """A passage that was found; ranks count from 1, None where that search did not find it."""

    passage: Passage
    score: float
    word_rank: int | None
    meaning_rank: int | None


class Index:
    """An index, open for search.

    Raises:
        UserError: there is none in ``folder``, it is of another version, or it is damaged.
    """

    def __init__(self, folder: Path, embedder: Embedder) -> None:
        self.manifest: Manifest = read_manifest(folder)
        self._embedder = embedder
        for name, digest in self.manifest.parts.items():
            if not (folder / name).is_file() or sha256(folder / name) != digest:
                raise UserError(
                    f"the index {folder} is damaged ({name}); build it again with: luthier rag index "
                    f"{self.manifest.documents} --out {folder}"
                )
        address = f"{(folder / PASSAGES).absolute().as_uri()}?mode=ro&immutable=1"
        self._passages = sqlite3.connect(address, uri=True)
        self._vectors = new_store(embedder.dimensions)
        self._vectors.load(str(folder / VECTORS))

    def close(self) -> None:
        self._passages.close()

    def count_tokens(self, text: str) -> int:
        """Tokens of ``text`` for the embedding model."""
        return len(self._embedder.tokenizer(text, add_special_tokens=False).input_ids)

    def search(self, question: str, count: int) -> list[Hit]:
        """The ``count`` best passages for ``question``, the best first.

        The score is the sum of 1 / (60 + rank) over the ranking by words (BM25, Robertson and
        Zaragoza 2009, on word stems) and the one by meaning (dot product of embeddings):
        reciprocal rank fusion (Cormack et al. 2009).
        """
        words, meaning = self._by_words(question), self._by_meaning(question)
        ranks = [
            {number: rank for rank, number in enumerate(ranking, start=1)}
            for ranking in (words, meaning)
        ]
        scores = {
            number: sum(1 / (_FUSION + rank[number]) for rank in ranks if number in rank)
            for number in [*words, *meaning]
        }
        best = sorted(scores, key=lambda number: (-scores[number], number))[:count]
        return [
            Hit(self._passage(number), scores[number], *(rank.get(number) for rank in ranks))
            for number in best
        ]

    def _by_words(self, question: str) -> list[int]:
        # Quoted, so that no word of a question is an operator of the query language.
        words = dict.fromkeys(re.findall(r"\w+", question.lower()))
        if not words:
            return []
        query = " OR ".join(f'"{word}"' for word in words)
        found = self._passages.execute(
            "SELECT rowid FROM words WHERE words MATCH ? ORDER BY rank, rowid LIMIT ?",
            (query, _DEPTH),
        )
        return [int(row[0]) for row in found]

    def _by_meaning(self, question: str) -> list[int]:
        vector = self._embedder.embed([question])[0]
        depth = min(_DEPTH, self.manifest.passages)
        exact = self.manifest.passages <= _EXACT
        return [
            int(key) for key in np.asarray(self._vectors.search(vector, depth, exact=exact).keys)
        ]

    def _passage(self, number: int) -> Passage:
        row = self._passages.execute(
            "SELECT file, first_line, last_line, title, text FROM passages WHERE id = ?", (number,)
        ).fetchone()
        return Passage(*row)
