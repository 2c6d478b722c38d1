"""Pairs of token rows, preference rows of files, and the plain way to log-probabilities."""

import random
from typing import Any

import torch
from torch import Tensor, nn

from luthier.data.conversation import Conversation, Origin
from luthier.data.tokens import TokenRow


def token_row(prompt: list[int], answer: list[int], **extra: Any) -> TokenRow:
    mask = [False] * len(prompt) + [True] * len(answer)
    return TokenRow([*prompt, *answer], mask, Conversation(Origin("f", 1), text="x", extra=extra))


def random_pairs(count: int, seed: int = 0, vocabulary: int = 96) -> list[TokenRow]:
    """Chosen and rejected rows by turns, with a prompt in common."""
    draw = random.Random(seed)

    def ids(least: int, most: int) -> list[int]:
        return [draw.randrange(1, vocabulary) for _ in range(draw.randint(least, most))]

    rows = []
    for _ in range(count):
        prompt = ids(2, 8)
        rows += [token_row(prompt, ids(1, 9)), token_row(prompt, ids(1, 9))]
    return rows


def plain_log_probs(model: nn.Module, row: TokenRow) -> Tensor:
    """log p of each token of ``row`` but the first (n - 1,), from all logits of the row alone."""
    ids = torch.tensor([row.input_ids])
    logits = model(input_ids=ids).logits[0, :-1].float()
    return torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0]


def plain_sum(model: nn.Module, row: TokenRow) -> Tensor:
    """log p of the answer of ``row``."""
    return plain_log_probs(model, row)[torch.tensor(row.supervised[1:])].sum()


def preference_rows(count: int = 24) -> list[dict[str, str]]:
    """Pairs that prefer counting up to counting down."""
    rows = []
    for n in range(count):
        up = " ".join(str(n + i) for i in range(2 + n % 5))
        down = " ".join(str(n - i) for i in range(2 + n % 4))
        rows.append({"prompt": f"Count from {n}", "chosen": up, "rejected": down})
    return rows


def labelled_rows(count: int = 24) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for row in preference_rows(count // 2):
        for key, label in (("chosen", True), ("rejected", False)):
            rows.append({"prompt": row["prompt"], "completion": row[key], "label": label})
    return rows
