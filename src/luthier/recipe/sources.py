"""What a data source names, a dataset on the hub or a path, and paths that hold from any folder."""

import re
from pathlib import Path

from luthier.files import user_path

_HUB_DATASET = re.compile(r"(?P<id>[\w-][\w.-]*/[\w.-]+)(?::(?P<split>[\w./-]+))?")
_DATA_FILE = re.compile(
    r"\.(jsonl|json|csv|tsv|parquet|arrow|xlsx|ods)(\.gz|\.zst)?$", re.IGNORECASE
)


def hub_dataset(source: str) -> tuple[str, str | None] | None:
    """(id, split) where a data source names a dataset on the hub, None where it is a path here."""
    match = _HUB_DATASET.fullmatch(source)
    if match is None or _DATA_FILE.search(source):
        return None
    if Path(source).exists() or Path(match["id"]).is_dir():  # a folder may be given as folder:split
        return None
    return match["id"], match["split"]


def absolute_path(path: str) -> str:
    """``path`` from the root of the file system, ``~`` expanded and links resolved.

    Raises:
        UserError: it begins with ``~name`` and there is no such user.
    """
    return str(user_path(path).resolve())


def absolute_source(source: str) -> str:
    """A data source that means the same from any folder; ids on the hub stay as they are."""
    return source if hub_dataset(source) is not None else absolute_path(source)
