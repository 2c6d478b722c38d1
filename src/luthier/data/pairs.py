"""Rows that tell good answers from bad ones: pairs of two answers, and single answers with a label.

A pair becomes two token rows, one after the other: the prompt with the chosen answer, and the same
prompt with the rejected one. Each is tokenised and masked as any conversation is; only its last turn
is learned.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from luthier.data.conversation import Conversation
from luthier.data.readers import BadRow
from luthier.data.template import TemplateRejects
from luthier.data.tokens import TokenRow, cut
from luthier.errors import UserError
from luthier.recipe import ObjectiveGroup

_TRUTHS = {"true": True, "1": True, "false": False, "0": False}


def check_format(
    file: str, found: str, row: dict[str, Any], objective: ObjectiveGroup, detected: bool
) -> None:
    """See that a row of the format ``found`` is what ``objective`` learns from.

    Args:
        detected: the recipe left the format to us.

    Raises:
        UserError: they are not; the message says which objective they are for.
    """
    name, wanted = objective.name, objective.learns_from
    if wanted == "answers":
        if found == "preference":
            raise UserError(
                f"{file} holds preference pairs (chosen and rejected), and the objective {name} learns "
                "from answers: to learn the preference set objective.name=dpo (docs/preference.md); to "
                f"train on the chosen answers: luthier data convert {file} --to prompt_completion "
                "--out chosen.jsonl (or --to messages, if there are several turns)"
            )
        # TRL's form for KTO. Learned as answers, the bad ones would be learned, too.
        if detected and found == "prompt_completion" and isinstance(row.get("label"), bool):
            raise UserError(
                f"{file} holds answers with a label (true or false), and the objective {name} would learn "
                "the bad ones, too: set objective.name=kto (docs/preference.md), or "
                "data.format=prompt_completion if the label means something else"
            )
        return
    if found == "preference":
        return
    if wanted == "pairs":
        kto = "; answers with a label are for objective.name=kto" if "label" in row else ""
        raise UserError(
            f"{file} holds rows of the format {found}, and the objective {name} learns from pairs: rows "
            f"with 'chosen' and 'rejected' (docs/preference.md){kto}"
        )
    if found == "text" or "label" not in row:
        raise UserError(
            f"{file} holds rows of the format {found} without a label, and the objective {name} learns "
            "from answers that are labelled: rows with 'prompt', 'completion' and 'label' (true or "
            "false), or pairs of 'chosen' and 'rejected' (docs/preference.md)"
        )


def judged(row: Conversation, objective: ObjectiveGroup) -> list[Conversation]:
    """What ``objective`` learns from a row: itself, or for kto both answers of a pair apart.

    Raises:
        BadRow: it lacks its last answer or its label, or has turns that differ before the last.
    """
    if objective.learns_from == "answers":
        return [row]
    if not row.messages or row.messages[-1]["role"] != "assistant":
        raise BadRow(row.origin, "the last turn is not an answer")
    if objective.learns_from == "pairs":
        if row.rejected is None:
            raise BadRow(row.origin, "there is no rejected answer")
        return [row]
    if row.rejected is None:
        return [_with_label(row, label_of(row))]
    worse = replace(row, messages=(*row.messages[:-1], row.rejected), rejected=None)
    return [_with_label(replace(row, rejected=None), True), _with_label(worse, False)]


def label_of(row: Conversation) -> bool:
    """The label of a row for kto: whether its answer is a good one.

    Raises:
        BadRow: it has none, or one that is neither true nor false.
    """
    given = row.extra.get("label")
    found = _TRUTHS.get(str(given).strip().lower())
    if found is None:
        raise BadRow(row.origin, f"'label' is {given!r}, not true or false")
    return found


def _with_label(row: Conversation, label: bool) -> Conversation:
    return replace(row, extra={**row.extra, "label": label})


def sides(row: Conversation) -> list[Conversation]:
    """The conversations that a row of pairs or labels is tokenised as: chosen and rejected, or one.

    Earlier answers do not count.
    """
    before = tuple(_silent(message) for message in row.messages[:-1])
    answers = [row.messages[-1]] if row.rejected is None else [row.messages[-1], row.rejected]
    return [
        replace(row, messages=(*before, {**answer, "train": True}), rejected=None)
        for answer in answers
    ]


def _silent(message: dict[str, Any]) -> dict[str, Any]:
    return {**message, "train": False} if message["role"] == "assistant" else message


def together(
    rows: Sequence[Conversation], encoded: Iterator[list[TokenRow] | TemplateRejects]
) -> Iterator[list[TokenRow] | TemplateRejects]:
    """Of each row its token rows (chosen, then rejected), or why one of them was refused.

    Args:
        encoded: of each of their ``sides``, in order.
    """
    for index, row in enumerate(rows):
        parts = [next(encoded) for _ in sides(row)]
        refused = next((part for part in parts if isinstance(part, TemplateRejects)), None)
        if refused is not None:
            yield refused
        else:
            # One answer is learned, so each side is one token row; it belongs to the pair.
            whole = [
                piece for part in parts if not isinstance(part, TemplateRejects) for piece in part
            ]
            yield [piece.of_row(rows, index) for piece in whole]


def fitting(
    pieces: Sequence[TokenRow], max_length: int, truncate: bool
) -> tuple[list[TokenRow], list[TokenRow]]:
    """Both sides of a pair within ``max_length``, or neither, and those that were longer."""
    too_long = [piece for piece in pieces if len(piece) > max_length]
    if not too_long:
        return list(pieces), []
    kept = [short for piece in pieces for short in cut(piece, max_length)] if truncate else []
    return (kept if len(kept) == len(pieces) else []), too_long


def with_mismatched(rows: Sequence[TokenRow], max_length: int) -> list[TokenRow]:
    """For kto: each row, followed by its prompt with the answer of an earlier row.

    Those estimate how far the model is from the reference (Ethayarajh et al. 2024, section 4.1; TRL
    shifts the answers by one within a batch). Neighbours with the same prompt are passed over.
    """
    prompts, answers = zip(*map(_parts, rows), strict=True) if rows else ((), ())
    found: list[TokenRow] = []
    for index, row in enumerate(rows):
        others = (index - step for step in range(1, len(rows)))
        other = next((i for i in others if prompts[i] != prompts[index]), index - 1)
        ids = [*prompts[index], *answers[other]][:max_length]
        mask = [False] * len(prompts[index]) + [True] * (len(ids) - len(prompts[index]))
        found += [row, row.with_tokens(ids, mask)]
    return found


def _parts(row: TokenRow) -> tuple[list[int], list[int]]:
    """The tokens of the prompt, and those of the answer with what the template writes after it."""
    start = list(row.supervised).index(True)
    return list(row.input_ids[:start]), [
        token for token, counts in zip(row.input_ids, row.supervised, strict=True) if counts
    ]
