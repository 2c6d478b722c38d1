"""What is found out once about a tokenizer and its chat template, and remembered while both stay."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

_State = tuple[Any, ...]
_known: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[_State, dict[Hashable, Any]]] = (
    WeakKeyDictionary()
)
_held: list[tuple[PreTrainedTokenizerBase, dict[Hashable, Any]]] = []


def once(
    tokenizer: PreTrainedTokenizerBase,
    name: Hashable,
    find: Callable[[PreTrainedTokenizerBase], T],
) -> T:
    """``find(tokenizer)``, asked once for each ``name``; anew where the template or the tokens changed."""
    facts = next((kept for held, kept in _held if held is tokenizer), None)
    if facts is None:
        facts = _facts(tokenizer)
    if name not in facts:
        facts[name] = find(tokenizer)
    value: T = facts[name]
    return value


@contextmanager
def unchanged(tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Within it nobody changes ``tokenizer``: to look whether somebody did takes longer than most facts."""
    held = (tokenizer, _facts(tokenizer))
    _held.append(held)
    try:
        yield
    finally:
        _held.remove(held)


def _facts(tokenizer: PreTrainedTokenizerBase) -> dict[Hashable, Any]:
    state = (
        tokenizer.chat_template,
        len(tokenizer),
        *tokenizer.special_tokens_map.items(),
    )
    found = _known.get(tokenizer)
    if found is None or found[0] != state:
        found = _known[tokenizer] = (state, {})
    return found[1]
