"""Which token comes next: one request's own settings, its own random numbers."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from luthier.generate.sampling import Sampling, draw, penalised
from luthier.serve.grammar import Grammar


@dataclass(frozen=True)
class Choice:
    """How a request wants its tokens chosen.

    Attributes:
        sampling: as `luthier generate` takes it.
        presence_penalty: taken from the logit of every token that the answer has already.
        frequency_penalty: the same, times how often it has it.
        logit_bias: added to logits, by token id.
        top_logprobs: how many alternatives to report; None for no log-probabilities at all.
    """

    sampling: Sampling = field(default_factory=Sampling)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    top_logprobs: int | None = None


@dataclass(frozen=True)
class Chosen:
    """A token, its log-probability under the model itself, and the most likely ones there."""

    token: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


class Chooser:
    """Chooses the tokens of one answer.

    The steps are those of Transformers' `generate`, in its order, and with the same seed they draw
    the same tokens for one prompt. What others in the batch do changes nothing.
    """

    def __init__(self, choice: Choice, prompt: list[int], grammar: Grammar | None) -> None:
        self.choice = choice
        self.grammar = grammar
        self._seen = list(prompt)
        self._counts: dict[int, int] = {}
        self._random = choice.sampling.generator(0)

    def choose(self, logits: Tensor) -> Chosen:
        """The next token by its ``logits`` (V,), in whatever dtype the model gives them."""
        raw = logits.to(device="cpu", dtype=torch.float32, copy=True)
        scores = self._adjusted(raw)
        sampling = self.choice.sampling
        if sampling.greedy:
            token = int(scores.argmax())
        else:
            (token,) = draw(scores[None], sampling, [self._random])
        self._seen.append(token)
        self._counts[token] = self._counts.get(token, 0) + 1
        if self.grammar is not None:
            self.grammar.accept(token)
        return self._report(raw, token)

    def _adjusted(self, raw: Tensor) -> Tensor:
        choice, scores = self.choice, raw.clone()
        if choice.sampling.repetition_penalty != 1.0:
            penalty = choice.sampling.repetition_penalty
            scores = penalised(scores[None], penalty, [self._seen])[0]
        if self._counts and (choice.presence_penalty or choice.frequency_penalty):
            counts = torch.tensor(list(self._counts.values()), dtype=torch.float32)
            scores[list(self._counts)] -= (
                choice.presence_penalty + choice.frequency_penalty * counts
            )
        if choice.logit_bias:
            scores[list(choice.logit_bias)] += torch.tensor(list(choice.logit_bias.values()))
        if self.grammar is not None:
            scores.masked_fill_(~self.grammar.allowed(len(scores)), -torch.inf)
        return scores

    def _report(self, raw: Tensor, token: int) -> Chosen:
        wanted = self.choice.top_logprobs
        if wanted is None:
            return Chosen(token)
        logprobs = raw.log_softmax(-1)
        values, tokens = logprobs.topk(wanted) if wanted else (raw[:0], raw[:0].long())
        top = tuple(zip(tokens.tolist(), values.tolist(), strict=True))
        return Chosen(token, float(logprobs[token]), top)
