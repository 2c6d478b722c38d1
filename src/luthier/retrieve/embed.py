"""Sentences to vectors, with the small embedding model."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModel, AutoTokenizer

from luthier.events import OnEvent, during, ignore, tracked
from luthier.models.dtype import pick_device
from luthier.models.pull import pull
from luthier.retrieve.vectors import need_store

NAME = "all-minilm-l6-v2"
MOST_TOKENS = 256  # its longest input; the rest of a text is cut
_BATCH = 32

Vectors = NDArray[np.float32]


class Embedder:
    """Vectors of unit length whose dot product says how near two texts are in meaning.

    The mean of the last hidden states over a text's tokens, scaled to length 1 (Reimers and
    Gurevych 2019, Sentence-BERT; sentence-transformers/all-MiniLM-L6-v2).

    Raises:
        UserError: the model is not in the cache and cannot be fetched, or the vector store is not
            installed.
    """

    def __init__(self, on_event: OnEvent = ignore) -> None:
        need_store()  # before 87 MB are downloaded for nothing
        folder = pull(NAME, verify=False, on_event=on_event).folder
        with during("loading the embedding model", on_event):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model: Any = AutoModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, add_pooling_layer=False
            )
        self._model = self._model.eval().to(pick_device())
        self.dimensions = int(self._model.config.hidden_size)

    @torch.no_grad()
    def embed(self, texts: Sequence[str], on_event: OnEvent = ignore) -> Vectors:
        """Vectors (N, dimensions) of ``texts``."""
        vectors = np.empty((len(texts), self.dimensions), dtype=np.float32)
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        batches = [order[start : start + _BATCH] for start in range(0, len(order), _BATCH)]
        for batch in tracked(
            batches, "embedding passages", on_event, len(texts), "passages", size=len
        ):
            tokens = self.tokenizer(
                [texts[i] for i in batch],
                padding=True,
                truncation=True,
                max_length=MOST_TOKENS,
                return_tensors="pt",
            ).to(self._model.device)
            hidden = self._model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            vectors[batch] = torch.nn.functional.normalize(mean, dim=1).cpu().numpy()
        return vectors
