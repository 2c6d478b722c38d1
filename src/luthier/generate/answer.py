"""Let a model answer: many prompts at once, or one as a stream."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeAlias

import torch
from peft import PeftModel
from transformers import PreTrainedTokenizerBase
from transformers.generation.streamers import TextStreamer

from luthier.data.spans import stop_token_ids
from luthier.data.template import Messages, TemplateRejects, render
from luthier.data.thoughts import answer_shape, decode_answer
from luthier.errors import UserError
from luthier.generate.batching import Batch, Pace, Task
from luthier.generate.by_transformers import continue_prompts
from luthier.generate.decoder import Model as Model
from luthier.generate.decoder import find_decoder, standing_adapter
from luthier.generate.sampling import Sampling as Sampling
from luthier.models.load import max_positions

Prompt: TypeAlias = Messages | str


@dataclass(frozen=True)
class Ask:
    """An answer that is wanted.

    Attributes:
        prompt: token ids.
        base: by the model without its adapter.
        draw: which random numbers; those of ``seed + draw``.
    """

    prompt: list[int]
    base: bool = False
    draw: int = 0


def answer_all(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    batch_size: int,
    pace: Pace | None = None,
) -> list[str]:
    """The answers to ``prompts``, in their order.

    Args:
        prompts: messages, which the tokenizer's chat template renders, or plain text to continue.
        batch_size: answers that are made at once; fewer where memory does not hold them.
        pace: is added to, where the model is one of ``decoder.py``.

    Raises:
        UserError: the template refuses a prompt, or a prompt is so long that no answer fits.
    """
    answers = [""] * len(prompts)
    asks = [Ask(encode_prompt(tokenizer, p), draw=draw) for draw, p in enumerate(prompts)]
    for number, answer in answer_each(model, tokenizer, asks, sampling, batch_size, pace):
        answers[number] = answer
    return answers


def answer_each(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    asks: Sequence[Ask],
    sampling: Sampling,
    batch_size: int,
    pace: Pace | None = None,
) -> Iterator[tuple[int, str]]:
    """The number of each of ``asks`` and its answer, as it ends.

    Answers of the model and of its base share batches, so that the weights are read once for both.

    Raises:
        UserError: a prompt is so long that no answer fits.
    """
    room = _room(model, asks)
    for number, made in _continued(model, tokenizer, asks, sampling, batch_size, room, pace):
        yield number, decode_answer(tokenizer, made)[1]


def _continued(
    model: Model,
    tokenizer: PreTrainedTokenizerBase,
    asks: Sequence[Ask],
    sampling: Sampling,
    batch_size: int,
    room: float,
    pace: Pace | None,
) -> Iterator[tuple[int, list[int]]]:
    decoder = find_decoder(model)
    if decoder is None:
        for base in (True, False):
            prompts = {number: ask.prompt for number, ask in enumerate(asks) if ask.base is base}
            off = base and isinstance(model, PeftModel)
            with model.disable_adapter() if off else nullcontext():  # type: ignore[operator]
                yield from continue_prompts(model, tokenizer, prompts, sampling, batch_size)
        return
    standing = standing_adapter(model)
    tasks = [
        Task(
            number,
            ask.prompt,
            int(min(sampling.max_new_tokens, room - len(ask.prompt))),
            None if ask.base else standing,
            ask.draw,
        )
        for number, ask in enumerate(asks)
    ]
    if tasks:
        stops = stop_token_ids(tokenizer)
        yield from Batch(decoder, tasks, sampling, stops, batch_size, pace=pace).run()


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
    ids = encode_prompt(tokenizer, prompt)
    room = _room(model, [Ask(ids)])
    streamer = _Stream(tokenizer, on_text)
    decoder = find_decoder(model)
    if decoder is None:
        ((_, made),) = continue_prompts(model, tokenizer, {0: ids}, sampling, 1, streamer)
    else:
        limit = int(min(sampling.max_new_tokens, room - len(ids)))
        task = Task(0, ids, limit, standing_adapter(model))
        streamer.put(torch.tensor(ids))
        ((_, made),) = Batch(
            decoder, [task], sampling, stop_token_ids(tokenizer), 1, streamer.put_token
        ).run()
        streamer.end()
    return decode_answer(tokenizer, made)[1]


def _room(model: Model, asks: Sequence[Ask]) -> float:
    """Positions of the model, in tokens.

    Raises:
        UserError: a prompt fills them.
    """
    most = max_positions(model.config) or math.inf
    longest = max((len(ask.prompt) for ask in asks), default=0)
    if longest >= most:
        raise UserError(
            f"a prompt of {longest} tokens fills the model's {most} positions; shorten it"
        )
    return most


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

    def put_token(self, token: int) -> None:
        self.put(torch.tensor([token]))

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self.held is not None:
            self.held += text
            if not stream_end and not self.shape.settled(self.held):
                return
            text, self.held = self.shape.split(self.held)[1], None
        for token in self.special:
            text = text.replace(token, "")
        self.on_text(text)
