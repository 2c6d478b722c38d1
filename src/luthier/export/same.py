"""Is the merged model the one that was trained? Logits and loss of both on the same rows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.data.batches import by_length, collate
from luthier.data.conversation import Conversation, Origin
from luthier.data.prepare import held_out, tokenise, trained_on
from luthier.data.split import sample
from luthier.data.tokens import Tokenizer, TokenRow
from luthier.errors import UserError
from luthier.events import Note, OnEvent, ignore, tracked
from luthier.kernels.nf4 import is_4bit
from luthier.kernels.separation import rows_stay_apart
from luthier.models.load import load_tokenizer
from luthier.objectives.supervised import supervised_logits
from luthier.run import Run

_BATCH = 8
_OURS = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("Count from one to five.", "One, two, three, four, five."),
    ("Name a colour of the rainbow.", "Red is the first colour of the rainbow."),
    ("How many days are there in a week?", "There are seven days in a week."),
    ("Write a line of Python that prints hello.", 'print("hello")'),
    ("What do bees make?", "Bees make honey and wax."),
    ("Translate 'good morning' into Spanish.", "Buenos días."),
    ("What is 12 times 3?", "12 times 3 is 36."),
)
_KEPT = 256  # positions whose logits are kept: 256 k words of Gemma make 0.25 GiB


@dataclass(frozen=True)
class Difference:
    """How far one model's outputs are from another's, on the same supervised tokens.

    Attributes:
        loss_before: nats per supervised token.
        logits: most and mean absolute difference, over ``positions`` positions and the vocabulary.
        kl: mean Kullback-Leibler divergence, nats per token, of the second from the first.
        same_top: share of positions with the same most likely token.
        arithmetic: dtype in which both were computed.
    """

    rows: int
    tokens: int
    loss_before: float
    loss_after: float
    positions: int
    logits_max: float
    logits_mean: float
    kl: float
    same_top: float
    arithmetic: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Outputs:
    """Loss (nats per supervised token) over all rows, and logits (P, vocabulary) of the first ones."""

    loss: float
    tokens: int
    logits: Tensor


def rows_of(run: Run, on_event: OnEvent = ignore) -> Sequence[Conversation]:
    """Validation rows of a run, its training rows, or rows of ours for a run that has kept none."""
    rows = held_out(run, on_event) or trained_on(run, on_event)
    if rows:
        return rows
    on_event(
        Note(f"{run.root.name} keeps no rows, so outputs are compared on {len(_OURS)} of ours")
    )
    talks = run.provenance().learned_turns
    return [_own_row(number, *row, talks) for number, row in enumerate(_OURS, 1)]


def _own_row(number: int, question: str, answer: str, talks: bool) -> Conversation:
    origin = Origin("luthier", number)
    if not talks:
        return Conversation(origin, text=f"{question}\n{answer}")
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": answer})
    return Conversation(origin, turns)


def check_rows(run: Run, limit: int, on_event: OnEvent = ignore) -> list[TokenRow]:
    """The rows of ``rows_of`` as tokens, ``limit`` of them at most."""
    recipe = run.recipe()
    rows = rows_of(run, on_event)
    tokenizer = load_tokenizer(run.weights_path(recipe), recipe.model.trust_remote_code)
    chosen = sample(rows, limit, recipe.train.seed)
    tokens = tokenise(chosen, recipe.data, Tokenizer(tokenizer, recipe.data.train_on))
    if not any(any(row.supervised) for row in tokens):
        raise UserError(f"{run.root} has no rows to compare on; use --check-rows 0")
    return tokens


@torch.no_grad()
def outputs(
    model: Any, rows: Sequence[TokenRow], task: str = "outputs", on_event: OnEvent = ignore
) -> Outputs:
    """What ``model`` makes of ``rows``; ``task`` is what this is, in the events of its progress."""
    device = next(model.parameters()).device
    model.eval()
    packed = rows_stay_apart(model)
    total, tokens = 0.0, 0
    kept: list[Tensor] = []
    groups = by_length(rows, _BATCH if packed else 1)
    for group in tracked(groups, task, on_event, len(rows), size=len):
        logits, targets = supervised_logits(model, collate([group]).to(device))
        logits = logits.float()
        total += F.cross_entropy(logits, targets, reduction="sum").item()
        room = _KEPT - sum(len(piece) for piece in kept)
        if room > 0:
            kept.append(logits[:room].cpu())
        tokens += len(targets)
    return Outputs(total / tokens, tokens, torch.cat(kept))


def difference(before: Outputs, after: Outputs, rows: int, arithmetic: str) -> Difference:
    """``after`` against ``before``."""
    gap = (before.logits - after.logits).abs()
    p, q = before.logits.log_softmax(-1), after.logits.log_softmax(-1)
    kl = F.kl_div(q, p, reduction="batchmean", log_target=True).item()
    same = (before.logits.argmax(-1) == after.logits.argmax(-1)).float().mean().item()
    return Difference(
        rows=rows,
        tokens=before.tokens,
        loss_before=before.loss,
        loss_after=after.loss,
        positions=len(gap),
        logits_max=gap.max().item(),
        logits_mean=gap.mean().item(),
        kl=max(kl, 0.0),
        same_top=same,
        arithmetic=arithmetic,
    )


def exact_arithmetic(model: nn.Module) -> str:
    """Let ``model`` compute in float32 where it is on a CPU; its stored weights keep their values.

    On a GPU it stays as it is: float32 weights might not fit where the run's own did.

    Returns:
        the name of the dtype it computes in.
    """
    first = next(p for p in model.parameters() if p.is_floating_point())
    if first.device.type != "cpu":
        return str(first.dtype).removeprefix("torch.")
    for module in model.modules():
        if is_4bit(module):
            module.compute_dtype = torch.float32
            module.compute_type_is_set = True
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            tensor.data = tensor.data.float()
    return "float32"
