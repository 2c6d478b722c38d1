"""Answers of the models that `decoder.py` does not know: by Transformers' own `generate`."""

import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedTokenizerBase, set_seed
from transformers.generation.streamers import BaseStreamer

from luthier.data.spans import stop_token_ids
from luthier.generate.cache import bytes_of_token, rows_in_memory
from luthier.generate.decoder import Model
from luthier.generate.sampling import Sampling
from luthier.models.adapters import inner
from luthier.models.load import max_positions


def continue_prompts(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Mapping[int, list[int]],
    sampling: Sampling,
    batch_size: int,
    streamer: BaseStreamer | None = None,
) -> Iterator[tuple[int, list[int]]]:
    """Continue ``prompts``, token ids by number: the number and the new tokens of each.

    Prompts of like length share a batch, padded on the left and masked. Batches are smaller than
    ``batch_size`` where memory does not hold their keys and values.
    """
    order = sorted(prompts, key=lambda number: -len(prompts[number]))
    if order:
        row = len(prompts[order[0]]) + sampling.max_new_tokens
        row *= bytes_of_token(model.config, model.dtype.itemsize)
        batch_size = rows_in_memory(batch_size, row, model.device)
    room = (max_positions(model.config) or math.inf) - sampling.max_new_tokens
    # A prompt so long that an answer may not fit would shorten the answers of its whole batch.
    alone = sum(len(prompts[number]) > room for number in order)
    starts = [*range(alone), *range(alone, len(order), batch_size)]
    for start, end in pairwise([*starts, len(order)]):
        batch = order[start:end]
        ids = [prompts[number] for number in batch]
        made = _generate(model, tokenizer, ids, sampling, streamer)
        yield from zip(batch, made, strict=True)


@torch.no_grad()
def _generate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    sampling: Sampling,
    streamer: BaseStreamer | None,
) -> list[list[int]]:
    # PEFT's layers sit inside the base model; its own `generate` only adds what prompts learn.
    base: Any = inner(model)
    longest = max(map(len, prompts))
    most = max_positions(model.config)
    room = sampling.max_new_tokens if most is None else most - longest
    # Set on the model: Transformers fills what a passed config leaves at its default from there,
    # so that a repetition penalty shipped with the model would slip in.
    base.generation_config = _generation_config(tokenizer, sampling, room)
    if sampling.seed is not None:
        set_seed(sampling.seed)
    ids, mask = _left_padded(prompts, base.generation_config.pad_token_id)
    output = base.generate(
        input_ids=ids.to(base.device),
        attention_mask=mask.to(base.device),
        streamer=streamer,
        use_cache=True,
    )
    made: list[list[int]] = output[:, longest:].tolist()
    return made


def _generation_config(
    tokenizer: PreTrainedTokenizerBase, sampling: Sampling, room: int
) -> GenerationConfig:
    options: dict[str, Any] = {}
    if sampling.temperature > 0:
        options = {
            "do_sample": True,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
        }
    return GenerationConfig(
        max_new_tokens=min(sampling.max_new_tokens, room),
        repetition_penalty=sampling.repetition_penalty,
        eos_token_id=stop_token_ids(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        **options,
    )


def _left_padded(prompts: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask (B, longest); generation goes on from the right edge."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    return ids, mask
