"""What would go wrong in silence: checks of data and model before the first step, on in every run.

What is surely wrong stops the run; what is only suspicious is said. The checks while it trains are in
``watch.py``.
"""

from collections.abc import Sequence
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from luthier.data.batches import IGNORED, collate, to_device
from luthier.data.template import TemplateRejects, stop_token_ids
from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.models.adapters import inner
from luthier.train.callbacks import Display
from luthier.train.trainer import LuthierTrainer

_SHOWN = 3  # examples in a message
_PROBE_ROWS, _PROBE_TOKENS = 4, 512  # of the loss that is computed twice


def check_rows(
    train: Sequence[TokenRow],
    validation: Sequence[TokenRow],
    tokenizer: PreTrainedTokenizerBase,
    display: Display,
) -> None:
    """Look through token rows for what no loss curve would show.

    Raises:
        UserError: a row has nothing to learn, begins twice, or no answer ever ends; or most rows of
            the validation set are trained on.
    """
    rows = [*train, *validation]
    silent = [row for row in rows if not any(row.supervised[1:])]
    if silent:
        raise UserError(
            f"{_count(silent, 'row')} learned from in no token (all are masked): {_places(silent)}; "
            "look at one with `luthier data show`, and leave them out or set data.train_on=all"
        )
    bos = tokenizer.bos_token_id
    doubled = [row for row in rows if bos is not None and row.input_ids[:2] == [bos, bos]]
    if doubled:
        raise UserError(
            f"{_count(doubled, 'row')} with the beginning-of-text token {tokenizer.bos_token!r} "
            f"twice: {_places(doubled)}; the template or the text writes it although the tokenizer "
            "adds it: take it out of one of them"
        )
    _check_ends(train, tokenizer, display)
    _check_leak(train, validation, display)


def _check_ends(
    train: Sequence[TokenRow], tokenizer: PreTrainedTokenizerBase, display: Display
) -> None:
    spoken = [row for row in train if row.conversation.messages]
    if not spoken:
        return
    try:
        stops = set(stop_token_ids(tokenizer))
    except TemplateRejects:  # a template that refuses a plain question and answer
        stops = {int(tokenizer.eos_token_id)}
    endless = [
        row
        for row in spoken
        if not any(
            counts and token in stops
            for token, counts in zip(row.input_ids, row.supervised, strict=True)
        )
    ]
    names = ", ".join(repr(tokenizer.decode([stop])) for stop in sorted(stops))
    if len(endless) == len(spoken):
        raise UserError(
            f"no answer ends with a token that ends an answer ({names}), so the model would never "
            "learn to stop; let data.template write {{ eos_token }} after each answer"
        )
    if len(endless) * 2 > len(spoken):
        display.note(
            f"doubtful: {len(endless):,} of {len(spoken):,} rows do not learn to end an answer "
            f"({names}); are they cut off by data.max_length?"
        )


def _check_leak(
    train: Sequence[TokenRow], validation: Sequence[TokenRow], display: Display
) -> None:
    trained = {hash(tuple(row.input_ids)) for row in train}
    leaked = [row for row in validation if hash(tuple(row.input_ids)) in trained]
    if not leaked:
        return
    said = (
        f"{len(leaked):,} of {len(validation):,} validation rows are trained on, to the token: "
        f"{_places(leaked)}"
    )
    if len(leaked) * 2 > len(validation):
        raise UserError(f"{said}; a validation loss of them means nothing: use other rows")
    display.note(f"doubtful: {said}; the validation loss is too good by them")


def check_embedding(
    model: PreTrainedModel | PeftModel, train: Sequence[TokenRow], tokenizer_size: int
) -> None:
    """Raise ``UserError`` where a token of the rows has no row in the embedding."""
    size = int(inner(model).get_input_embeddings().weight.shape[0])
    largest = max((max(row.input_ids) for row in train), default=0)
    if largest >= size:
        raise UserError(
            f"the data uses token {largest}, but the model's embedding has {size} rows (the tokenizer "
            f"knows {tokenizer_size} tokens): tokens were added without resizing the model; resize it "
            "and save it with the tokenizer first"
        )


def few_short(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """A few short rows, to compute a loss of in two ways; the beginning of one where all are long."""
    shortest = sorted(rows[:200], key=len)[:_PROBE_ROWS]
    chosen: list[TokenRow] = []
    for row in shortest:
        if sum(map(len, chosen)) + len(row) <= _PROBE_TOKENS:
            chosen.append(row)
    if not chosen and any(shortest[0].supervised[:_PROBE_TOKENS]):
        row = shortest[0]
        ids, supervised = row.input_ids[:_PROBE_TOKENS], row.supervised[:_PROBE_TOKENS]
        chosen = [TokenRow(ids, supervised, row.conversation)]
    return chosen


@torch.no_grad()
def base_loss(model: PreTrainedModel | PeftModel, rows: Sequence[TokenRow]) -> float:
    """Mean loss (nats a supervised token) the plain way: row by row, from all logits, no adapter."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
            for row in rows:
                ids = torch.tensor([row.input_ids], device=device)
                labels = torch.tensor(row.input_ids, device=device)
                labels[~torch.tensor(row.supervised, device=device)] = IGNORED
                logits: Tensor = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
                total += F.cross_entropy(logits, labels[1:], reduction="sum").item()
                count += int((labels[1:] != IGNORED).sum())
    finally:
        model.train(training)
    return total / count


@torch.no_grad()
def check_first_loss(trainer: LuthierTrainer, rows: Sequence[TokenRow], expected: float) -> None:
    """Compare the loss that training would report before its first step with ``base_loss``.

    Training's own way is what is compared: packed, fast paths in, divided by the step's tokens. A new
    adapter changes nothing, so both are the base model's.

    Raises:
        UserError: they differ by more than rounding.
    """
    model = trainer.model
    assert model is not None
    batch = to_device(collate([[row] for row in rows]), trainer.args.device)
    training = model.training
    model.eval()
    try:
        count = batch["predicts"].numel()
        loss = trainer.compute_loss(model, batch, num_items_in_batch=count).item()
    finally:
        model.train(training)
    loss /= trainer.accelerator.num_processes
    numbers = {p.dtype for p in model.parameters() if p.is_floating_point()}
    tolerance = 1e-3 if numbers <= {torch.float32} else 0.02
    if not abs(loss - expected) <= tolerance * (1 + abs(expected)):
        raise UserError(
            f"before the first step training's loss is {loss:.4f}, but the base model's own on the "
            f"same rows is {expected:.4f}: what trains is not the model that was loaded. Try "
            "`--set kernels.loss=false` and the other kernels to find the part, and report it"
        )


def _count(rows: Sequence[TokenRow], noun: str) -> str:
    return f"1 {noun} is" if len(rows) == 1 else f"{len(rows):,} {noun}s are"


def _places(rows: Sequence[TokenRow]) -> str:
    return _listed([str(row.conversation.origin) for row in rows])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
