"""Let a model answer: many prompts at once, or one as a stream."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeAlias

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase, set_seed
from transformers.generation.streamers import TextStreamer

from luthier.data.spans import stop_token_ids
from luthier.data.template import Messages, TemplateRejects, render
from luthier.data.thoughts import answer_shape, decode_answer
from luthier.errors import UserError
from luthier.models.load import max_positions

Prompt: TypeAlias = Messages | str
Model: TypeAlias = PreTrainedModel | PeftModel


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        temperature: 0 takes the most likely token each time (greedy).
        top_p: sample from the smallest set of tokens with this much probability.
        top_k: sample from this many most likely tokens; 0 for all.
        repetition_penalty: above 1, tokens seen before get less likely (Keskar et al. 2019).
        seed: of the random choices; None draws a new one each time.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None


def answer_all(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    batch_size: int,
    on_answers: Callable[[int], None] = lambda _count: None,
) -> list[str]:
    """The answers to ``prompts``, in their order.

    Prompts of like length share a batch, padded on the left and masked. ``on_answers`` receives
    the number of answers of each finished batch.

    Args:
        prompts: messages, which the tokenizer's chat template renders, or plain text to continue.

    Raises:
        UserError: the template refuses a prompt, or a prompt is so long that no answer fits.
    """
    encoded = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    order = sorted(range(len(prompts)), key=lambda i: -len(encoded[i]))
    room = (max_positions(model.config) or math.inf) - sampling.max_new_tokens
    # A prompt so long that an answer may not fit would shorten the answers of its whole batch.
    alone = sum(len(encoded[i]) > room for i in order)
    starts = [*range(alone), *range(alone, len(order), batch_size)]
    answers = [""] * len(prompts)
    for start, end in pairwise([*starts, len(order)]):
        batch = order[start:end]
        for index, answer in zip(
            batch, _generate(model, tokenizer, [encoded[i] for i in batch], sampling), strict=True
        ):
            answers[index] = answer
        on_answers(len(batch))
    return answers


def stream_answer(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    sampling: Sampling,
    on_text: Callable[[str], None],
) -> str:
    """Answer one prompt, handing each piece of text to ``on_text`` as it comes; returns all of it.

    Raises:
        UserError: as ``answer_all``.
    """
    streamer = _Stream(tokenizer, on_text)
    encoded = encode_prompt(tokenizer, prompt)
    return _generate(model, tokenizer, [encoded], sampling, streamer)[0]


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: Prompt) -> list[int]:
    """Token ids of a prompt, the same that training put before the answer."""
    if isinstance(prompt, str):
        ids = list(tokenizer(prompt).input_ids)
        # A text that begins here has not ended: some tokenizers close every text with the token.
        return ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids
    try:
        text = render(tokenizer, prompt, add_generation_prompt=True)
    except TemplateRejects as error:
        raise UserError(f"cannot render these messages as a prompt: {error}") from None
    return list(tokenizer(text, add_special_tokens=False).input_ids)


@torch.no_grad()
def _generate(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[list[int]],
    sampling: Sampling,
    streamer: TextStreamer | None = None,
) -> list[str]:
    # PEFT's layers sit inside the base model; its own `generate` only adds what prompts learn.
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    longest = max(map(len, prompts))
    most = max_positions(model.config)
    if most is not None and longest >= most:
        raise UserError(
            f"a prompt of {longest} tokens fills the model's {most} positions; shorten it"
        )
    room = sampling.max_new_tokens if most is None else most - longest
    # Set on the model: Transformers fills what a passed config leaves at its default from there,
    # so that a repetition penalty shipped with the model would slip in.
    inner.generation_config = _generation_config(tokenizer, sampling, room)
    if sampling.seed is not None:
        set_seed(sampling.seed)
    ids, mask = _left_padded(prompts, inner.generation_config.pad_token_id)
    output = inner.generate(
        input_ids=ids.to(inner.device),
        attention_mask=mask.to(inner.device),
        streamer=streamer,
        use_cache=True,
    )
    return [decode_answer(tokenizer, ids)[1] for ids in output[:, longest:].tolist()]


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


class _Stream(TextStreamer):
    """Hands over text as soon as it is final (complete words and characters).

    What the template writes before the content, a thought among it, is held back.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, on_text: Callable[[str], None]) -> None:
        self.shape = answer_shape(tokenizer)
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=not self.shape.special)
        self.on_text = on_text
        self.special = tokenizer.all_special_tokens if self.shape.special else []
        self.held: str | None = None if self.shape.plain else ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.held is not None:
            self.held += text
            if not stream_end and not self.shape.settled(self.held):
                return
            text, self.held = self.shape.split(self.held)[1], None
        for token in self.special:
            text = text.replace(token, "")
        self.on_text(text)
