"""What the README of a data set says about its configurations and splits.

The hub's data sets have it in YAML before the text: https://huggingface.co/docs/hub/datasets-manual-configuration
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.errors import UserError
from luthier.yaml_text import parse_yaml

_LONGEST = 1 << 20  # bytes of a README that are looked at


@dataclass(frozen=True)
class Config:
    """One configuration: patterns of files by split; without any, its ``folder`` has its files."""

    name: str
    splits: dict[str, list[str]]
    folder: str | None
    default: bool


def read_configs(folder: Path) -> list[Config]:
    """The configurations that ``folder``/README.md describes; none where it describes none.

    Raises:
        UserError: the description is no YAML, or is not formed as the hub's are.
    """
    path = folder / "README.md"
    try:
        with path.open("rb") as file:
            text = file.read(_LONGEST).decode("utf-8-sig", "replace")
    except OSError:
        return []
    lines = text.splitlines()
    if not lines or lines[0].rstrip() != "---" or "---" not in lines[1:]:
        return []
    head = lines[1 : lines.index("---", 1)]
    if not any(line.startswith("configs:") for line in head):
        return []
    described = parse_yaml("\n".join(head), str(path))
    configs = described.get("configs") if isinstance(described, dict) else None
    if not isinstance(configs, list):
        raise UserError(f"{path}: 'configs' is not a list")
    return [_config(entry, f"{path}, configs entry {n}") for n, entry in enumerate(configs, 1)]


def _config(entry: Any, place: str) -> Config:
    if not isinstance(entry, dict) or not isinstance(entry.get("config_name"), str):
        raise UserError(f"{place} has no 'config_name'")
    name, folder = entry["config_name"], entry.get("data_dir")
    return Config(
        name,
        _splits(entry.get("data_files"), place),
        folder if isinstance(folder, str) else None,
        entry.get("default") is True or name == "default",
    )


def _splits(files: Any, place: str) -> dict[str, list[str]]:
    if files is None:
        return {}
    if isinstance(files, dict):
        files = [{"split": split, "path": path} for split, path in files.items()]
    entries = files if isinstance(files, list) else [files]
    if all(isinstance(entry, str) for entry in entries):
        return {"train": entries}  # files without a split are for training
    splits: dict[str, list[str]] = {}
    for entry in entries:
        path = entry.get("path") if isinstance(entry, dict) else None
        paths = [path] if isinstance(path, str) else path
        if not isinstance(paths, list) or not all(isinstance(each, str) for each in paths):
            raise UserError(
                f"{place}: its 'data_files' are not paths, or splits with a 'path' each"
            )
        splits.setdefault(str(entry.get("split", "train")), []).extend(paths)
    return splits
