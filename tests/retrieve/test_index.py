"""The index: made whole, found again, searched, and never trusted when damaged or stale."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from families import CHAT_FAMILIES, make_tokenizer

from luthier.errors import UserError
from luthier.events import Event, Progress, ignore
from luthier.retrieve.ask import support, with_passages
from luthier.retrieve.embed import Embedder, Vectors
from luthier.retrieve.index import build_index, changes, read_manifest
from luthier.retrieve.passages import Passage
from luthier.retrieve.search import Index

TEXTS = {
    "ferry.md": "# The ferry\n\nThe ferry runs daily at noon and carries forty cars.",
    "bakery.md": "# The bakery\n\nIlse Marn bakes rye bread. The ovens are lit at three.",
    "tower.md": "# The tower\n\nThe beacon was built in 1871 from black basalt.",
    "gaol.md": "# The gaol\n\nIt held smugglers; today it is an inn with nine rooms.",
}


class Letters(Embedder):
    """Vectors that count letters: no model, and texts of like letters are near."""

    def __init__(self) -> None:
        self.tokenizer = make_tokenizer(CHAT_FAMILIES["chatml"])
        self.dimensions = 26

    def embed(self, texts, on_event=ignore) -> Vectors:  # type: ignore[no-untyped-def]
        counts = np.array(
            [[text.lower().count(chr(97 + i)) for i in range(26)] for text in texts], np.float32
        )
        on_event(Progress("embedding passages", len(texts), len(texts), "passages"))
        return counts / np.linalg.norm(counts, axis=1, keepdims=True).clip(1e-6)


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    for name, text in TEXTS.items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture
def embedder() -> Letters:
    return Letters()


def test_what_was_indexed_is_found(documents: Path, tmp_path: Path, embedder: Letters) -> None:
    (documents / "left.csv").write_text("a")
    seen: list[Event] = []
    manifest = build_index(documents, tmp_path / "i", embedder, on_event=seen.append)
    assert manifest == read_manifest(tmp_path / "i")
    assert (manifest.passages, set(manifest.hashes)) == (4, set(TEXTS))
    assert manifest.left_out == ["left.csv"]
    assert Progress("cutting documents", 4, 4, "documents") in seen
    assert Progress("embedding passages", 4, 4, "passages") in seen
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "i"]
    index = Index(tmp_path / "i", embedder)
    first, *_ = index.search("When was the beacon built?", 2)
    assert first.passage.place == "tower.md:1-3"
    assert first.word_rank == 1
    # Another form of a word, and a question that the query language would choke on.
    assert index.search('who "bakes" AND (baking', 1)[0].passage.file == "bakery.md"
    assert index.search("ferries", 1)[0].passage.file == "ferry.md"
    assert len(index.search("?!", 9)) == 4  # no words: by meaning alone
    index.close()


def test_scores_fuse_both_rankings(documents: Path, tmp_path: Path, embedder: Letters) -> None:
    build_index(documents, tmp_path / "i", embedder)
    index = Index(tmp_path / "i", embedder)
    hits = index.search("an inn for smugglers", 4)
    for hit in hits:
        ranks = [rank for rank in (hit.word_rank, hit.meaning_rank) if rank is not None]
        assert hit.score == pytest.approx(sum(1 / (60 + rank) for rank in ranks))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    # The ranking by meaning is that of the dot products.
    question = embedder.embed(["an inn for smugglers"])[0]
    exact = sorted(hits, key=lambda h: -float(embedder.embed([h.passage.text])[0] @ question))
    assert [hit.meaning_rank for hit in exact] == [1, 2, 3, 4]
    index.close()


def test_changed_documents_are_noticed(documents: Path, tmp_path: Path, embedder: Letters) -> None:
    manifest = build_index(documents, tmp_path / "i", embedder)
    assert changes(manifest) == []
    (documents / "ferry.md").write_text("The ferry sank.")
    (documents / "gaol.md").unlink()
    (documents / "new.txt").write_text("new")
    assert changes(manifest) == ["ferry.md has changed", "gaol.md is gone", "new.txt is new"]
    build_index(documents, tmp_path / "i", embedder)
    assert changes(read_manifest(tmp_path / "i")) == []
    documents.rename(tmp_path / "moved")
    assert changes(manifest) == []  # an index serves without its documents


@pytest.mark.parametrize("part", ["passages.sqlite", "vectors.usearch", "manifest.json"])
@pytest.mark.parametrize("how", ["cut", "gone"])
def test_a_damaged_index_is_refused(
    part: str, how: str, documents: Path, tmp_path: Path, embedder: Letters
) -> None:
    build_index(documents, tmp_path / "i", embedder)
    file = tmp_path / "i" / part
    if how == "cut":
        file.write_bytes(file.read_bytes()[:-40])
    else:
        file.unlink()
    with pytest.raises(UserError, match="luthier rag index"):
        Index(tmp_path / "i", embedder)


def test_an_index_of_another_format(documents: Path, tmp_path: Path, embedder: Letters) -> None:
    manifest = asdict(build_index(documents, tmp_path / "i", embedder))
    (tmp_path / "i" / "manifest.json").write_text(json.dumps({**manifest, "format": 99}))
    with pytest.raises(UserError, match="format 99, not 1"):
        read_manifest(tmp_path / "i")


def test_nothing_but_an_index_is_replaced(
    documents: Path, tmp_path: Path, embedder: Letters
) -> None:
    with pytest.raises(UserError, match="is not an index"):
        build_index(documents, documents, embedder)
    assert (documents / "ferry.md").read_text() == TEXTS["ferry.md"]
    (tmp_path / "empty").mkdir()
    assert build_index(documents, tmp_path / "empty", embedder).passages == 4


def test_a_failure_leaves_the_old_index(
    documents: Path, tmp_path: Path, embedder: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = build_index(documents, tmp_path / "i", embedder)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("luthier.retrieve.index._write_vectors", fail)
    with pytest.raises(UserError, match="disk full"):
        build_index(documents, tmp_path / "i", embedder)
    assert read_manifest(tmp_path / "i") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["docs", "i"]


def test_documents_without_text(tmp_path: Path, embedder: Letters) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.md").write_text(" \n")
    with pytest.raises(UserError, match="have no text"):
        build_index(tmp_path / "docs", tmp_path / "i", embedder)


def test_passages_stand_before_the_question() -> None:
    passages = [Passage("a.md", 1, 2, "Title", "Text."), Passage("b.md", 3, 3, "", "More.")]
    system, user = with_passages(
        ({"role": "system", "content": "S"}, {"role": "user", "content": "Q?", "input": "I"}),
        passages,
    )
    assert system == {"role": "system", "content": "S"}
    assert user["content"] == "Passages:\n\n[1] Title: Text.\n\n[2] More.\n\nQ?"
    assert user["input"] == "I"


def test_support_is_the_share_of_words_that_the_answer_adds() -> None:
    passage = Passage("a.md", 1, 2, "Tower", "It was built in 1871.")
    question = "When was the tower of Marn built?"
    assert support("Marn's tower was built in 1871 [1].", question, passage) == pytest.approx(2 / 3)
    assert support("In 1999, by Osk", question, passage) == 0.25
    assert support("The tower", question, passage) == support("", question, passage) == 0.0


@pytest.mark.real
def test_the_real_embeddings_are_those_of_the_model_card(tmp_path: Path) -> None:
    """Unit length, independent of the batch, and near in meaning without a word in common."""
    embedder = Embedder()
    texts = [
        "A boat that carries vehicles over the strait",
        "Sourdough loaves",
        "An old lighthouse",
    ]
    vectors = embedder.embed(texts)
    assert vectors.shape == (3, 384)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[1], embedder.embed(["Sourdough loaves"])[0], atol=1e-5)
    query = embedder.embed(["ferry for cars"])[0]
    assert (vectors @ query).argmax() == 0
    # What sentence-transformers' own recipe gives, written out for one text.
    import torch
    from transformers import AutoModel, AutoTokenizer

    from luthier.models.pull import pull

    folder = pull("all-minilm-l6-v2").folder
    tokens = AutoTokenizer.from_pretrained(folder)(texts[:1], return_tensors="pt")
    with torch.no_grad():
        mean = AutoModel.from_pretrained(folder)(**tokens).last_hidden_state[0].mean(0)
    assert np.allclose(vectors[0], (mean / mean.norm()).numpy(), atol=1e-5)
