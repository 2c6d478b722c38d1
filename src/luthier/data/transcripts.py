"""Conversations that are written out in one text, as Anthropic's HH-RLHF has its pairs."""

import re

from luthier.data.conversation import Message

_MARK = re.compile(r"(?:^|\n\n)(Human|Assistant):[ ]?")
_ROLES = {"Human": "user", "Assistant": "assistant"}


def transcript(text: str) -> list[Message] | None:
    """The turns of ``\\n\\nHuman: … \\n\\nAssistant: …``; None where the text does not begin with one."""
    begin, *parts = _MARK.split(text)
    if begin.strip() or not parts:
        return None
    return [
        {"role": _ROLES[who], "content": said.strip()}
        for who, said in zip(parts[::2], parts[1::2], strict=True)
    ]
