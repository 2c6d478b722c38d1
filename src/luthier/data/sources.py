"""From what a person writes as a data source to the files it means."""

import glob
import re
from pathlib import Path, PurePath

from luthier.data.kinds import COMPRESSED, READABLE, endings, kind_of
from luthier.errors import UserError
from luthier.events import OnEvent, during, ignore
from luthier.files import user_path
from luthier.recipe import hub_dataset

# Descriptions found beside data on the hub and in LLaMA-Factory's folders; no rows in them.
_NOT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}


def find_files(source: str, on_event: OnEvent = ignore) -> list[str]:
    """The data files that ``source`` means, sorted.

    Args:
        source: a file; a folder (all readable files in it and below, hidden ones skipped); a glob
            pattern; or a dataset on the hub, ``owner/name`` or ``owner/name:split``, fetched into
            the hub's cache. Without a split its ``train`` files are taken where it has such.

    Raises:
        UserError: there is nothing there, or nothing readable, or the hub does not give it.
    """
    path = user_path(source)
    if path.is_dir():
        return [str(file) for file in _below(path, source)]
    if path.exists():
        return [source]
    if glob.has_magic(source):
        # Path.glob takes no absolute patterns.
        found = sorted(glob.glob(str(path), recursive=True))  # noqa: PTH207
        files = [name for name in found if _is_data(Path(name))]
        if not files:
            raise UserError(
                f"no data file matches {source}: names of data files end in {endings()}"
            )
        return files
    hub = hub_dataset(source)
    if hub is not None:
        with during(f"fetching {source} from the hub", on_event):
            return _hub_files(*hub)
    raise UserError(f"no data file at {source}")


def _below(folder: Path, name: str) -> list[Path]:
    root = folder.resolve()
    if root.parent.name == "snapshots":  # the hub's cache: its files are links into its blobs
        root = root.parent.parent
    files = [
        path
        for path in sorted(folder.rglob("*"))
        if _is_data(path)
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


def _is_data(path: Path) -> bool:
    return kind_of(path.name) is not None and path.name not in _NOT_DATA and path.is_file()


def _hub_files(hub_id: str, split: str | None) -> list[str]:
    folder = _hub_snapshot(hub_id)
    files = _below(folder, f"the dataset {hub_id} on the hub")
    names = {file: file.relative_to(folder) for file in files}
    chosen = [file for file, name in names.items() if _of_split(name, split or "train")]
    if not chosen and split is None:
        chosen = files
    if not chosen:
        shown = ", ".join(str(name) for name in list(names.values())[:5])
        raise UserError(f"{hub_id} has no split '{split}': it has {shown}")
    return [str(file) for file in chosen]


def _of_split(name: PurePath, split: str) -> bool:
    """Whether a file of a dataset belongs to ``split``, or to ``config/split``.

    ``train-00000-of-00002.parquet`` and ``train/0.jsonl`` belong to train; ``train_sft-…`` is
    another split.
    """
    return all(
        any(re.match(rf"{re.escape(piece)}(?![A-Za-z0-9]|_\D)", part) for part in name.parts)
        for piece in split.split("/")
    )


def _hub_snapshot(hub_id: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
    )

    patterns = [f"*{kind}{end}" for kind in READABLE for end in ("", *COMPRESSED)]
    try:
        return Path(
            snapshot_download(hub_id, repo_type="dataset", allow_patterns=patterns, etag_timeout=5)
        )
    except GatedRepoError:
        raise UserError(
            f"{hub_id} is gated: accept its terms on the hub, then log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise UserError(
            f"the hub has no dataset '{hub_id}' (or it is private: `hf auth login`)"
        ) from None
    except (LocalEntryNotFoundError, OfflineModeIsEnabled):
        raise UserError(
            f"'{hub_id}' is not a file or folder here, is not in the hub's cache, and the hub does "
            "not answer"
        ) from None
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(f"cannot fetch {hub_id} from the hub: {error}") from error
