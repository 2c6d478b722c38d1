"""What a model's JSON files claim, looked at before a library acts on it: they come from anyone.

A library believes them: it makes as many labels or layers as a config says, and follows values of
the wrong type to an error that names no file. The usual file costs some milliseconds here.
"""

import json
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.models.pull import cache_folder
from luthier.models.tryout import suspicions, try_out

_LARGEST = 2**27  # bytes; the largest tokenizer.json of a published model has 34 MB
_DEEPEST = 64  # levels; published files have fewer than ten
_MOST_LABELS = 100_000
_MOST_LAYERS = 2_000
_MOST_EXPERTS = 100_000
_HIGHEST_ID = 2**28
# Weights in less than two bits do not exist; a model of two bytes a weight has a factor of one.
_LEAST_SHARE = 1 / 16
_SMALL = 2**28  # bytes of a model that does no harm whatever is beside it

# Type of each setting of tokenizer_config.json that a library believes; None stands for null.
_TOKEN = (str, dict, None)
_SETTINGS: dict[str, tuple[type | None, ...]] = {
    **dict.fromkeys(
        (
            *("bos_token", "eos_token", "unk_token", "pad_token"),
            *("sep_token", "cls_token", "mask_token"),
        ),
        _TOKEN,
    ),
    **dict.fromkeys(
        (
            *("add_bos_token", "add_eos_token", "add_prefix_space"),
            *("clean_up_tokenization_spaces", "split_special_tokens", "legacy"),
        ),
        (bool, None),
    ),
    **dict.fromkeys(("tokenizer_class", "padding_side", "truncation_side"), (str, None)),
    "model_max_length": (int, float, None),
    "chat_template": (str, list, dict, None),
    "added_tokens_decoder": (dict, None),
    "additional_special_tokens": (list, None),
    "extra_special_tokens": (list, dict, None),
    "auto_map": (dict, None),
}
_WORDS: dict[type | None, str] = {
    str: "text",
    dict: "an object",
    list: "a list",
    bool: "true or false",
    int: "a number",
    float: "a number",
    None: "null",
}


def check_config(folder: Path) -> None:
    """Refuse a config that would make a library build without end.

    Raises:
        UserError: config.json or generation_config.json is no JSON object, is nested too deeply, or
            claims what no model has.
    """
    for name in ("config.json", "generation_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        for key, value in _settings(_read(path), path):
            most = _most(key)
            if most is not None and isinstance(value, int | float) and value > most:
                raise UserError(
                    f"{path}: '{key}' is {value:g}, and no model has more than {most:,}; the file is "
                    "damaged, or was made to do harm"
                )


def check_size(folder: Path, config: Any) -> None:
    """Refuse a config that describes a far larger model than the weights beside it.

    Raises:
        UserError: both sizes are told.
    """
    names = ("hidden_size", "vocab_size", "num_hidden_layers", "intermediate_size")
    sizes = [size for name in names if isinstance(size := getattr(config, name, None), int)]
    if len(sizes) < len(names):
        return
    hidden, words, layers, inner = sizes
    claimed = 2 * (words * hidden + layers * (4 * hidden * hidden + 3 * hidden * inner))
    files = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    found = sum(path.stat().st_size for path in files)
    if found and claimed > max(found / _LEAST_SHARE, _SMALL):
        raise UserError(
            f"{folder / 'config.json'} describes a model of about {claimed / 2**30:,.1f} GiB, but "
            f"the weights beside it have {found / 2**30:,.2f} GiB; they do not belong together"
        )


def check_tokenizer(folder: Path) -> None:
    """Refuse a tokenizer that would mislead a library, or run without end.

    One that has parts no published tokenizer has is tried out in a process of its own, unless it is
    a known model that was pulled.

    Raises:
        UserError: a file is no JSON object, is nested too deeply or has a value of a wrong type;
            or the try-out failed.
    """
    check_config(folder)
    path = folder / "tokenizer_config.json"
    if path.is_file():
        _check_settings(_read(path), path)
    for name in ("special_tokens_map.json", "added_tokens.json"):
        if (folder / name).is_file():
            _read(folder / name)
    path = folder / "tokenizer.json"
    pulled = folder.resolve().parent == cache_folder().resolve()  # so it is a known one
    if path.is_file() and not pulled:
        stat = path.stat()
        _check_parts(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _check_parts(path: Path, _size: int, _changed: int) -> None:
    """Once for a file as it is: evaluations and servers open the same one again and again."""
    parts = _read(path)
    for token in _list_of(parts.get("added_tokens"), f"{path}: 'added_tokens'"):
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            raise UserError(f"{path}: an added token has no text: {str(token)[:80]}")
        number = token.get("id")
        if not isinstance(number, int) or not 0 <= number <= _HIGHEST_ID:
            raise UserError(
                f"{path}: the added token {token['content'][:40]!r} has the id {number}"
            )
    why = suspicions(parts)
    if why:
        try_out(path, why)


def _read(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    if size > _LARGEST:
        raise UserError(f"{path} has {size / 2**20:,.0f} MiB; no model needs more than 128")
    try:
        value = json.loads(path.read_bytes())
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, not {_kind(value)}")
    _check_depth(value, path)
    return value


def _check_depth(value: dict[str, Any], path: Path) -> None:
    level: list[Any] = [value]
    for _ in range(_DEEPEST):
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return
    raise UserError(f"{path} is nested too deeply: over {_DEEPEST} levels")


def _settings(value: Any, path: Path) -> Iterator[tuple[str, Any]]:
    """All keys and values, those of inner configs too."""
    for key, inner in value.items():
        yield key, inner
        if isinstance(inner, dict):
            yield from _settings(inner, path)


def _most(key: str) -> int | None:
    if key == "num_labels":
        return _MOST_LABELS
    if key.endswith(("layers", "layer", "blocks")):
        return _MOST_LAYERS
    return _MOST_EXPERTS if "experts" in key else None


def _check_settings(settings: dict[str, Any], path: Path) -> None:
    for key, kinds in _SETTINGS.items():
        if key in settings:
            _expect(settings[key], kinds, f"{path}: '{key}'")
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        _check_token(settings.get(key), f"{path}: '{key}'")
    for number, token in (settings.get("added_tokens_decoder") or {}).items():
        where = f"{path}: 'added_tokens_decoder'"
        if not number.isascii() or not number.isdigit() or int(number[:12]) > _HIGHEST_ID:
            raise UserError(f"{where} has '{number[:40]}' where the id of a token must be")
        _expect(token, (dict,), f"{where}, token {number}")
        _check_token(token, f"{where}, token {number}")
    for token in settings.get("additional_special_tokens") or []:
        _expect(token, (str, dict), f"{path}: a token of 'additional_special_tokens'")
    template = settings.get("chat_template")
    for named in template if isinstance(template, list) else []:
        if not isinstance(named, dict) or not all(
            isinstance(named.get(key), str) for key in ("name", "template")
        ):
            raise UserError(
                f"{path}: each entry of 'chat_template' needs the texts name and template"
            )
    for key in ("padding_side", "truncation_side"):
        if settings.get(key) not in (None, "left", "right"):
            raise UserError(f"{path}: '{key}' must be left or right, not {settings[key]!r:.60}")


def _check_token(token: Any, where: str) -> None:
    if isinstance(token, dict) and not isinstance(token.get("content"), str):
        raise UserError(f"{where} must have a text 'content'")


def _expect(value: Any, kinds: tuple[type | None, ...], where: str) -> None:
    for kind in kinds:
        if (value is None) if kind is None else isinstance(value, kind):
            # A bool is an int for Python, and for nobody else.
            if isinstance(value, bool) and bool not in kinds:
                break
            return
    wanted = " or ".join(dict.fromkeys(_WORDS[kind] for kind in kinds))
    raise UserError(f"{where} must be {wanted}, not {_kind(value)}")


def _list_of(value: Any, where: str) -> list[Any]:
    _expect(value, (list, None), where)
    return value or []


def _kind(value: Any) -> str:
    return next(
        (_WORDS[k] for k in (bool, str, dict, list, int, float) if isinstance(value, k)), "null"
    )
