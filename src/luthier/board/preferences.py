"""Answers that a person preferred, as rows that preference training reads."""

import json
from collections.abc import Sequence
from typing import Any

from luthier.board.folders import Folders
from luthier.errors import UserError


def prefer(
    folders: Folders,
    prompts: Sequence[list[dict[str, Any]]],
    answers: Sequence[str],
    best: int,
) -> int:
    """Keep the answer ``best`` as chosen, and each other one to the same prompt as rejected.

    A row is ``prompt`` (the turns before the answer), ``chosen`` and ``rejected`` (a turn each), the
    form of TRL. An answer to another prompt, as the earlier answers of a conversation differ, or an
    equal answer, is no pair.

    Returns:
        how many pairs were kept.

    Raises:
        UserError: the file cannot be written.
    """
    rows = [
        {
            "prompt": prompts[best],
            "chosen": [{"role": "assistant", "content": answers[best]}],
            "rejected": [{"role": "assistant", "content": answer}],
        }
        for number, answer in enumerate(answers)
        if number != best and prompts[number] == prompts[best] and answer != answers[best]
    ]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path = folders.preferences
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:  # one write of whole lines
            file.write(text)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error
    return len(rows)
