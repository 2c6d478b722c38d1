"""Silent failures: checks of data and model before the first step, on in every run.

A certain fault stops the run; a suspicious finding is a warning. The checks while it trains are
in ``watch.py``.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from luthier.data.blocks import Block, in_blocks
from luthier.data.spans import stop_token_ids
from luthier.data.template import TemplateRejects
from luthier.data.thoughts import answer_shape
from luthier.data.tokens import TokenRow
from luthier.errors import UserError
from luthier.events import Note, OnEvent
from luthier.models.adapters import inner
from luthier.models.new_tokens import broken_marks

_SHOWN = 3  # examples in a message
_AT_ONCE = 4096  # rows of an embedding, so that no whole copy of it is made


def check_rows(
    train: Sequence[TokenRow],
    validation: Sequence[TokenRow],
    tokenizer: PreTrainedTokenizerBase,
    on_event: OnEvent,
) -> None:
    """Look through token rows for what no loss curve would show.

    Raises:
        UserError: a row has no trainable token or two beginning-of-text tokens, no answer ends,
            or most rows of the validation set are in the training set.
    """
    rows = [*train, *validation]
    bos = tokenizer.bos_token_id
    silent, doubled = [], []
    for block in in_blocks(rows):
        predicted = block.mask.copy()
        predicted[block.starts] = False
        silent += _chosen(rows, block, ~block.any(predicted))
        if bos is not None:
            begins = block.begins([bos, bos])
            doubled += _chosen(rows, block, begins)
    if silent:
        raise UserError(
            f"{_rows(silent)} no trainable token (all are masked): {_places(silent)}; look at one "
            "with `luthier data show`, and remove such rows or set data.train_on=all"
        )
    if doubled:
        raise UserError(
            f"{_rows(doubled)} the beginning-of-text token {tokenizer.bos_token!r} twice: "
            f"{_places(doubled)}; the template or the text contains it, and the tokenizer adds it: "
            "remove it from the template or the text"
        )
    _check_ends(train, tokenizer, on_event)
    _check_thoughts(train, tokenizer, on_event)
    _check_leak(train, validation, on_event)


def _check_ends(
    train: Sequence[TokenRow], tokenizer: PreTrainedTokenizerBase, on_event: OnEvent
) -> None:
    spoken = [row for row in train if row.spoken]
    if not spoken:
        return
    try:
        stops = set(stop_token_ids(tokenizer))
    except TemplateRejects:  # a template that refuses a plain question and answer
        stops = {int(tokenizer.eos_token_id)}
    endless, doubled = [], []
    for block in in_blocks(spoken):
        ends = np.isin(block.ids, list(stops)) & block.mask
        endless += _chosen(spoken, block, ~block.any(ends))
        twice = ends.copy()
        twice[1:] &= ends[:-1]
        twice[block.starts] = False
        doubled += _chosen(spoken, block, block.any(twice))
    if doubled:
        on_event(
            Note(
                f"{_rows(doubled)} the token that ends an answer twice in a row: {_places(doubled)}; the "
                "answer's text holds it, and the template writes it: remove it from the text",
                warning=True,
            )
        )
    names = ", ".join(repr(tokenizer.decode([stop])) for stop in sorted(stops))
    if len(endless) == len(spoken):
        raise UserError(
            f"no answer ends with a token that ends an answer ({names}), so the model would never "
            "learn to stop; let data.template write such a token after each answer ({{ eos_token }}, or "
            "the token that ends the model's own turns)"
        )
    if len(endless) * 2 > len(spoken):
        on_event(
            Note(
                f"{len(endless):,} of {len(spoken):,} rows have no token that ends the answer "
                f"({names}); are they cut off by data.max_length?",
                warning=True,
            )
        )


def _chosen(rows: Sequence[TokenRow], block: Block, where: NDArray[np.bool_]) -> list[TokenRow]:
    return [rows[block.first + place] for place in np.flatnonzero(where).tolist()]


def _check_thoughts(
    train: Sequence[TokenRow], tokenizer: PreTrainedTokenizerBase, on_event: OnEvent
) -> None:
    """Say where each answer begins with an empty thought that a switch would put into the prompt."""
    first = next((row.conversation for row in train if row.spoken), None)
    switch = "enable_thinking"
    if first is None or switch not in (tokenizer.chat_template or ""):
        return
    told = any("reasoning_content" in m or "</think>" in m["content"] for m in first.messages)
    if not told and "</think>" in answer_shape(tokenizer).lead:
        on_event(
            Note(
                "the chat template writes an empty thought before each answer, and the model learns to "
                f"write it; data.template_kwargs: {{{switch}: false}} puts it into the prompt"
            )
        )


def _check_leak(
    train: Sequence[TokenRow], validation: Sequence[TokenRow], on_event: OnEvent
) -> None:
    held_out = list(_token_hashes(validation))
    trained = set(held_out).intersection(_token_hashes(train))
    leaked = [row for row, each in zip(validation, held_out, strict=True) if each in trained]
    if not leaked:
        return
    said = (
        f"{len(leaked):,} of {len(validation):,} validation rows are in the training set, token for token: "
        f"{_places(leaked)}"
    )
    if len(leaked) * 2 > len(validation):
        raise UserError(f"{said}; their validation loss would mean nothing: use other rows")
    on_event(Note(f"{said}; this makes the validation loss look better than it is", warning=True))


def _token_hashes(rows: Sequence[TokenRow]) -> Iterator[bytes]:
    for block in in_blocks(rows):
        for ids in np.split(block.ids, block.starts[1:]):
            yield hashlib.blake2b(ids.tobytes(), digest_size=16).digest()


def check_embedding(
    model: PreTrainedModel | PeftModel, train: Sequence[TokenRow], tokenizer_size: int
) -> None:
    """Raise ``UserError`` where a token of the rows has no row in the embedding."""
    size = int(inner(model).get_input_embeddings().weight.shape[0])
    largest = max((int(block.ids.max()) for block in in_blocks(train)), default=0)
    if largest >= size:
        raise UserError(
            f"the data contains token id {largest}, but the model's embedding has {size} rows (the tokenizer "
            f"has {tokenizer_size} tokens): tokens were added without resizing the model; resize it "
            "and save it with the tokenizer first"
        )


def check_marks(tokenizer: PreTrainedTokenizerBase, on_event: OnEvent) -> None:
    """Warn of marks of turns in the chat template that are no tokens of this model."""
    broken = broken_marks(tokenizer)
    if broken:
        mark, pieces = next(iter(broken.items()))
        wanted = ", ".join(repr(each) for each in broken)
        on_event(
            Note(
                f"the chat template writes {_listed(list(broken))}, which this tokenizer has no token "
                f"for (it splits {mark} into {pieces}); add and train them with "
                f"data.add_tokens=[{wanted}], or use another data.template",
                warning=True,
            )
        )


def check_untrained_tokens(
    model: PreTrainedModel | PeftModel,
    train: Sequence[TokenRow],
    tokenizer: PreTrainedTokenizerBase,
    on_event: OnEvent,
) -> None:
    """Warn of added tokens in the rows whose embeddings nobody has trained, and this run does not.

    Rows that were added to an embedding begin as its mean (Transformers), or as zeros.
    """
    table = inner(model).get_input_embeddings()
    if any(parameter.requires_grad for parameter in table.parameters()):
        return
    wanted = np.fromiter(tokenizer.get_added_vocab().values(), np.int64)
    used = [wanted[np.isin(wanted, block.ids)] for block in in_blocks(train)]
    added: list[int] = np.unique(np.concatenate([wanted[:0], *used])).tolist()
    if not added:
        return
    rows = table.weight.detach()
    centre = sum(part.float().sum(0) for part in rows.split(_AT_ONCE)) / len(rows)
    usual = (rows[:: max(1, len(rows) // 1000)].float() - centre).norm(dim=-1).median()
    apart = (rows[added].float() - centre).norm(dim=-1)
    empty = rows[added].float().norm(dim=-1) == 0
    new = [t for t, far, zero in zip(added, apart, empty, strict=True) if far < usual / 20 or zero]
    if new:
        names = [str(tokenizer.convert_ids_to_tokens(token)) for token in new]
        on_event(
            Note(
                f"the embeddings of {_listed(names)} look untrained, and this run does not train them, "
                "so the model may not learn to write them; name them in data.add_tokens",
                warning=True,
            )
        )


def _rows(rows: Sequence[TokenRow]) -> str:
    return "1 row has" if len(rows) == 1 else f"{len(rows):,} rows have"


def _places(rows: Sequence[TokenRow]) -> str:
    return _listed([str(row.origin) for row in rows])


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
