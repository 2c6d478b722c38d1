"""YAML from anywhere: plain data only, no key twice, no endless aliases."""

from typing import Any

import yaml

from luthier.errors import UserError

# Aliases (*name) repeat what they stand for: a few lines can unfold into more than fits anywhere.
_MOST_VALUES = 100_000


def parse_yaml(text: str, origin: str) -> Any:
    """The value of a YAML document, None for an empty one; ``origin`` names it in messages.

    Raises:
        UserError: it is not YAML, holds a key twice, asks for objects, refers to itself, unfolds to
            over 100,000 values, or contains something that is not text (a null character, half a surrogate pair).
    """
    try:
        loader = _Loader(text)
    except yaml.YAMLError as error:  # it holds control characters
        raise UserError(f"{origin}: not valid YAML: {error}") from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _unfolded(node, {}) > _MOST_VALUES:
            raise UserError(f"{origin}: its aliases expand to over {_MOST_VALUES:,} values")
        value = loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{origin}, line {mark.line + 1}" if mark else origin
        raise UserError(f"{place}: not valid YAML: {getattr(error, 'problem', error)}") from None
    except RecursionError:
        raise UserError(f"{origin}: nested too deeply") from None
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        # What PyYAML raises over `2026-99-99`, a number of 5,000 digits, `!!bool x` …
        raise UserError(f"{origin}: a value cannot be read: {error}") from None
    finally:
        loader.dispose()
    _check_text(value, origin)
    return value


class _Loader(yaml.SafeLoader):
    """YAML lets a later duplicate key win in silence; here it is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key_node.value, str):
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key '{key_node.value}' appears twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


def _unfolded(node: Any, sizes: dict[int, int | None]) -> int:
    """How many values a node represents when its aliases are written out."""
    known = sizes.get(id(node), 0)
    if known is None:
        raise yaml.constructor.ConstructorError(
            None, None, "a value contains itself", node.start_mark
        )
    if known:
        return known
    sizes[id(node)] = None  # in the making
    children: list[Any] = []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    size = 1 + sum(_unfolded(child, sizes) for child in children)
    sizes[id(node)] = size
    return size


def _check_text(value: Any, origin: str) -> None:
    stack = [value]
    while stack:
        each = stack.pop()
        if isinstance(each, dict):
            stack += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set):
            stack += each
        elif isinstance(each, str) and ("\0" in each or not _encodes(each)):
            raise UserError(f"{origin}: {each[:40]!r} contains something that is not text")


def _encodes(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
