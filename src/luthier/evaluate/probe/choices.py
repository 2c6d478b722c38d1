"""Multiple choice by likelihood, the prompt of each question computed once.

The choices hang off their prompt as branches of a tree: one sequence holds prompt, choice 1,
choice 2 …, and a mask lets a choice see its prompt and itself alone. Many questions share a
sequence, so that nothing is padded.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.events import OnEvent, ignore, tracked
from luthier.kernels.head import keeps_logits
from luthier.models.adapters import inner

_MOST_TOKENS = 768  # of a sequence; the mask has its square
_AGREES = 0.1  # of what it would change if all were seen: far above rounding


@dataclass(frozen=True)
class Question:
    """Token ids of a prompt, and of each choice after it; ``sizes`` are the choices' bytes."""

    prompt: list[int]
    choices: list[list[int]]
    sizes: list[int]

    @property
    def tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.choices))


@torch.no_grad()
def choice_scores(
    model: nn.Module,
    questions: Sequence[Question],
    task: str = "multiple choice",
    on_event: OnEvent = ignore,
) -> list[list[float]]:
    """Log-likelihood of each choice over its length in bytes, a list per question.

    score(c) = sum_t log p(c_t | prompt, c_<t) / bytes(c): ``acc_norm`` of EleutherAI's evaluation
    harness, which keeps long choices from losing for their length alone.

    Args:
        model: in evaluation mode. One that does not take the mask, or gives other likelihoods
            under it, is asked choice by choice.
        task: what this is, in the events about its progress.
    """
    together = bool(questions) and _takes_the_mask(model, _longest(questions))
    scores: list[list[float]] = [[] for _ in questions]
    for batch in tracked(_batches(questions), task, on_event, len(questions), "questions", len):
        sums = (_tree if together else _one_by_one)(model, [questions[i] for i in batch])
        for index, values in zip(batch, sums, strict=True):
            sizes = questions[index].sizes
            scores[index] = [value / size for value, size in zip(values, sizes, strict=True)]
    return scores


def _batches(questions: Sequence[Question]) -> Iterator[list[int]]:
    batch: list[int] = []
    tokens = 0
    for index, question in enumerate(questions):
        if batch and tokens + question.tokens > _MOST_TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(index)
        tokens += question.tokens
    if batch:
        yield batch


def _tree(
    model: nn.Module, questions: Sequence[Question], *, all_seen: bool = False
) -> list[list[float]]:
    """Sum of the log-likelihoods of each choice's tokens; ``all_seen`` hides nothing of the past."""
    ids: list[int] = []
    positions: list[int] = []
    owner: list[int] = []  # the question a token belongs to
    branch: list[int] = []  # 0 for its prompt, else the choice
    predicts: list[int] = []
    targets: list[int] = []
    for number, question in enumerate(questions):
        prompt_end = len(ids) + len(question.prompt) - 1
        for place, part in enumerate([question.prompt, *question.choices]):
            start, first = len(ids), len(question.prompt) if place else 0
            ids += part
            positions += range(first, first + len(part))
            owner += [number] * len(part)
            branch += [place] * len(part)
            if place:
                predicts += [prompt_end, *range(start, len(ids) - 1)]
                targets += part
    weight = next(model.parameters())
    device, dtype = weight.device, _compute_dtype(model)
    if all_seen:
        owner, branch = [0] * len(ids), [0] * len(ids)
    logits = _logits(model, ids, positions, _mask(owner, branch, device, dtype), predicts)
    chances = F.log_softmax(logits.float(), dim=-1)
    each = chances.gather(1, torch.tensor(targets, device=device)[:, None])[:, 0]
    lengths = [len(choice) for question in questions for choice in question.choices]
    sums = iter([part.double().sum().item() for part in each.split(lengths)])
    return [[next(sums) for _ in question.choices] for question in questions]


def _mask(owner: list[int], branch: list[int], device: torch.device, dtype: torch.dtype) -> Tensor:
    """(1, 1, T, T), added to the scores: 0 where a token sees another, else the least number."""
    who = torch.tensor(owner, device=device)
    part = torch.tensor(branch, device=device)
    place = torch.arange(len(owner), device=device)
    seen = who[:, None] == who[None]
    seen &= (part[None] == 0) | (part[:, None] == part[None])
    seen &= place[:, None] >= place[None]
    mask = torch.full(seen.shape, torch.finfo(dtype).min, dtype=dtype, device=device)
    return mask.masked_fill(seen, 0.0)[None, None]


def _compute_dtype(model: nn.Module) -> torch.dtype:
    # Under autocast, as in training, queries come in its dtype and a mask must match them.
    kind = next(model.parameters()).device.type
    if torch.is_autocast_enabled(kind):
        return torch.get_autocast_dtype(kind)
    dtype: torch.dtype = inner(model).get_input_embeddings().weight.dtype
    return dtype


def _logits(
    model: nn.Module, ids: list[int], positions: list[int], mask: Tensor | None, predicts: list[int]
) -> Tensor:
    device = next(model.parameters()).device
    inputs = {
        "input_ids": torch.tensor([ids], device=device),
        "position_ids": torch.tensor([positions], device=device),
        "use_cache": False,
    }
    if mask is not None:
        inputs["attention_mask"] = mask
    keep = torch.tensor(predicts, device=device)
    if keeps_logits(inner(model)):
        logits: Tensor = model(**inputs, logits_to_keep=keep).logits[0]
        return logits
    return model(**inputs).logits[0, keep]


def _one_by_one(model: nn.Module, questions: Sequence[Question]) -> list[list[float]]:
    """The reference: each choice after its prompt, alone."""
    sums = []
    for question in questions:
        values = []
        for choice in question.choices:
            ids = question.prompt + choice
            predicts = list(range(len(question.prompt) - 1, len(ids) - 1))
            logits = _logits(model, ids, list(range(len(ids))), None, predicts)
            chances = F.log_softmax(logits.float(), dim=-1)
            targets = torch.tensor(choice, device=logits.device)
            values.append(chances.gather(1, targets[:, None]).double().sum().item())
        sums.append(values)
    return sums


def _longest(questions: Sequence[Question]) -> Question:
    # A choice of one token is predicted from the prompt alone, whatever it may see.
    return max(questions, key=lambda question: sum(map(len, question.choices)))


def _takes_the_mask(model: nn.Module, question: Question) -> bool:
    """Whether likelihoods under the mask are those of the choices alone, up to rounding.

    Held against what they are when the same question and the other choices stand visible before.
    """
    (plain,) = _one_by_one(model, [question])
    try:
        _, tree = _tree(model, [question, question])
        _, leaking = _tree(model, [question, question], all_seen=True)
    except (TypeError, ValueError, RuntimeError, IndexError):
        return False
    return math.dist(tree, plain) <= _AGREES * math.dist(leaking, plain)
