"""Which token comes next, for all rows of a batch at once; each row has random numbers of its own."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import RepetitionPenaltyLogitsProcessor, TopKLogitsWarper

_COLD = 1e-5  # below it, scores divided by a temperature would overflow
_LIKELY = 1024  # of the nucleus: sorting the full vocabulary takes as long as the model


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        temperature: 0 takes the most likely token each time (greedy).
        top_p: sample from the smallest set of tokens with this much probability.
        top_k: sample from this many most likely tokens; 0 for all.
        repetition_penalty: above 1, tokens seen before get less likely (Keskar et al. 2019).
        seed: of the random choices; the n-th prompt of a list, from 0, draws with ``seed + n``.
            None draws a new one each time.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    seed: int | None = None

    @property
    def greedy(self) -> bool:
        return self.temperature < _COLD

    def generator(self, draw: int) -> torch.Generator:
        """Random numbers; others for each ``draw``."""
        generator = torch.Generator()
        if self.seed is None:
            generator.seed()
        else:
            generator.manual_seed(self.seed + draw)
        return generator


def choose(
    logits: Tensor,
    sampling: Sampling,
    seen: Sequence[Sequence[int]],
    generators: Sequence[torch.Generator],
) -> list[int]:
    """The next token of each row by its ``logits`` (rows, V).

    The steps are those of Transformers' `generate`, in its order; a row draws what it would draw
    alone.

    Args:
        seen: all tokens of each row so far, its prompt among them.
        generators: of each row; not used where the choice is greedy.
    """
    scores = logits.float()
    if sampling.repetition_penalty != 1.0:
        scores = penalised(scores, sampling.repetition_penalty, seen)
    if sampling.greedy:
        best: list[int] = scores.argmax(-1).tolist()
        return best
    return draw(scores, sampling, generators)


def penalised(scores: Tensor, penalty: float, seen: Sequence[Sequence[int]]) -> Tensor:
    """``scores`` (rows, V) with the tokens that each row has ``seen`` less likely, above 1."""
    process = RepetitionPenaltyLogitsProcessor(penalty)
    rows = [
        process(torch.tensor([list(tokens)], device=scores.device), row[None].clone())
        for tokens, row in zip(seen, scores, strict=True)
    ]
    return torch.cat(rows)


def draw(scores: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """A token for each row of ``scores`` (rows, V), by chance."""
    scores = scores / sampling.temperature
    if 0 < sampling.top_k < scores.shape[-1]:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1.0:
        scores = nucleus(scores, sampling.top_p)
    # A race of exponential clocks: what `torch.multinomial` does, at a twentieth of its time.
    chances = scores.softmax(-1)
    clocks = torch.empty(chances.shape)
    for row, generator in zip(clocks, generators, strict=True):
        row.exponential_(1, generator=generator)
    drawn: list[int] = (chances / clocks.to(chances.device)).argmax(-1).tolist()
    return drawn


def nucleus(scores: Tensor, top_p: float) -> Tensor:
    """``scores`` (rows, V) with all but the most likely tokens of probability ``top_p`` at -inf.

    The token that passes ``top_p`` stays, and so one always does (Holtzman et al. 2020).
    """
    chances = scores.softmax(-1)
    vocabulary = scores.shape[-1]
    for count in (_LIKELY, vocabulary):
        values, tokens = chances.topk(min(count, vocabulary))
        before = values.cumsum(-1) - values
        if count >= vocabulary or bool((before[:, -1] >= top_p).all()):
            break
    dropped = before >= top_p
    dropped[:, 0] = False
    kept = scores.gather(-1, tokens).masked_fill(dropped, -torch.inf)
    return torch.full_like(scores, -torch.inf).scatter_(-1, tokens, kept)
