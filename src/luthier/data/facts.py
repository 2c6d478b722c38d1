"""What is found out once about a tokenizer and its chat template, and remembered while both stay."""

from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from transformers import PreTrainedTokenizerBase

T = TypeVar("T")

_State = tuple[Any, ...]
_known: WeakKeyDictionary[PreTrainedTokenizerBase, tuple[_State, dict[Hashable, Any]]] = (
    WeakKeyDictionary()
)


def once(
    tokenizer: PreTrainedTokenizerBase,
    name: Hashable,
    find: Callable[[PreTrainedTokenizerBase], T],
) -> T:
    """``find(tokenizer)``, asked once for each ``name``; anew where the template or the tokens changed."""
    state = (
        tokenizer.chat_template,
        len(tokenizer),
        *tokenizer.special_tokens_map.items(),
    )
    found = _known.get(tokenizer)
    if found is None or found[0] != state:
        found = _known[tokenizer] = (state, {})
    facts = found[1]
    if name not in facts:
        facts[name] = find(tokenizer)
    value: T = facts[name]
    return value
