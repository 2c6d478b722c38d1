"""Tokens and passwords: found where they must not be kept, and masked where they would be shown."""

import os
import re
from collections.abc import Iterator
from functools import cache

_FORMS = re.compile(
    r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"  # https://user:password@host
    r"|\b(?:hf_[A-Za-z0-9]{20,}|gh[opsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|sk-[A-Za-z0-9_-]{20,}|AKIA[A-Z0-9]{16}|xox[abp]-[\w-]{10,})"
)
_SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|API_?KEY|CREDENTIAL", re.IGNORECASE)
_SHORTEST = 12  # characters; shorter values of such variables (0, true, a path) are not secrets
_MASK = "[secret]"


def holds_secret(text: str) -> bool:
    """Whether ``text`` holds a token, a password in a URL, or a secret of the environment."""
    return masked(text) != text


def masked(text: str) -> str:
    """``text`` with every secret in it replaced by ``[secret]``."""
    for value in _environment():
        text = text.replace(value, _MASK)
    return _FORMS.sub(_MASK, text)


def _environment() -> Iterator[str]:
    for name in filter(_may_be_secret, os.environ):
        value = os.environ.get(name, "")
        if len(value) >= _SHORTEST and not value.startswith("/"):
            yield value


@cache
def _may_be_secret(name: str) -> bool:
    """By the name of a variable; asked for all of them with each text."""
    return _SECRET_NAMES.search(name) is not None
