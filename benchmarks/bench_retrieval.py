"""How often is the right passage among the first k: by words, by meaning, by both?

The 300 questions of the example about an island on no map (src/luthier/demo/facts), whose documents
differ in little but names. Prints its own figures; takes some ten seconds.
"""

import json
import tempfile
import time
from pathlib import Path

from luthier.demo.make_facts import FACTS
from luthier.retrieve.embed import Embedder
from luthier.retrieve.index import build_index
from luthier.retrieve.search import Hit, Index

_DEPTH = 30


def main() -> None:
    embedder = Embedder()
    rows = [
        json.loads(line)
        for name in ("train.jsonl", "test.jsonl")
        for line in (FACTS / name).read_text("utf-8").splitlines()
    ]
    with tempfile.TemporaryDirectory() as scratch:
        manifest = build_index(FACTS / "docs", Path(scratch) / "index", embedder)
        index = Index(Path(scratch) / "index", embedder)
        ranks: dict[str, list[float]] = {"words": [], "meaning": [], "both": []}
        started = time.perf_counter()
        for row in rows:
            subject = json.loads(row["completion"])["subject"].lower()
            hits = index.search(row["question"], _DEPTH)
            for way, rank in _ranks(hits, subject).items():
                ranks[way].append(rank)
        seconds = time.perf_counter() - started
        index.close()
    print(
        f"{manifest.passages} passages, indexed in {manifest.seconds:.1f} s; {len(rows)} questions"
    )
    print(f"{1000 * seconds / len(rows):.1f} ms a search")
    for way, found in ranks.items():
        shares = (sum(rank <= k for rank in found) / len(found) for k in (1, 3, 5))
        print(
            f"{way:8}", "  ".join(f"@{k} {s:.1%}" for k, s in zip((1, 3, 5), shares, strict=True))
        )


def _ranks(hits: list[Hit], subject: str) -> dict[str, float]:
    """The best rank of a passage about ``subject`` by each ranking; infinite where there is none."""
    about = [
        (place, hit)
        for place, hit in enumerate(hits, start=1)
        if hit.passage.text.splitlines()[0].lower().removeprefix("# ") == subject
    ]
    nowhere = float("inf")
    return {
        "words": min((h.word_rank or nowhere for _, h in about), default=nowhere),
        "meaning": min((h.meaning_rank or nowhere for _, h in about), default=nowhere),
        "both": min((place for place, _ in about), default=nowhere),
    }


if __name__ == "__main__":
    main()
