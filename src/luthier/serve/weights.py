"""One set of weights, with all adapters over it: reading prompts and making tokens in batches."""

import inspect
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from luthier.generate.cache import Cache, Piece
from luthier.generate.decoder import find_decoder
from luthier.models.adapters import add_adapter, inner
from luthier.models.load import max_positions
from luthier.serve.rows import NAME, Row

log = logging.getLogger(__name__)

CHUNK = 512  # tokens of a prompt that are read at once: running answers wait no longer than that


@dataclass
class Reading:
    """A prompt that is being read, ``CHUNK`` tokens at a time."""

    cache: Cache | DynamicCache
    prompt: list[int]
    adapter: str | None
    done: int = 0


@dataclass
class Kept:
    """Keys and values of the ``tokens`` of an answer that the decoder makes."""

    cache: Cache
    tokens: int


Memory = Kept | Row | DynamicCache


class Weights:
    """A model that answers many at once.

    What `generate`'s decoder knows, it computes. Other families and adapters run by Transformers.

    Attributes:
        batched: rows that Transformers runs share a step. Where the model's attention cannot
            separate rows (checked at the start), each row runs alone: slower, the same answers.
        vocabulary: length of the output layer.
    """

    def __init__(self, model: PreTrainedModel | PeftModel) -> None:
        self._model = model.eval()
        self._base = inner(model)
        self._active: str | None = None
        if isinstance(model, PeftModel):
            self._active = model.active_adapter
        self._keeps_last = "logits_to_keep" in inspect.signature(self._base.forward).parameters
        self.device: torch.device = self._base.device
        self.vocabulary: int = self._base.get_output_embeddings().weight.shape[0]
        self.positions = max_positions(self._base.config)
        self._decoder = find_decoder(model)
        if self._decoder is not None:
            self._decoder.pack()
        self.batched = self._base.config._attn_implementation == "sdpa"
        if self.batched:
            self._base.set_attn_implementation(NAME)
            self.batched = self._rows_agree()
        if not self.batched:
            if self._base.config._attn_implementation == NAME:
                self._base.set_attn_implementation("sdpa")
            if self._decoder is None:
                log.warning(
                    "batching is off: this model's attention cannot separate rows, so answers run one at a time"
                )

    def load_adapter(self, folder: Path, name: str) -> None:
        """Put another adapter beside those there.

        Raises:
            UserError: it does not fit.
        """
        assert isinstance(self._model, PeftModel)
        add_adapter(self._model, folder, name)
        self._model.eval()
        found = find_decoder(self._model)
        if found is not None:
            found.pack(self._decoder)
            self._decoder = found

    def unload_adapter(self, name: str) -> None:
        assert isinstance(self._model, PeftModel)
        self._model.delete_adapter(name)
        self._active = None  # PEFT made another one active
        if self._decoder is not None:
            self._decoder.adapters.discard(name)

    @torch.no_grad()
    def read(self, reading: Reading) -> Tensor | None:
        """Read on in a prompt; at its end, the logits (V,) of the first token of the answer."""
        chunk = reading.prompt[reading.done : reading.done + CHUNK]
        if isinstance(reading.cache, Cache):
            assert self._decoder is not None
            piece = Piece(reading.cache, 0, reading.done, chunk, reading.adapter)
            logits = self._decoder.read([piece])
        else:
            with self._with_adapter(reading.adapter) as model:
                logits = self._forward(
                    model, [chunk], past_key_values=reading.cache, use_cache=True
                )
        reading.done += len(chunk)
        return logits[0] if reading.done == len(reading.prompt) else None

    def begin(self, prompt: list[int], adapter: str | None, room: int) -> Reading:
        """Begin to read a prompt, for an answer of up to ``room`` tokens."""
        decoder = self._decoder
        if decoder is not None and (adapter is None or adapter in decoder.adapters):
            return Reading(decoder.cache(1, len(prompt) + room), prompt, adapter)
        return Reading(DynamicCache(config=self._base.config), prompt, adapter)

    def remember(self, reading: Reading, room: int) -> Memory:
        """The memory of a prompt that was read, for an answer of up to ``room`` tokens."""
        if isinstance(reading.cache, Cache):
            return Kept(reading.cache, reading.done)
        return Row(reading.cache, room) if self.batched else reading.cache

    @torch.no_grad()
    def step(
        self, memories: Sequence[Memory], tokens: Sequence[int], adapters: Sequence[str | None]
    ) -> list[Tensor]:
        """The logits (V,) after one more token of each row."""
        logits: list[Tensor] = [torch.empty(0)] * len(tokens)
        pieces = {
            index: Piece(memory.cache, 0, memory.tokens, [tokens[index]], adapters[index])
            for index, memory in enumerate(memories)
            if isinstance(memory, Kept)
        }
        if pieces and self._decoder is not None:
            made = self._decoder.read(list(pieces.values()))
            for (index, piece), row in zip(pieces.items(), made, strict=True):
                kept = memories[index]
                assert isinstance(kept, Kept)
                kept.tokens = piece.end
                logits[index] = row
        others = [index for index in range(len(tokens)) if index not in pieces]
        for chosen, model, extra in self._groups([adapters[index] for index in others]):
            group = [others[index] for index in chosen]
            with model as ready:
                rows = self._step_rows(
                    ready, [memories[i] for i in group], [tokens[i] for i in group], extra
                )
            for index, row in zip(group, rows, strict=True):
                logits[index] = row
        return logits

    def _step_rows(
        self, model: Any, memories: list[Memory], tokens: list[int], extra: dict[str, Any]
    ) -> Sequence[Tensor]:
        if not self.batched:
            return [
                self._forward(model, [[token]], past_key_values=memory, use_cache=True)[0]
                for memory, token in zip(memories, tokens, strict=True)
            ]
        rows = [memory for memory in memories if isinstance(memory, Row)]
        positions = torch.tensor([[row.tokens] for row in rows], device=self.device)
        # A ready mask of four dimensions keeps Transformers from building its own.
        mask = torch.zeros(1, 1, 1, 1, device=self.device)
        logits = self._forward(
            model,
            [[token] for token in tokens],
            position_ids=positions,
            attention_mask=mask,
            use_cache=False,
            rows=rows,
            **extra,
        )
        for row in rows:
            row.tokens += 1
        return list(logits)

    def _forward(self, model: Any, ids: list[list[int]], **arguments: Any) -> Tensor:
        """The logits (B, V) at the last token."""
        if self._keeps_last:
            arguments["logits_to_keep"] = 1
        output = model(input_ids=torch.tensor(ids, device=self.device), **arguments)
        last: Tensor = output.logits[:, -1]
        return last

    def _groups(
        self, adapters: Sequence[str | None]
    ) -> Iterator[tuple[list[int], Any, dict[str, Any]]]:
        """Rows that Transformers runs together, the model for them, and what to call it with."""
        everyone = list(range(len(adapters)))
        kinds = list(dict.fromkeys(adapters))
        if len(kinds) > 1 and self.batched and self._mixes(kinds):
            names = [name or "__base__" for name in adapters]
            yield everyone, _as_it_is(self._model), {"adapter_names": names}
            return
        for kind in kinds:
            group = [i for i in everyone if adapters[i] == kind]
            yield group, self._with_adapter(kind), {}

    def _mixes(self, kinds: Sequence[str | None]) -> bool:
        """Whether PEFT can run these adapters in one batch: not DoRA, nor adapters of experts."""
        assert isinstance(self._model, PeftModel)
        configs = [self._model.peft_config[kind] for kind in kinds if kind is not None]
        return not any(
            getattr(config, "use_dora", False) or getattr(config, "target_parameters", None)
            for config in configs
        )

    @contextmanager
    def _with_adapter(self, name: str | None) -> Iterator[Any]:
        if not isinstance(self._model, PeftModel):
            yield self._base
        elif name is None:
            with self._model.disable_adapter():
                yield self._base
        else:
            if self._active != name:
                self._model.set_adapter(name, inference_mode=True)
                self._active = name
            yield self._base

    @torch.no_grad()
    def _rows_agree(self) -> bool:
        """Two rows in one batch against each alone, by the model's own cache."""
        draw = torch.Generator().manual_seed(0)
        prompts = [torch.randint(self.vocabulary, (n,), generator=draw).tolist() for n in (24, 9)]
        kind = self._active
        try:
            alone, together, memories = [], [], []
            for prompt in prompts:
                reading = Reading(DynamicCache(config=self._base.config), prompt, kind)
                self.read(reading)
                memories.append(self.remember(reading, 4))
                with self._with_adapter(kind) as model:
                    for token in (1, 2):
                        alone.append(
                            self._forward(
                                model, [[token]], past_key_values=reading.cache, use_cache=True
                            )[0]
                        )
            for token in (1, 2):
                together.append(self.step(memories, [token, token], [kind, kind]))
        except (TypeError, ValueError, RuntimeError, KeyError, AttributeError) as error:
            log.debug("the model's attention cannot separate rows: %s", error)
            return False
        expected = torch.stack(alone).float()
        got = torch.stack([step[row] for row in (0, 1) for step in together]).float()
        tolerance = 1e-3 if alone[0].dtype == torch.float32 else 0.1
        return bool((got - expected).abs().max() <= tolerance * expected.std())


@contextmanager
def _as_it_is(model: Any) -> Iterator[Any]:
    yield model
