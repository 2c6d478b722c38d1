"""Which files of a folder are the rows to read: of a data set's split, or all of them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

from luthier.data.cards import Config, read_configs
from luthier.data.kinds import endings, kind_of
from luthier.errors import UserError
from luthier.events import Note, OnEvent

# Descriptions found beside data on the hub and in LLaMA-Factory's folders; no rows in them.
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_HELD_OUT = ("test", "validation", "valid", "val", "dev", "eval")


def is_data(path: Path) -> bool:
    """Whether ``path`` is a file that may hold rows, by its name."""
    return kind_of(path.name) is not None and path.name not in _NOT_DATA and path.is_file()


def files_of_folder(
    folder: Path, name: str, wanted: str | None, on_event: OnEvent, *, from_hub: bool = False
) -> list[Path]:
    """The files of ``folder``, which is ``name`` to the user, sorted.

    A folder of ``save_to_disk``, one whose README describes configurations, and what comes
    ``from_hub`` give their ``train`` split; another folder all files, but not those that are named
    as held out beside others for training. What is left out is said. Sub-folders that each hold the
    shards of splits are configurations, of which one is read.

    Args:
        wanted: a split, a configuration, or ``configuration/split``.

    Raises:
        UserError: there is nothing to read, or not what is wanted, or a choice that is the user's.
    """
    saved, configs = _saved(folder), read_configs(folder)
    files = _below(folder, name)
    if saved is not None:
        chosen = _of_saved(saved, files, name, wanted)
    elif configs:
        chosen = _of_config(configs, folder, files, name, wanted)
    elif apart := _undescribed(files, folder):
        chosen = _of_undescribed(apart, folder, name, wanted)
    else:
        chosen = _by_names(files, folder, name, wanted, from_hub)
    if len(chosen) < len(files):
        others = [str(file.relative_to(folder)) for file in files if file not in chosen]
        on_event(
            Note(
                f"{name}: {len(chosen)} of its {len(files)} data files are read "
                f"({wanted or 'its train split'}); not read: {_few(others)}"
            )
        )
    return chosen


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _below(folder: Path, name: str) -> list[Path]:
    root = folder.resolve()
    if root.parent.name == "snapshots":  # the hub's cache: its files are links into its blobs
        root = root.parent.parent
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if is_data(path)
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    ]
    if not files:
        raise UserError(f"{name} has no data file: their names end in {endings()}")
    for path in files:
        if not path.resolve().is_relative_to(root):
            raise UserError(
                f"{path} is a link to a file outside its folder, {path.resolve()}; name that file itself if "
                "you mean it"
            )
    return files


def _saved(folder: Path) -> dict[str, list[Path]] | None:
    """Files by split of a folder that ``datasets`` saved with ``save_to_disk``; None for others."""
    splits = _json_object(folder / "dataset_dict.json").get("splits")
    if isinstance(splits, list):
        return {str(split): _arrow_files(folder / str(split)) for split in splits}
    state = _json_object(folder / "state.json")
    return {str(state.get("_split")): _arrow_files(folder)} if "_data_files" in state else None


def _arrow_files(folder: Path) -> list[Path]:
    """The files of a data set's state; others beside them are caches."""
    listed = _json_object(folder / "state.json").get("_data_files")
    names = [entry.get("filename") for entry in listed or () if isinstance(entry, dict)]
    return [folder / name for name in names if isinstance(name, str)]


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _of_saved(
    saved: dict[str, list[Path]], files: list[Path], name: str, wanted: str | None
) -> list[Path]:
    if wanted is None and len(saved) == 1:
        (listed,) = saved.values()
    else:
        listed = saved[_split_among(list(saved), wanted or "train", name)]
    missing = [path for path in listed if path not in files]
    if missing or not listed:
        what = f"lacks {missing[0].name}" if missing else "lists no files"
        raise UserError(f"{name} is a saved data set that {what}; save it again")
    return listed


def _of_config(
    configs: list[Config], folder: Path, files: list[Path], name: str, wanted: str | None
) -> list[Path]:
    names = [config.name for config in configs]
    first, _, rest = (wanted or "").partition("/")
    split: str | None
    if first in names:
        config, split = configs[names.index(first)], rest or None
    else:
        default = [each for each in configs if each.default] or configs
        if len(default) > 1:
            raise UserError(
                f"{name} has several configurations ({', '.join(names)}) and names no default; choose "
                f"one, as in {name}:{names[0]}"
            )
        config, split = default[0], wanted
    base = folder / config.folder if config.folder else folder
    patterns = ["**"]
    if config.splits:
        patterns = config.splits[_split_among(list(config.splits), split or "train", name)]
    found = {path for pattern in patterns for path in _matching(base, pattern)}
    chosen = [file for file in files if not found.isdisjoint((file, *file.parents))]
    if not chosen:
        raise UserError(
            f"{name}: its README names {', '.join(patterns)} in {config.folder or 'its folder'}, but "
            f"there is no such file whose name ends in {endings()}"
        )
    return chosen if config.splits else _by_names(chosen, folder, name, split, from_hub=True)


# As `datasets` writes them to the hub: a split, and a number of how many.
_SHARD = re.compile(rf"(train|{'|'.join(_HELD_OUT)})[^/]*-\d{{5}}-of-\d{{5}}[^/]*\.(parquet|arrow)")


def _undescribed(files: list[Path], folder: Path) -> dict[str, list[Path]]:
    """Files by configuration where no README tells: sub-folders that hold nothing but shards of splits."""
    found: dict[str, list[Path]] = {}
    for file in files:
        parts = file.relative_to(folder).parts
        split = len(parts) > 1 and parts[-2] in ("train", *_HELD_OUT)
        if len(parts) < 2 or split or not _SHARD.fullmatch(parts[-1]):
            return {}
        found.setdefault("/".join(parts[:-1]), []).append(file)
    return found if len(found) > 1 else {}


def _of_undescribed(
    apart: dict[str, list[Path]], folder: Path, name: str, wanted: str | None
) -> list[Path]:
    config = next((c for c in apart if f"{wanted}/".startswith(f"{c}/")), None)
    if wanted is None or config is None:
        names = list(apart)
        raise UserError(
            f"{name} has a sub-folder for each of several configurations ({_few(names)}), and no README "
            f"that names a default; choose one, as in {name}:{names[0]}, or list several"
        )
    split = wanted[len(config) + 1 :] or None
    return _by_names(apart[config], folder, name, split, from_hub=True)


def _matching(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(pattern))
    except (ValueError, NotImplementedError, OSError):  # '', or from the root
        return []


def _split_among(splits: list[str], wanted: str, name: str) -> str:
    if wanted not in splits:
        raise UserError(
            f"{name} has no split '{wanted}': it has {', '.join(splits)}; choose one, as in "
            f"{name}:{splits[0]}"
        )
    return wanted


def _by_names(
    files: list[Path], folder: Path, name: str, wanted: str | None, from_hub: bool
) -> list[Path]:
    names = {file: file.relative_to(folder) for file in files}

    def of(*splits: str) -> list[Path]:
        return [f for f, path in names.items() if any(_of_split(path, s) for s in splits)]

    if wanted is not None:
        chosen = of(wanted)
        if not chosen:
            shown = _few([str(path) for path in names.values()])
            raise UserError(f"{name} has no split '{wanted}': it has {shown}")
        return chosen
    train = of("train")
    if from_hub or not train:
        return train or files
    held_out = set(of(*_HELD_OUT)) - set(train)
    return [file for file in files if file not in held_out]


def _of_split(name: PurePath, split: str) -> bool:
    """Whether a file of a dataset belongs to ``split``, or to ``config/split``.

    ``train-00000-of-00002.parquet`` and ``train/0.jsonl`` belong to train; ``train_sft-…`` is
    another split.
    """
    return all(
        any(re.match(rf"{re.escape(piece)}(?![A-Za-z0-9]|_\D)", part) for part in name.parts)
        for piece in split.split("/")
    )
