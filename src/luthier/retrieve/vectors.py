"""The store of vectors: USearch, an optional package."""

from typing import TYPE_CHECKING

from luthier.extras import need

if TYPE_CHECKING:
    from usearch.index import Index as VectorStore


def need_store() -> None:
    """Raise where USearch is not installed.

    Raises:
        UserError: it is not.
    """
    need("usearch", extra="rag", what="retrieval from documents")


def new_store(dimensions: int) -> "VectorStore":
    """An empty store of float32 vectors, compared by their inner product."""
    need_store()
    from usearch.index import Index as VectorStore

    return VectorStore(ndim=dimensions, metric="ip", dtype="f32")
