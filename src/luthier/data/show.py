"""One row as the model sees it, token by token."""

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

from luthier.data.readers import BadRow, read_rows
from luthier.data.rows import read_row
from luthier.data.template import TemplateRejects, pin_template
from luthier.data.tokens import Tokenizer
from luthier.errors import UserError
from luthier.events import OnEvent, ignore
from luthier.models.load import load_tokenizer


def encode_row(
    file: str,
    number: int,
    model: Path,
    template: str,
    train_on: str,
    on_event: OnEvent = ignore,
    columns: Mapping[str, str] | None = None,
    template_kwargs: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Row ``number`` (from 1) of ``file`` by the tokenizer of the folder ``model``; the rest as in a recipe.

    Returns:
        ``row`` (file and line), ``format``, ``columns`` of other names, ``template``, and ``tokens``: each with ``id``,
        ``text``, whether it is ``supervised`` and whether it is ``special``, and the ``part`` it is in: 1, or
        more where each answer is trained in a row of its own (``data.history``).

    Raises:
        UserError: there is no such row, or it cannot be trained on; the message says why.
    """
    if train_on not in ("completions", "all"):
        raise UserError(f"--train-on is completions or all, not '{train_on}'")
    item = next(islice(read_rows(file, on_event), number - 1, None), None)
    if item is None:
        count = sum(1 for _ in read_rows(file))
        raise UserError(f"{file} has no row {number}: it has {count}")
    tokenizer = load_tokenizer(model)
    chosen = pin_template(tokenizer, template, template_kwargs or {})
    try:
        if isinstance(item, BadRow):
            raise item
        origin, row = item
        layout, conversation = read_row(row, origin, columns)
        mode = cast("Literal['completions', 'all']", train_on)
        pieces = Tokenizer(tokenizer, mode).encode(conversation)
    except (BadRow, TemplateRejects) as error:
        raise UserError(f"this row cannot be trained on: {error}") from None
    special = set(tokenizer.get_added_vocab().values()) | set(tokenizer.all_special_ids)
    return {
        "row": str(conversation.origin),
        "format": layout.format,
        "columns": dict(layout.columns),
        "template": chosen if conversation.text is None else "none",
        "tokens": [
            {
                "id": token,
                "text": tokenizer.decode([token]),
                "supervised": supervised,
                "special": token in special,
                "part": part,
            }
            for part, piece in enumerate(pieces, start=1)
            for token, supervised in zip(piece.input_ids, piece.supervised, strict=True)
        ],
    }
